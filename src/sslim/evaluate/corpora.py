"""SUPERB's corpora in the layouts their authors ship: where they lie under a folder, as labelled clips.

Each finder gets the folder and returns rows for `clips`, or None where its corpus is not there. Nothing is
downloaded; a missing corpus is named with the place to get it.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sslim.errors import ConfigError

Row = dict[str, str]
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
NOISE_FOLDER = "_background_noise_"
EMOTIONS = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad"}


@dataclass(frozen=True)
class Corpus:
    """One task's data in SUPERB."""

    task: str
    name: str
    where: str
    """Where to get it."""
    find: Callable[[Path], list[Row] | None]
    folds: str | None = None


def _first(root: Path, *names: str) -> Path | None:
    """The first of these folders or files that exists, in `root` or one level below."""
    for name in names:
        for path in (root / name, *sorted(root.glob(f"*/{name}"))):
            if path.exists():
                return path
    return None


def speech_commands(root: Path) -> list[Row] | None:
    """Speech Commands v0.01: ten words, `_unknown_` and `_silence_`; its lists name the parts.

    The published test set (`speech_commands_test_set_v0.01`) is used where it is there.
    """
    folder = _first(root, "speech_commands_v0.01", "SpeechCommands/speech_commands_v0.01")
    if folder is None:
        return None
    lists = {
        part: set((folder / name).read_text(encoding="utf-8").split())
        for part, name in (("valid", "validation_list.txt"), ("test", "testing_list.txt"))
        if (folder / name).is_file()
    }
    tests = _first(root, "speech_commands_test_set_v0.01")
    rows = []
    for path in sorted(folder.glob("*/*.wav")):
        word, name = path.parent.name, f"{path.parent.name}/{path.name}"
        if word == NOISE_FOLDER:
            rows += _seconds_of_silence(path)
            continue
        part = next((part for part, names in lists.items() if name in names), "train")
        if tests is not None and part == "test":
            continue
        label = word if word in KEYWORDS else "_unknown_"
        rows.append({"path": str(path), "label": label, "split": part})
    if tests is not None:
        for path in sorted(tests.glob("*/*.wav")):
            rows.append({"path": str(path), "label": path.parent.name, "split": "test"})
    return rows


def _seconds_of_silence(path: Path) -> list[Row]:
    """A background recording in pieces of a second; the same piece always falls into the same part."""
    import soundfile

    info = soundfile.info(path)
    rows = []
    for start in range(0, info.frames - info.samplerate + 1, info.samplerate):
        digest = hashlib.sha256(f"{path.name}/{start}".encode()).digest()[0]
        part = "valid" if digest < 26 else "test" if digest < 52 else "train"
        end = start + info.samplerate
        rows.append(
            {
                "path": str(path),
                "start": str(start),
                "end": str(end),
                "label": "_silence_",
                "split": part,
            }
        )
    return rows


def fluent_speech_commands(root: Path) -> list[Row] | None:
    """Fluent Speech Commands: action, object and location."""
    folder = _first(root, "fluent_speech_commands_dataset")
    if folder is None:
        return None
    rows = []
    for part in ("train", "valid", "test"):
        for row in _table(folder / "data" / f"{part}_data.csv"):
            rows.append(
                {
                    "path": str(folder / row["path"]),
                    "action": row["action"],
                    "object": row["object"],
                    "location": row["location"],
                    "speaker": row.get("speakerId", ""),
                    "split": part,
                }
            )
    return rows


def iemocap(root: Path) -> list[Row] | None:
    """IEMOCAP: four emotions (excited counts as happy), the session as fold."""
    folder = _first(root, "IEMOCAP_full_release", "IEMOCAP")
    if folder is None:
        return None
    line = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t")
    rows = []
    for file in sorted(folder.glob("Session*/dialog/EmoEvaluation/*.txt")):
        session = file.parents[2].name
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            found = line.match(text)
            if found is None or found.group(2) not in EMOTIONS:
                continue
            name = found.group(1)
            scene = name.rpartition("_")[0]
            path = file.parents[2] / "sentences" / "wav" / scene / f"{name}.wav"
            rows.append({"path": str(path), "label": EMOTIONS[found.group(2)], "session": session})
    return rows


