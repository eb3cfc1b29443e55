"""Sources: a folder, a list, a fairseq tsv, a CSV manifest or a lhotse manifest -> `Manifest`.

Only headers are read for every file; contents are decoded for up to `CHECKED_HOURS` of audio, so that
silent, truncated or broken files are found before training starts. Beyond that, files are checked when
they are first heard, and skipped then.
"""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import soundfile

from sslim.audio.loading import load_audio, reason_of
from sslim.audio.manifest import Manifest, Skipped, Utterance
from sslim.errors import AudioError
from sslim.plan import SAMPLING_RATE

EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
CHECKED_HOURS = 20.0
LHOTSE_ENDINGS = (".jsonl", ".jsonl.gz")

Source = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class _Entry:
    """One line of a source, before its file has been looked at."""

    path: Path
    start: int | None = None
    end: int | None = None
    line: str = ""


def read_source(
    source: Source,
    *,
    min_seconds: float = 0.0,
    max_seconds: float = float("inf"),
    where: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Finds, checks and measures all utterances of a source.

    Args:
        source: folder, list of files (text file or sequence), fairseq tsv, CSV with `path` and optional
            `start` and `end` in samples, or lhotse manifest.
        min_seconds: shorter utterances are skipped.
        max_seconds: utterances are cropped to this when heard; given here for messages only.
        where: rows of a CSV to take, as column -> value.
        progress: called with (files looked at, files in all).

    Raises:
        AudioError: the source cannot be read, or nothing in it can be used.
    """
    del max_seconds
    entries = list(_entries(source, where or {}))
    name = str(source) if isinstance(source, (str, Path)) else f"a list of {len(source)} files"
    if not entries:
        raise AudioError(
            f"no audio found in {name}",
            f"give a folder with {', '.join(EXTENSIONS)} files, a list, a tsv, a CSV or a lhotse manifest",
        )
    headers = _headers(entries, progress)
    utterances: list[Utterance] = []
    skipped: list[Skipped] = []
    longest = 0.0
    for entry in entries:
        header = headers[str(entry.path)]
        if isinstance(header, str):
            skipped.append(Skipped(str(entry.path), header))
            continue
        utterance = _utterance(entry, *header)
        longest = max(longest, utterance.seconds)
        if entry.end is not None and entry.end > header[1]:
            reason = f"ends at sample {entry.end}, the file at {header[1]}"
            skipped.append(Skipped(utterance.identity, reason))
        elif utterance.seconds < max(min_seconds, 400 / SAMPLING_RATE):
            reason = f"{utterance.seconds:.3f} s is shorter than audio.min_seconds={min_seconds:g}"
            skipped.append(Skipped(utterance.identity, reason))
        else:
            utterances.append(utterance)
    if not utterances and longest > 0:
        raise AudioError(
            f"all {len(entries):,} utterances of {name} are unusable; the longest has {longest:.2f} s: "
            f"{skipped[0].path}: {skipped[0].reason}",
            "lower audio.min_seconds with --set audio.min_seconds=0.5, say, or give longer audio",
        )
    usable, broken = _check_contents(utterances)
    skipped += broken
    if not usable:
        raise AudioError(
            f"none of the {len(entries):,} files of {name} can be used; the first is "
            f"{skipped[0].path}: {skipped[0].reason}",
            "check that the files are intact audio",
        )
    return Manifest(tuple(usable), tuple(skipped))


def find_files(source: str | Path) -> list[tuple[Path, str]]:
    """Whole files of a file, folder or list, each with a name that no other has.

    Raises:
        AudioError: the source cannot be read or has no audio.
    """
    path = Path(source).expanduser()
    files = list(dict.fromkeys(entry.path for entry in _entries(path, {})))
    if not files:
        raise AudioError(f"no audio found in {path}", f"give {', '.join(EXTENSIONS)} files")
    root = path if path.is_dir() else None
    plain = [
        (file.relative_to(root) if root else Path(file.name)).with_suffix("") for file in files
    ]
    found: list[tuple[Path, str]] = []
    taken: set[str] = set()
    for file, name in zip(files, plain, strict=True):
        unique = str(name) if plain.count(name) == 1 else f"{name}{file.suffix}"
        while unique in taken:
            unique += "-again"
        taken.add(unique)
        found.append((file, unique))
    return found


# --- kinds of source -----------------------------------------------------------------------------


def _entries(source: Source, where: Mapping[str, str]) -> Iterator[_Entry]:
    if not isinstance(source, (str, Path)):
        yield from (_Entry(Path(path)) for path in source)
        return
    path = Path(source).expanduser()
    if not path.exists():
        raise AudioError(f"the audio source {path} does not exist", "check the path")
    if where and path.suffix.lower() != ".csv":
        raise AudioError(f"{path} has no columns to choose from", "use --where with a CSV manifest")
    if path.is_dir():
        yield from (_Entry(file) for file in _walk(path))
    elif path.suffix.lower() in EXTENSIONS:
        yield _Entry(path)
    elif path.suffix.lower() == ".csv":
        yield from _csv(path, where)
    elif path.suffix.lower() == ".tsv":
        yield from _tsv(path)
    elif str(path).lower().endswith(LHOTSE_ENDINGS):
        yield from _lhotse(path)
    elif path.suffix.lower() in ("", ".txt", ".lst", ".list", ".scp"):
        yield from _list(path)
    else:
        raise AudioError(
            f"{path} is no kind of audio source that sslim knows",
            "give a folder, .txt list, .tsv (fairseq), .csv, or .jsonl[.gz] (lhotse)",
        )


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(parent) / name


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AudioError(
            f"{path} cannot be read as text: {error}", "give a UTF-8 text file"
        ) from error


def _list(path: Path) -> Iterator[_Entry]:
    for line in _lines(path):
        if line.strip():
            yield _Entry(path.parent / line.strip())


def _tsv(path: Path) -> Iterator[_Entry]:
    lines = _lines(path)
    root = Path(lines[0].strip()) if lines else Path()
    if not lines or "\t" in lines[0]:
        raise AudioError(
            f"{path}, line 1: a fairseq tsv starts with the root folder, got {lines[0] if lines else ''!r}",
            "write the folder of the audio on the first line",
        )
    if not root.is_absolute() and not root.is_dir():
        root = path.parent / root
    if not root.is_dir():
        raise AudioError(
            f"{path}, line 1: the root folder {root} does not exist", "correct the path"
        )
    for line in lines[1:]:
        if line.strip():
            yield _Entry(root / line.split("\t")[0])


def _csv(path: Path, where: Mapping[str, str]) -> Iterator[_Entry]:
    lines = _lines(path)
    reader = csv.DictReader(lines)
    columns = list(reader.fieldnames or [])
    for wanted in ("path", *where):
        if wanted not in columns:
            near = difflib.get_close_matches(wanted, columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the columns are {', '.join(columns)}"
            raise AudioError(f"{path} has no column {wanted!r}", hint)
    for row in reader:
        if any(row[column] != value for column, value in where.items()):
            continue
        at = f"{path}, line {reader.line_num}"
        start, end = _sample(row, "start", at), _sample(row, "end", at)
        if end is not None and end <= (start or 0):
            raise AudioError(f"{at}: end {end} is not after start {start or 0}", "correct the line")
        yield _Entry(path.parent / (row["path"] or ""), start, end, at)


def _sample(row: Mapping[str, str | None], column: str, at: str) -> int | None:
    text = (row.get(column) or "").strip()
    if not text:
        return None
    try:
        value = float(text)
        number = int(value)
    except (ValueError, OverflowError):
        value, number = 0.5, 0
    if value != number or number < 0:
        raise AudioError(f"{at}: {column} is {text!r}, not a number of samples", "correct the line")
    return number


def _lhotse(path: Path) -> Iterator[_Entry]:
    import lhotse

    try:
        manifest = lhotse.load_manifest(path)
    except Exception as error:
        raise AudioError(
            f"{path} is not a lhotse manifest: {error}", "give a manifest of recordings or cuts"
        ) from error
    if isinstance(manifest, lhotse.RecordingSet):
        manifest = lhotse.CutSet.from_manifests(recordings=manifest)
    if not isinstance(manifest, lhotse.CutSet):
        raise AudioError(
            f"{path} holds {type(manifest).__name__}, not audio", "give recordings or cuts"
        )
    for cut in manifest:
        recording = getattr(cut, "recording", None)
        if recording is None or not recording.sources or recording.sources[0].type != "file":
            raise AudioError(
                f"{path}: cut {cut.id} has no audio file", "give cuts of recordings on disk"
            )
        rate = recording.sampling_rate
        whole = cut.start == 0 and abs(cut.duration - recording.duration) < 1 / rate
        start, end = round(cut.start * rate), round(cut.end * rate)
        file = Path(recording.sources[0].source)
        if not file.is_absolute() and not file.exists():
            file = path.parent / file
        yield _Entry(
            file, None if whole else start, None if whole else min(end, recording.num_samples)
        )


# --- looking at files ----------------------------------------------------------------------------


def _headers(
    entries: Iterable[_Entry], progress: Callable[[int, int], None] | None
) -> dict[str, tuple[int, int] | str]:
    """Path -> (rate, samples per channel), or what is wrong with the file."""
    paths = list(dict.fromkeys(str(entry.path) for entry in entries))
    found: dict[str, tuple[int, int] | str] = {}
    with ThreadPoolExecutor(max_workers=8) as pool:
        for count, (path, header) in enumerate(zip(paths, pool.map(_header, paths), strict=True)):
            found[path] = header
            if progress is not None:
                progress(count + 1, len(paths))
    return found


def _header(path: str) -> tuple[int, int] | str:
    try:
        size = os.path.getsize(path)
    except OSError as error:
        return error.strerror or str(error)
    if size == 0:
        return "is an empty file"
    try:
        info = soundfile.info(path)
    except (OSError, RuntimeError) as error:
        return f"cannot be read: {reason_of(error)}"
    return (info.samplerate, info.frames) if info.frames > 0 else "holds no samples"


def _utterance(entry: _Entry, rate: int, samples: int) -> Utterance:
    start, end = entry.start or 0, entry.end if entry.end is not None else samples
    whole = entry.start is None and entry.end is None
    return Utterance(
        path=str(entry.path),
        start=entry.start,
        end=entry.end,
        sampling_rate=rate,
        seconds=max(0, end - start) / rate,
        identity=str(entry.path) if whole else f"{entry.path}[{start}:{end}]",
    )


def _check_contents(utterances: Sequence[Utterance]) -> tuple[list[Utterance], list[Skipped]]:
    """Decodes what is affordable; the utterances of one file stay together so it is decoded once."""
    by_file: dict[str, list[Utterance]] = {}
    seconds = 0.0
    for utterance in utterances:
        if seconds < CHECKED_HOURS * 3600 or utterance.path in by_file:
            by_file.setdefault(utterance.path, []).append(utterance)
            seconds += utterance.seconds
    bad: dict[str, str] = {}

    def check(group: list[Utterance]) -> list[tuple[str, str]]:
        found = []
        for utterance in group:
            try:
                load_audio(utterance, utterance.sampling_rate)
            except AudioError as error:
                found.append(
                    (utterance.identity, error.problem.removeprefix(utterance.identity).strip())
                )
        return found

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for found in pool.map(check, by_file.values()):
            bad |= dict(found)
    usable = [utterance for utterance in utterances if utterance.identity not in bad]
    return usable, [Skipped(identity, reason) for identity, reason in bad.items()]
