"""Features of whole recordings, however long: read, cut, computed and written piece by piece."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sslim.audio.blocks import read_blocks
from sslim.audio.discovery import find_files
from sslim.deploy.extractor import Extractor, open_extractor
from sslim.deploy.outputs import cannot_write, kind_of
from sslim.deploy.signals import refuse_pipes
from sslim.deploy.stores import Partial, check_format
from sslim.deploy.streaming import Chunking, ChunkingError, chunking_error, features
from sslim.errors import AudioError, ConfigError, OutputError, first_line
from sslim.files import FolderLock
from sslim.identity import COMPUTATION, content_of, digest
from sslim.plan import SAMPLING_RATE
from sslim.records import Record

COMPARED_SECONDS = 60.0
"""Of the first long recording, on which chunked and whole features are compared."""
SUMMARY = "embed.json"
SETTINGS = (
    "computation",
    "fingerprint",
    "model_fingerprint",
    "layer",
    "format",
    "chunk_left_right_frames",
)
"""What must be the same where a run is gone on with."""
LOCK = ".embed.lock"
WORK = ".embed.partial"
"""Folder of the recording that is being computed; it goes when all are done."""
WRITTEN_EVERY = 5.0
"""Seconds between two writings of the summary: a recording that it does not name is computed again."""
LARGEST_BATCH = 1024
NO_MEMORY = re.compile("bad_alloc|allocate memory|out of memory|Failed to allocate", re.IGNORECASE)
"""How torch and onnxruntime say it; their errors have no kind of their own."""
DEFAULT = Chunking()


@dataclass(frozen=True)
class EmbeddedFile:
    """A recording whose features are written."""

    audio: str
    """Absolute path of the recording."""
    content: str
    """Its identity."""
    file: str
    """Of the features, relative to the folder."""
    frames: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EmbedSummary(Record):
    """`embed.json`: with what features were computed, and of which recordings. A resume wants the same."""

    KIND: ClassVar[str] = "embed"
    TITLE: ClassVar[str] = "the summary of a run of sslim embed"

    computation: int
    fingerprint: str
    model_fingerprint: str
    layer: str
    format: str
    chunk_left_right_frames: tuple[int, int, int]
    files: tuple[EmbeddedFile, ...] = ()
    chunking_error: ChunkingError | None = None


@dataclass
class Embedded:
    """What was written."""

    out: Path
    files: list[EmbeddedFile] = field(default_factory=list)
    """Of this run; `embed.json` has those of earlier ones, too."""
    failed: list[str] = field(default_factory=list)
    """A sentence per recording that could not be used."""
    error: ChunkingError | None = None
    """What chunking changed; None: nothing was long enough to be cut."""


def embed(
    model: str | Path,
    audio: str | Path,
    out: str | Path,
    *,
    format: str = "npz",
    layer: str = "last",
    chunking: Chunking = DEFAULT,
    batch: int = 4,
    resume: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[Path, float], None] = lambda name, seconds: None,
) -> Embedded:
    """Writes features of every recording in `audio` into the folder `out`.

    Args:
        model: a folder, hub id or exported `.onnx` file.
        audio: one file, a folder, or a list of files.
        out: a folder; one file per recording, `embed.json` with what was done.
        format: `npz`, `safetensors` or `parquet`; `features` is (frames, width) float32, for all layers
            (frames, layers, width).
        layer: `last`, a number, or `all`.
        chunking: how recordings are cut.
        batch: chunks that are computed at once.
        resume: go on with what is in `out`; a recording whose contents changed is computed again.
        say: told what is going on.
        progress: called with a recording and the seconds of it that are done.

    Raises:
        ConfigError: a setting is wrong, or differs from those of the run to go on with.
        AudioError: there is no audio.
        OutputError: `out` holds something already (and `resume` is not given), belongs to other recordings,
            or cannot be written.
    """
    check_format(format)
    if not 1 <= batch <= LARGEST_BATCH:
        raise ConfigError(f"the batch is {batch}", f"give a number from 1 to {LARGEST_BATCH}")
    out = Path(out)
    refuse_pipes(audio)
    recordings = find_files(audio)
    extractor = open_extractor(model, layer)
    frames = chunking.frames(extractor.model.hop)
    settings = EmbedSummary(
        computation=COMPUTATION,
        fingerprint=extractor.model.fingerprint,
        model_fingerprint=extractor.model.model_fingerprint,
        layer=layer,
        format=format,
        chunk_left_right_frames=frames,
    )
    _refuse_others(out, resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FolderLock(out / LOCK, "embedding into"):
            summary = _Summary(out, settings, resume)
            done = Embedded(out, error=summary.error)
            try:
                for recording, name in recordings:
                    _embed_one(
                        extractor, recording, name, summary, done, chunking, batch, say, progress
                    )
            finally:
                summary.write()
            _remove_work(out)
    except OSError as error:
        raise cannot_write(
            Path(error.filename) if isinstance(error.filename, str) else out,
            error,
            "mend that (free space, another folder), then go on with --resume",
        ) from error
    return done


class _Summary:
    """Keeps `embed.json`: the settings, and what is known of each finished recording.

    Raises:
        ConfigError: `out` belongs to other settings.
        OutputError: it cannot be written, or what is there is no summary.
    """

    def __init__(self, out: Path, settings: EmbedSummary, resume: bool) -> None:
        self.out, self.settings = out, settings
        self.error: ChunkingError | None = None
        self.files: dict[str, EmbeddedFile] = {}
        self._written = time.monotonic()
        if resume and (out / SUMMARY).exists():
            self._read()
        self.write()

    @property
    def identity(self) -> dict[str, Any]:
        """Of the settings, by name."""
        return {key: getattr(self.settings, key) for key in SETTINGS}

    def _read(self) -> None:
        try:
            earlier = EmbedSummary.read(self.out / SUMMARY)
        except OutputError as error:
            raise OutputError(error.problem, f"{error.hint}, or name another folder") from error
        for key in SETTINGS:
            now, before = getattr(self.settings, key), getattr(earlier, key)
            if now != before:
                raise ConfigError(
                    f"{key} is {str(now)[:20]}, the run in {self.out} has {str(before)[:20]}",
                    "give the same model and settings, or another folder",
                )
        self.files = {record.file: record for record in earlier.files}
        self.error = earlier.chunking_error

    def add(self, record: EmbeddedFile, error: ChunkingError | None) -> None:
        """One more finished recording."""
        self.files[record.file], self.error = record, error
        if time.monotonic() - self._written > WRITTEN_EVERY:
            self.write()

    def write(self) -> None:
        """Writes it whole."""
        files = tuple(self.files.values())
        replace(self.settings, files=files, chunking_error=self.error).write(self.out / SUMMARY)
        self._written = time.monotonic()


def _refuse_others(out: Path, resume: bool) -> None:
    """Refuses a folder that is not ours, or that is not to be gone on with."""
    kind = kind_of(out)
    if kind in ("file", "other"):
        raise OutputError(f"{out} is a file", "name a folder")
    try:
        inside = {path.name for path in out.iterdir()} if kind else set()
    except OSError as error:
        raise OutputError(
            f"cannot read {out}: {first_line(error)}", "name another folder"
        ) from error
    if inside <= {LOCK}:
        return
    if not resume:
        raise OutputError(f"{out} is not empty", "use --resume to go on, or another folder")
    if SUMMARY not in inside:
        raise OutputError(
            f"{out} holds something, but not a run of sslim embed", "name another folder"
        )


def _embed_one(
    extractor: Extractor,
    recording: Path,
    name: str,
    summary: _Summary,
    done: Embedded,
    chunking: Chunking,
    batch: int,
    say: Callable[[str], None],
    progress: Callable[[Path, float], None],
) -> None:
    """One recording, unless it is there already; what is wrong with its audio costs it alone."""
    target = summary.out / f"{name}.{summary.settings.format}"
    file, audio = target.relative_to(summary.out).as_posix(), os.path.abspath(recording)
    known = summary.files.get(file)
    try:
        content = _content(recording)
        if known is not None and target.is_file():
            if known.content == content:
                say(f"{file} is there already")
                return
            if known.audio != audio:
                raise OutputError(
                    f"{target} holds features of {known.audio}, not of {audio}",
                    "give the same audio, or another folder",
                )
            say(f"{recording.name} is another recording than before: computed again")
        if done.error is None:
            done.error = _compare(extractor, recording, chunking)
            if done.error is not None:
                say(
                    f"cut against whole on {done.error.seconds:.0f} s of {recording.name}: cosine "
                    f"{done.error.cosine:.5f} (worst frame {done.error.worst_cosine:.4f}), "
                    f"relative error {done.error.relative_error:.3f}"
                )
        identity = digest(summary.identity, content, file)
        frames, seconds = _one(
            extractor, recording, target, identity, summary.out, chunking, batch, progress
        )
        if _content(recording) != content:
            target.unlink()
            raise AudioError(f"{recording} was changed while it was read", "run again")
    except AudioError as error:
        done.failed.append(str(error))
        say(f"skipped: {error}")
        return
    record = EmbeddedFile(audio, content, file, frames, seconds)
    done.files.append(record)
    summary.add(record, done.error)


def _content(recording: Path) -> str:
    """Identity of a recording: its contents (of very long files, pieces all over them)."""
    if not recording.is_file():  # a pipe would wait for ever
        raise AudioError(f"{recording} is no regular file", "repair or drop it")
    try:
        return content_of(recording, whole=False)
    except OSError as error:
        raise AudioError(f"{recording} cannot be read: {first_line(error)}", "repair it") from error


def _remove_work(out: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that holds something else is left alone
        (out / WORK).rmdir()


def _compare(extractor: Extractor, recording: Path, chunking: Chunking) -> ChunkingError | None:
    held: list[np.ndarray] = []
    seconds = 0.0
    for block in read_blocks(recording):
        held.append(block)
        seconds += len(block) / SAMPLING_RATE
        if seconds >= COMPARED_SECONDS:
            break
    waveform = np.concatenate(held) if held else np.zeros(0, np.float32)
    waveform = waveform[: round(COMPARED_SECONDS * SAMPLING_RATE)]
    chunk, _, right = chunking.frames(extractor.model.hop)
    if len(waveform) < (chunk + right) * extractor.model.hop + extractor.model.shortest:
        return None
    try:
        error = chunking_error(extractor, waveform, chunking)
    except AudioError as problem:
        raise AudioError(f"{recording}: {problem.problem}", problem.hint) from problem
    return replace(error, audio=os.path.abspath(recording))


def _one(
    extractor: Extractor,
    recording: Path,
    target: Path,
    identity: str,
    out: Path,
    chunking: Chunking,
    batch: int,
    progress: Callable[[Path, float], None],
) -> tuple[int, float]:
    """Computes a recording, going on from what an interruption left of the same one; frames and seconds."""
    work = out / WORK
    work.mkdir(exist_ok=True)
    path = work / f"{identity[:32]}.frames"
    for other in work.glob("*.frames"):
        if other != path:  # of a recording that was replaced since
            other.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    heard = [0]

    def counted(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            heard[0] += len(block)
            progress(recording, heard[0] / SAMPLING_RATE)
            yield block

    shape = extractor.extract([np.zeros(extractor.model.shortest, np.float32)])[0].shape[1:]
    chunk = chunking.frames(extractor.model.hop)[0]
    partial = Partial(path, shape, chunk)
    blocks = counted(_ahead(read_blocks(recording)))
    try:
        for piece in features(extractor, blocks, chunking, batch=batch, first=partial.frames):
            if not np.isfinite(piece).all():
                at = partial.frames * extractor.model.hop / SAMPLING_RATE
                raise AudioError(
                    f"the features of {recording} are not finite (NaN or infinity) after {at:.1f} s",
                    "check the model's weights and the recording",
                )
            partial.append(piece)
        if not partial.frames:
            raise AudioError(
                f"{recording} has {heard[0]} samples, which is too short for one frame",
                f"give at least {extractor.model.shortest} samples",
            )
    except AudioError:
        path.unlink(missing_ok=True)
        raise
    except Exception as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        raise ConfigError(
            f"not enough memory for {batch} chunk(s) of {chunking.chunk:g} s at once",
            "give a smaller --batch or a shorter --chunk",
        ) from error
    about = {
        "sampling_rate": str(SAMPLING_RATE),
        "hop": str(extractor.model.hop),
        "model": extractor.model.fingerprint,
        "model_fingerprint": extractor.model.model_fingerprint,
    }
    partial.finish(target, about)
    return partial.frames, heard[0] / SAMPLING_RATE


def _ahead(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Decodes the next block while the model works on this one."""
    line: queue.Queue[np.ndarray | BaseException | None] = queue.Queue(maxsize=2)
    stop = threading.Event()

    def read() -> None:
        end: BaseException | None = None
        try:
            for block in blocks:
                if not _put(line, block, stop):
                    return
        except BaseException as error:
            end = error
        _put(line, end, stop)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            item = line.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _put(line: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            line.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
