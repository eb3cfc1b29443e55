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
VOXCELEB = ("VoxCeleb1", "Voxceleb1", "voxceleb1")
LEXICONS = (
    "librispeech-lexicon-200k-g2p.txt",
    "librispeech-lexicon-allothers-g2p.txt",
    "librispeech-lexicon.txt",
)
"""The two that SUPERB takes phones from (s3prl ships them), then LibriSpeech's own."""
VOICES = {
    "train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    "valid": ("Aditi", "Amy", "Geraint", "Nicole"),
    "test": ("Brian", "Emma", "Raveena", "Russell"),
}
"""SUPERB's speakers of Audio SNIPS; the corpus has every voice in every part."""
PUNCTUATION = "?!.,;-"


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

    The published test set (`speech_commands_test_set_v0.01`, a folder per class) is used where it is there,
    and is then the whole test part.
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
            silence = _seconds_of_silence(path)
            if tests is not None:
                silence = [
                    row | {"split": "train"} if row["split"] == "test" else row for row in silence
                ]
            rows += silence
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
            match = line.match(text)
            if match is None or match.group(2) not in EMOTIONS:
                continue
            name = match.group(1)
            scene = name.rpartition("_")[0]
            path = file.parents[2] / "sentences" / "wav" / scene / f"{name}.wav"
            rows.append({"path": str(path), "label": EMOTIONS[match.group(2)], "session": session})
    return rows


def voxceleb_identification(root: Path) -> list[Row] | None:
    """VoxCeleb1 (`dev/wav` and `test/wav`) with its identification split: 1 train, 2 valid, 3 test.

    The split is `iden_split.txt`, or `veri_test_class.txt` as s3prl calls it.
    """
    folder, split = _first(root, *VOXCELEB), _first(root, "iden_split.txt", "veri_test_class.txt")
    if folder is None or split is None:
        return None
    parts = {"1": "train", "2": "valid", "3": "test"}
    paths = _by_tail(folder.rglob("*.wav"), 3)
    rows = []
    for line in split.read_text(encoding="utf-8").splitlines():
        number, _, name = line.partition(" ")
        if name in paths:
            rows.append(
                {"path": paths[name], "speaker": name.split("/")[0], "split": parts[number]}
            )
    return rows


def voxceleb_trials(root: Path) -> Path | None:
    """VoxCeleb1-O's trials, target and two clips a line, under the authors' name or s3prl's."""
    return _first(root, "veri_test.txt", "voxceleb1_test_v2.txt")


def voxceleb_verification(root: Path) -> list[Row] | None:
    """VoxCeleb1 for verification: test speakers from its trials, a twentieth of the others valid."""
    folder, trials = _first(root, *VOXCELEB), voxceleb_trials(root)
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
        validation = hashlib.sha256(speaker.encode()).digest()[0] < 13
        part = "test" if speaker in tested else "valid" if validation else "train"
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
    """LibriSpeech's transcripts through its lexicon; sentences with a word that it lacks are left out.

    SUPERB's phones need both of s3prl's lexicons, which have every word.
    """
    rows = librispeech(root)
    files = [file for file in (_first(root, name) for name in LEXICONS) if file is not None]
    if rows is None or not files:
        return None
    lexicon: dict[str, str] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            word, *phones = line.split() or [""]
            # A word's first pronunciation is its only one, as in SUPERB.
            lexicon.setdefault(word, " ".join(phones))
    spoken = []
    for row in rows:
        words = row["text"].split()
        if all(word in lexicon for word in words):
            spoken.append(row | {"phones": " ".join(lexicon[word] for word in words)})
    return spoken


def audio_snips(root: Path) -> list[Row] | None:
    """Audio SNIPS as SUPERB prepares it: `all.iob.snips.txt` beside a folder per part, voices kept apart.

    A line is `Ivy-snips-train-0 BOS words EOS`, a tab, and `O`, a slot or `O` per word, the intent.
    """
    folder = _first(root, "SNIPS")
    if folder is None or not (folder / "all.iob.snips.txt").is_file():
        return None
    marked = {}
    for line in (folder / "all.iob.snips.txt").read_text(encoding="utf-8").splitlines():
        name, _, rest = line.strip().partition(" ")
        words, _, tags = rest.partition("\t")
        marked[name] = mark_slots(words.split(" ")[1:-1], tags.split(" ")[1:-1])
    rows = []
    for part, voices in VOICES.items():
        files = {
            path.stem: path
            for ending in ("mp3", "wav")
            for path in sorted((folder / part).rglob(f"*.{ending}"))
        }
        for name, path in sorted(files.items()):
            voice = name.split("-")[0]
            if name in marked and voice in voices:
                rows.append(
                    {"path": str(path), "text": marked[name], "speaker": voice, "split": part}
                )
    return rows


