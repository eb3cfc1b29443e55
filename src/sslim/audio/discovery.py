"""Finding audio: a folder, a list, a fairseq tsv, a CSV manifest or a lhotse manifest -> `Manifest`.

Only headers are read for every file; contents are decoded for up to `CHECKED_HOURS` of audio, so that
silent, truncated or broken files are found before training starts. Beyond that, files are checked when
they are first heard, and skipped then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sslim.audio.lists import Entry, read_entries
from sslim.audio.loading import check_audio
from sslim.audio.manifest import Manifest, Skipped, Utterance
from sslim.audio.sound import EXTENSIONS, Sound, reason_in
from sslim.errors import AudioError, first_line
from sslim.plan import SAMPLING_RATE

AudioPaths = str | Path | Sequence[str | Path]
Header = tuple[int, int]
"""Rate in Hz, samples per channel."""


def read_source(
    source: AudioPaths,
    *,
    min_seconds: float = 0.0,
    where: Mapping[str, str] | None = None,
    check: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Finds, checks and measures all utterances of a source.

    Args:
        source: folder, list of files (text file or sequence), Kaldi scp, fairseq tsv, CSV with `path` and
            optional `start` and `end` in samples and `speaker`, or lhotse manifest.
        min_seconds: shorter utterances are skipped.
        where: rows of a CSV to take, as column -> value.
        check: whether contents are decoded here; where not, `check_contents` does it, and several processes
            can share that.
        progress: called with (files looked at, files in all).

    Raises:
        AudioError: the source cannot be read, or nothing in it can be used.
    """
    skipped: list[Skipped] = []
    entries = list(_entries(source, where or {}, skipped))
    name = str(source) if isinstance(source, (str, Path)) else f"a list of {len(source)} files"
    if not entries:
        raise AudioError(
            f"no audio found in {name}" + (f"; {_first(skipped)}" if skipped else ""),
            f"give a folder with {', '.join(EXTENSIONS)} files, a list, a tsv, a CSV or a lhotse manifest",
        )
    headers = _headers(entries, progress)
    utterances: list[Utterance] = []
    longest = 0.0
    for entry in entries:
        header = headers[str(entry.path)]
        if isinstance(header, str):
            skipped.append(Skipped(str(entry.path), header))
            continue
        utterance = _utterance(entry, *header)
        longest = max(longest, utterance.seconds)
        if max(utterance.end or 0, utterance.start or 0) > header[1]:
            reason = f"ends at sample {utterance.end or utterance.start}, the file at {header[1]}"
            skipped.append(Skipped(utterance.identity, reason))
        elif utterance.seconds < max(min_seconds, 400 / SAMPLING_RATE):
            reason = f"{utterance.seconds:.3f} s is shorter than audio.min_seconds={min_seconds:g}"
            skipped.append(Skipped(utterance.identity, reason))
        else:
            utterances.append(utterance)
    if not utterances and longest > 0:
        raise AudioError(
            f"all {len(entries):,} utterances of {name} are unusable; the longest has {longest:.2f} s: "
            f"{_first(skipped)}",
            "lower audio.min_seconds with --set audio.min_seconds=0.5, say, or give longer audio",
        )
    manifest = Manifest(
        tuple(utterances), tuple(skipped), _root(source), tuple(sorted((where or {}).items()))
    )
    if check:
        manifest = manifest.without(check_contents(manifest))
    if not manifest.utterances:
        raise AudioError(
            f"none of the {len(entries):,} files of {name} can be used; the first is "
            f"{_first(manifest.skipped)}",
            "check that the files are intact audio",
        )
    return manifest


def check_contents(manifest: Manifest, *, rank: int = 0, processes: int = 1) -> tuple[Skipped, ...]:
    """Decodes up to `CHECKED_HOURS` of a manifest, or this process's share of them.

    Returns:
        What cannot be used, for `Manifest.without`. Processes that share the work must exchange what they
        found, so that all go on with the same utterances.
    """
    by_file: dict[str, list[Utterance]] = {}
    for utterance in manifest.utterances:
        if utterance.path in manifest.checked_files:
            # The utterances of one file stay together, so that it is decoded once.
            by_file.setdefault(utterance.path, []).append(utterance)

    def check(group: list[Utterance]) -> list[Skipped]:
        found = []
        for utterance in group:
            try:
                check_audio(utterance)
            except AudioError as error:
                reason = reason_in(error, utterance.identity).removeprefix(utterance.path)
                found.append(Skipped(utterance.identity, reason.strip()))
        return found

    share = list(by_file.values())[rank::processes]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return tuple(item for found in pool.map(check, share) for item in found)