def voxceleb_identification(root: Path) -> list[Row] | None:
    """VoxCeleb1 with its identification split (`iden_split.txt`: 1 train, 2 valid, 3 test)."""
    folder, split = _first(root, "VoxCeleb1", "voxceleb1"), _first(root, "iden_split.txt")
    if folder is None or split is None:
        return None
    parts = {"1": "train", "2": "valid", "3": "test"}
    found = _by_tail(folder.rglob("*.wav"), 3)
    rows = []
    for line in split.read_text(encoding="utf-8").splitlines():
        number, _, name = line.partition(" ")
        if name in found:
            rows.append(
                {"path": found[name], "speaker": name.split("/")[0], "split": parts[number]}
            )
    return rows


def voxceleb_verification(root: Path) -> list[Row] | None:
    """VoxCeleb1 for verification: test speakers from `veri_test.txt`, a twentieth of the others valid."""
    folder, trials = _first(root, "VoxCeleb1", "voxceleb1"), _first(root, "veri_test.txt")
    if folder is None or trials is None:
        return None
    tested = {
        name.split("/")[0]
        for line in trials.read_text(encoding="utf-8").splitlines()
        for name in line.split()[1:]
    }
    rows = []
    for name, path in _by_tail(folder.rglob("*.wav"), 3).items():
        speaker = name.split("/")[0]
        held = hashlib.sha256(speaker.encode()).digest()[0] < 13
        part = "test" if speaker in tested else "valid" if held else "train"
        rows.append({"path": path, "utt": name, "speaker": speaker, "split": part})
    return rows


def librispeech(root: Path) -> list[Row] | None:
    """LibriSpeech's clean parts with their transcripts."""
    folder = _first(root, "LibriSpeech")
    if folder is None:
        return None
    parts = {"train": "train-clean-100", "valid": "dev-clean", "test": "test-clean"}
    rows = []
    for part, name in parts.items():
        for file in sorted((folder / name).rglob("*.trans.txt")):
            for line in file.read_text(encoding="utf-8").splitlines():
                utterance, _, text = line.partition(" ")
                path = file.with_name(f"{utterance}.flac")
                speaker = utterance.split("-")[0]
                rows.append({"path": str(path), "text": text, "speaker": speaker, "split": part})
    return rows


def librispeech_phones(root: Path) -> list[Row] | None:
    """LibriSpeech's transcripts through its lexicon; sentences with a word that it lacks are left out."""
    rows, file = librispeech(root), _first(root, "librispeech-lexicon.txt")
    if rows is None or file is None:
        return None
    lexicon: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        word, _, phones = line.partition("\t")
        if not phones:
            word, _, phones = line.partition(" ")
        lexicon.setdefault(word, " ".join(phones.split()))
    spoken = []
    for row in rows:
        words = row["text"].split()
        if all(word in lexicon for word in words):
            spoken.append(row | {"phones": " ".join(lexicon[word] for word in words)})
    return spoken


def audio_snips(root: Path) -> list[Row] | None:
    """Audio SNIPS: `all.iob.snips.txt` beside a folder per part, words tagged B-slot and I-slot."""
    folder = _first(root, "audio_slu", "SNIPS")
    labels = None if folder is None else _first(folder, "all.iob.snips.txt")
    if folder is None or labels is None:
        return None
    marked = {}
    for line in labels.read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(" ")
        words, _, tags = rest.partition("\t")
        marked[name] = mark_slots(words.split()[1:-1], tags.split()[1:-1])
    rows = []
    for part in ("train", "valid", "test"):
        for path in sorted((folder / part).glob("*")):
            if path.stem in marked and path.suffix in (".wav", ".mp3", ".flac"):
                rows.append({"path": str(path), "text": marked[path.stem], "split": part})
    return rows


