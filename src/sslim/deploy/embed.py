"""Features of whole recordings, however long: read, cut, computed and written piece by piece."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sslim.audio.blocks import read_blocks
from sslim.audio.sources import find_files
from sslim.deploy.extractor import Extractor, open_extractor
from sslim.deploy.stores import Partial, check_format
from sslim.deploy.streaming import Chunking, chunking_error, features
from sslim.errors import AudioError, ConfigError, OutputError
from sslim.files import write_json
from sslim.plan import SAMPLING_RATE

COMPARED_SECONDS = 60.0
"""Of the first long recording, on which chunked and whole features are compared."""
SUMMARY = "embed.json"
DEFAULT = Chunking()


@dataclass
class Embedded:
    """What was written."""

    out: Path
    files: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """A sentence per recording that could not be used."""
    error: dict[str, Any] | None = None
    """What chunking changed, see `chunking_error`; None: nothing was long enough to be cut."""


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
        resume: go on with what is in `out`.
        say: told what is going on.
        progress: called with a recording and the seconds of it that are done.

    Raises:
        ConfigError: a setting is wrong, or differs from those of the run to go on with.
        AudioError: there is no audio.
        OutputError: `out` holds something already (and `resume` is not given).
    """
    check_format(format)
    if batch < 1:
        raise ConfigError(f"the batch is {batch}", "give at least 1")
    out = Path(out)
    recordings = find_files(audio)
    extractor = open_extractor(model, layer)
    frames = chunking.frames(extractor.hop)
    settings = {
        "fingerprint": extractor.fingerprint,
        "layer": layer,
        "format": format,
        "chunk_left_right_frames": list(frames),
    }
    _prepare(out, settings, resume)
    done = Embedded(out)
    earlier = _known(out)
    for recording, name in recordings:
        target = out / f"{name}.{format}"
        if target.exists():
            say(f"{target.name} is there already")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if done.error is None:
                done.error = _compare(extractor, recording, chunking, frames)
                if done.error is not None:
                    say(
                        f"cut against whole on {done.error['seconds']:.0f} s of {recording.name}: cosine "
                        f"{done.error['cosine']:.5f} (worst frame {done.error['worst_cosine']:.4f}), "
                        f"relative error {done.error['relative_error']:.3f}"
                    )
            done.files.append(
                _one(extractor, recording, target, chunking, batch, frames[0], progress)
            )
            # After each recording: an interrupted run must not forget those that are finished.
            facts = {"files": earlier + done.files, "chunking_error": done.error}
            write_json(out / SUMMARY, settings | facts)
        except AudioError as error:
            done.failed.append(str(error))
            say(f"skipped: {error}")
        except OSError as error:
            raise OutputError(
                f"cannot write {target}: {error.strerror or error}",
                "free space, then run the same command with --resume",
            ) from error
    return done


def _prepare(out: Path, settings: dict[str, Any], resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file", "name a folder")
    if out.exists() and any(out.iterdir()):
        if not resume:
            raise OutputError(f"{out} is not empty", "use --resume to go on, or another folder")
        try:
            earlier = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{out} holds something, but not a run of sslim embed", "name another folder"
            ) from error
        for key, value in settings.items():
            if earlier.get(key) != value:
                raise ConfigError(
                    f"{key} is {value}, the run in {out} has {earlier.get(key)}",
                    "give the same settings, or another folder",
                )
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / SUMMARY, settings | {"files": []})
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {error.strerror or error}", "choose another folder"
        ) from error


def _known(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / SUMMARY).read_text(encoding="utf-8"))["files"]
    return found


def _compare(
    extractor: Extractor, recording: Path, chunking: Chunking, frames: tuple[int, int, int]
) -> dict[str, Any] | None:
    held: list[np.ndarray] = []
    seconds = 0.0
    for block in read_blocks(recording):
        held.append(block)
        seconds += len(block) / SAMPLING_RATE
        if seconds >= COMPARED_SECONDS:
            break
    waveform = np.concatenate(held) if held else np.zeros(0, np.float32)
    waveform = waveform[: round(COMPARED_SECONDS * SAMPLING_RATE)]
    if len(waveform) < (frames[0] + frames[2]) * extractor.hop + extractor.receptive_field:
        return None
    return chunking_error(extractor, waveform, chunking)


def _one(
    extractor: Extractor,
    recording: Path,
    target: Path,
    chunking: Chunking,
    batch: int,
    chunk: int,
    progress: Callable[[Path, float], None],
) -> dict[str, Any]:
    path = target.with_name(f".{target.name}.partial")
    heard = [0]

    def counted(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            heard[0] += len(block)
            progress(recording, heard[0] / SAMPLING_RATE)
            yield block

    shape = extractor.extract([np.zeros(extractor.receptive_field, np.float32)])[0].shape[1:]
    partial = Partial(path, shape, chunk)
    blocks = counted(_ahead(read_blocks(recording)))
    for piece in features(extractor, blocks, chunking, batch=batch, first=partial.frames):
        partial.append(piece)
    if not partial.frames:
        raise AudioError(
            f"{recording} has {heard[0]} samples, which is too short for one frame",
            f"give at least {extractor.receptive_field} samples",
        )
    frames = partial.frames
    about = {
        "sampling_rate": str(SAMPLING_RATE),
        "hop": str(extractor.hop),
        "model": extractor.fingerprint,
    }
    partial.finish(target, about)
    seconds = heard[0] / SAMPLING_RATE
    return {"audio": str(recording), "file": target.name, "frames": frames, "seconds": seconds}


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