def _first(skipped: Sequence[Skipped]) -> str:
    return f"{skipped[0].path}: {skipped[0].reason}"


def _root(source: AudioPaths) -> str:
    """The folder that a source's files are named relative to."""
    if not isinstance(source, (str, Path)):
        return os.getcwd()
    path = _expanded(source)
    return os.path.abspath(path if path.is_dir() else path.parent)


def find_files(source: str | Path) -> list[tuple[Path, str]]:
    """Whole files of a file, folder or list, each with a name that no other has.

    Raises:
        AudioError: the source cannot be read or has no audio.
    """
    path = _expanded(source)
    unread: list[Skipped] = []
    files = list(dict.fromkeys(entry.path for entry in _entries(path, {}, unread)))
    if unread:
        raise AudioError(_first(unread), "make it readable, or give a list of files")
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


def _expanded(source: str | Path) -> Path:
    return Path(os.path.expanduser(source))  # a user that nobody knows stays as it was typed


def _entries(
    source: AudioPaths, where: Mapping[str, str], unread: list[Skipped]
) -> Iterator[Entry]:
    """What a source names; folders that cannot be read are added to `unread`."""
    if not isinstance(source, (str, Path)):
        yield from (Entry(Path(path)) for path in source)
        return
    path = _expanded(source)
    if not os.path.exists(path):
        raise AudioError(f"the audio source {path} does not exist", "check the path")
    if where and path.suffix.lower() != ".csv":
        raise AudioError(f"{path} has no columns to choose from", "use --where with a CSV manifest")
    if path.is_dir():
        yield from (Entry(file) for file in _walk(path, unread))
    elif path.suffix.lower() in EXTENSIONS:
        yield Entry(path)
    else:
        entries = read_entries(path, where)
        if entries is None:
            raise AudioError(
                f"{path} is no kind of audio source that sslim knows",
                "give a folder, .txt list, .scp (Kaldi), .tsv (fairseq), .csv, or .jsonl[.gz] (lhotse)",
            )
        yield from entries


def _walk(folder: Path, unread: list[Skipped]) -> Iterator[Path]:
    """Audio files below a folder; links are followed, and no folder is entered twice."""
    entered: set[tuple[int, int]] = set()

    def report(error: OSError) -> None:
        unread.append(
            Skipped(str(error.filename), f"the folder cannot be read: {first_line(error)}")
        )

    for parent, folders, files in os.walk(folder, followlinks=True, onerror=report):
        try:
            state = os.stat(parent)
        except OSError as error:  # it went away meanwhile
            report(error)
            continue
        if (state.st_dev, state.st_ino) in entered:
            folders.clear()
            continue
        entered.add((state.st_dev, state.st_ino))
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(parent) / name


# --- looking at files ----------------------------------------------------------------------------


def _headers(
    entries: Iterable[Entry], progress: Callable[[int, int], None] | None
) -> dict[str, Header | str]:
    """Path -> header, or what is wrong with the file."""
    paths = list(dict.fromkeys(str(entry.path) for entry in entries))
    found: dict[str, Header | str] = {}
    with ThreadPoolExecutor(max_workers=8) as pool:
        for count, (path, header) in enumerate(zip(paths, pool.map(_header, paths), strict=True)):
            found[path] = header
            if progress is not None:
                progress(count + 1, len(paths))
    return found


def _header(path: str) -> Header | str:
    try:
        with Sound(path) as sound:
            samples = sound.samples()
            return (sound.rate, samples) if samples > 0 else "holds no samples"
    except AudioError as error:
        return reason_in(error, path)


def _utterance(entry: Entry, rate: int, samples: int) -> Utterance:
    first, last = entry.start, entry.end
    if entry.cut is not None:
        stretch = entry.cut.samples(rate, samples)
        if stretch is not None:
            first, last = stretch
    start, end = first or 0, last if last is not None else samples
    identity = str(entry.path)
    if first is not None or last is not None:
        identity += f"[{start}:{end}]"
    if entry.channels:
        identity += f"[channel {', '.join(map(str, entry.channels))}]"
    return Utterance(
        path=str(entry.path),
        start=first,
        end=last,
        sampling_rate=rate,
        seconds=max(0, end - start) / rate,
        identity=identity,
        channels=entry.channels,
        speaker=entry.speaker,
    )
