"""Audio of any length in bounded memory: a file as a stream of blocks at 16 kHz."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soxr

from sslim.audio.sound import Examiner, Sound, told
from sslim.errors import AudioError
from sslim.plan import SAMPLING_RATE


def read_blocks(path: str | Path, *, seconds: float = 10.0) -> Iterator[np.ndarray]:
    """Decodes, averages channels and resamples as it reads.

    Args:
        path: any file that libsndfile reads.
        seconds: of one block, about.

    Yields:
        (samples,) float32 at 16 kHz.

    Raises:
        AudioError: whatever `load_audio` refuses the file for. What only its end shows (it is cut short, or
            silent all along) is said after its last block.
    """
    with Sound(str(path)) as sound:
        examiner = Examiner(str(path), sound.rate)
        resampler = None
        if sound.rate != SAMPLING_RATE:
            with told(str(path), "cannot be resampled"):
                resampler = soxr.ResampleStream(sound.rate, SAMPLING_RATE, 1, dtype="float32")
        for block in _regrouped(sound.blocks(), max(1, round(seconds * sound.rate))):
            examiner.look(block)
            if resampler is None:
                yield block
            elif len(mono := resampler.resample_chunk(block)):
                yield mono
        examiner.finish(sound.promised or 0)
        if resampler is not None:
            mono = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            if len(mono):
                yield mono


def _regrouped(blocks: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in blocks of `size`; the last may be shorter."""
    held: list[np.ndarray] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        if count < size:
            continue
        joined = np.concatenate(held)
        whole = count - count % size
        yield from np.split(joined[:whole], range(size, whole, size))
        held, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(held)


def duration(path: str | Path) -> float:
    """Seconds, as the file's header says; 0 where it cannot be read."""
    try:
        with Sound(str(path)) as sound:
            return (sound.promised or 0) / sound.rate
    except AudioError:
        return 0.0