def mark_slots(words: Iterable[str], tags: Iterable[str]) -> str:
    """Words with B-slot, I-slot and O tags -> a text with `<slot>` marks."""
    text: list[str] = []
    now = ""
    for word, tag in zip(words, tags, strict=False):
        name = tag[2:] if tag[:2] in ("B-", "I-") else ""
        if now and (name != now or tag.startswith("B-")):
            text[-1] += f"</{now}>"
            now = ""
        if name and not now:
            word, now = f"<{name}>{word}", name
        text.append(word)
    if now:
        text[-1] += f"</{now}>"
    return " ".join(text)


def libri2mix(root: Path) -> list[Row] | None:
    """Libri2Mix at 16 kHz, `max`, clean mixtures, with an RTTM file per part (as SUPERB prepares them)."""
    folder = _first(root, "Libri2Mix")
    if folder is None:
        return None
    parts = {"train": "train-100", "valid": "dev", "test": "test"}
    rows = []
    for part, name in parts.items():
        rttm = folder / "rttm" / f"{name}.rttm"
        if not rttm.is_file():
            return None
        for path in sorted((folder / "wav16k" / "max" / name / "mix_clean").glob("*.wav")):
            rows.append(
                {"path": str(path), "utt": path.stem, "rttm": str(rttm.resolve()), "split": part}
            )
    return rows


def quesst(root: Path) -> list[Row] | None:
    """QUESST 2014, English: development queries as the validation part, evaluation queries as test."""
    folder = _first(root, "quesst14Database", "QUESST14")
    if folder is None:
        return None
    documents = _language(folder / "language_key_utterances.lst")
    rows: list[Row] = []
    for part, key in (("valid", "dev"), ("test", "eval")):
        truth = _first(folder / "scoring", f"quesst14_{key}.rttm")
        if truth is None:
            return None
        matches: dict[str, set[str]] = {}
        for line in truth.read_text(encoding="utf-8").splitlines():
            fields = line.split()
            if fields[:1] == ["LEXEME"]:
                matches.setdefault(fields[5], set()).add(fields[1])
        for query in _language(folder / f"language_key_{key}.lst"):
            name = Path(query).stem
            rows.append(
                {"path": str(folder / query), "role": "query", "label": name, "split": part}
            )
        for document in documents:
            terms = [query for query, found in matches.items() if Path(document).stem in found]
            rows.append(
                {
                    "path": str(folder / document),
                    "role": "document",
                    "label": " ".join(terms),
                    "split": part,
                }
            )
    return rows


def _language(path: Path, language: str = "nnenglish") -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line.split()[0] for line in lines if line.split()[1:] == [language]]


def _by_tail(paths: Iterable[Path], parts: int) -> dict[str, str]:
    return {"/".join(path.parts[-parts:]): str(path) for path in sorted(paths)}


def _table(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return [dict(row) for row in csv.DictReader(stream)]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "unpack it again") from error


CORPORA = (
    Corpus("pr", "LibriSpeech and its lexicon", "openslr.org/12 and /11", librispeech_phones),
    Corpus("asr", "LibriSpeech", "openslr.org/12", librispeech),
    Corpus(
        "ks",
        "Speech Commands v0.01",
        "download.tensorflow.org/data/speech_commands_v0.01.tar.gz",
        speech_commands,
    ),
    Corpus("qbe", "QUESST 2014", "speech.fit.vutbr.cz/software/quesst-2014", quesst),
    Corpus(
        "sid",
        "VoxCeleb1 and iden_split.txt",
        "robots.ox.ac.uk/~vgg/data/voxceleb",
        voxceleb_identification,
    ),
    Corpus(
        "asv",
        "VoxCeleb1 and veri_test.txt",
        "robots.ox.ac.uk/~vgg/data/voxceleb",
        voxceleb_verification,
    ),
    Corpus("sd", "Libri2Mix with RTTM files", "github.com/JorisCos/LibriMix", libri2mix),
    Corpus("er", "IEMOCAP", "sail.usc.edu/iemocap", iemocap, folds="session"),
    Corpus("ic", "Fluent Speech Commands", "fluent.ai", fluent_speech_commands),
    Corpus("sf", "Audio SNIPS", "the SUPERB organisers' link (s3prl, docs/superb.md)", audio_snips),
)