def mark_slots(words: Iterable[str], tags: Iterable[str]) -> str:
    """Words with a slot's name or O each -> a text with `<slot>` marks around neighbours of one slot.

    Words that are punctuation are left out, and `&` is spoken, as in SUPERB.
    """
    text: list[str] = []
    now = ""
    for word, tag in zip(words, tags, strict=False):
        name = "" if tag == "O" else tag
        if now and name != now:
            text[-1] += f"</{now}>"
            now = ""
        if word in PUNCTUATION:
            continue
        word = "AND" if word == "&" else word
        if name and not now:
            word, now = f"<{name}>{word}", name
        text.append(word)
    if now:
        text[-1] += f"</{now}>"
    return " ".join(text)


def libri2mix(root: Path) -> list[Row] | None:
    """Libri2Mix at 16 kHz, `max`, with noise (`mix_both`), as `generate_librimix_sd.sh` makes it.

    The truth is `train/rttm`, `dev/rttm` and `test/rttm` from `prepare_diarization.py`: in the root, a folder
    of it, or s3prl's `downstream/diarization/data` there.
    """
    folder = _first(root, "Libri2Mix")
    truth = _first(
        root,
        "train/rttm",
        "diarization/data/train/rttm",
        "s3prl/downstream/diarization/data/train/rttm",
    )
    if folder is None or truth is None:
        return None
    parts = {"train": ("train-100", "train"), "valid": ("dev", "dev"), "test": ("test", "test")}
    rows = []
    for part, (mixtures, prepared) in parts.items():
        rttm = truth.parents[1] / prepared / "rttm"
        if not rttm.is_file():
            return None
        for path in sorted((folder / "wav16k" / "max" / mixtures / "mix_both").glob("*.wav")):
            rows.append(
                {"path": str(path), "utt": path.stem, "rttm": str(rttm.resolve()), "split": part}
            )
    return rows


def quesst(root: Path) -> list[Row] | None:
    """QUESST 2014, English: development queries as the validation part, evaluation queries as test.

    In `scoring` are the lists of files and languages, and an RTTM of the documents that hold each query.
    """
    folder = _first(root, "quesst14Database")
    if folder is None:
        return None
    scoring = folder / "scoring"
    documents = _english(scoring / "language_key_utterances.lst")
    rows: list[Row] = []
    for part, key in (("valid", "dev"), ("test", "eval")):
        truth = scoring / f"groundtruth_quesst14_{key}" / f"quesst14_{key}.rttm"
        queries = _english(scoring / f"language_key_{key}.lst")
        if not (truth.is_file() and queries and documents):
            return None
        matches: dict[str, set[str]] = {}
        for line in truth.read_text(encoding="utf-8").splitlines():
            fields = line.split()
            if fields[:1] == ["LEXEME"]:
                matches.setdefault(fields[5], set()).add(fields[1])
        terms = [Path(query).stem for query in queries]
        for query, term in zip(queries, terms, strict=True):
            rows.append(
                {"path": str(folder / query), "role": "query", "label": term, "split": part}
            )
        for document in documents:
            name = Path(document).stem
            spoken = [term for term in terms if name in matches.get(term, ())]
            rows.append(
                {
                    "path": str(folder / document),
                    "role": "document",
                    "label": " ".join(spoken),
                    "split": part,
                }
            )
    return rows


def _english(path: Path) -> list[str]:
    """The English files of a list, relative to the corpus: the list's paths begin with another folder."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.split()[0] for line in lines if line.split()[1:] == ["nnenglish"]]
    return [name.partition("/")[2] or name for name in names]


def _by_tail(paths: Iterable[Path], parts: int) -> dict[str, str]:
    return {"/".join(path.parts[-parts:]): str(path) for path in sorted(paths)}


def _table(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return [dict(row) for row in csv.DictReader(stream)]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "unpack it again") from error


CORPORA = (
    Corpus(
        "pr",
        "LibriSpeech and its lexicon",
        "openslr.org/12; SUPERB's two lexicons are in s3prl's downstream/ctc/lexicon",
        librispeech_phones,
    ),
    Corpus("asr", "LibriSpeech", "openslr.org/12", librispeech),
    Corpus(
        "ks",
        "Speech Commands v0.01",
        "download.tensorflow.org/data: speech_commands_v0.01.tar.gz and its test set",
        speech_commands,
    ),
    Corpus("qbe", "QUESST 2014", "speech.fit.vutbr.cz/files/quesst14Database.tgz", quesst),
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
    Corpus("sd", "Libri2Mix with RTTM files", "github.com/s3prl/LibriMix", libri2mix),
    Corpus("er", "IEMOCAP", "sail.usc.edu/iemocap", iemocap, folds="session"),
    Corpus("ic", "Fluent Speech Commands", "fluent.ai", fluent_speech_commands),
    Corpus("sf", "Audio SNIPS", "the SUPERB organisers' link (s3prl, docs/superb.md)", audio_snips),
)
