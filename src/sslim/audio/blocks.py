"""Audio of any length in bounded memory: a file as a stream of blocks at 16 kHz."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from sslim.audio.loading import reason_of
from sslim.errors import AudioError
from sslim.plan import SAMPLING_RATE


def read_blocks(path: str | Path, *, seconds: float = 10.0) -> Iterator[np.ndarray]:
    """Decodes, averages channels and resamples as it reads.

    Args:
        path: any file that libsndfile reads.
        seconds: of one block.

    Yields:
        (samples,) float32 at 16 kHz.

    Raises:
        AudioError: the file cannot be decoded, or holds NaN or infinity; the message says where.
    """
    done = 0
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            resampler = (
                None
                if rate == SAMPLING_RATE
                else soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32")
            )
            size = round(seconds * rate)
            while True:
                block = file.read(size, dtype="float32", always_2d=True)
                mono = np.ascontiguousarray(
                    block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
                )
                if not np.isfinite(mono).all():
                    raise AudioError(
                        f"{path} holds NaN or infinity near {done / rate:.1f} s",
                        "repair or drop it",
                    )
                last = len(block) < size
                if resampler is not None:
                    mono = resampler.resample_chunk(mono, last=last)
                if len(mono):
                    yield mono
                done += len(block)
                if last:
                    break
    except (OSError, RuntimeError) as error:
        raise AudioError(
            f"{path} cannot be decoded: {reason_of(error)}", "repair or drop it"
        ) from error


def duration(path: str | Path) -> float:
    """Seconds, as the file's header says; 0 where it cannot be read."""
    try:
        return float(soundfile.info(str(path)).duration)
    except (OSError, RuntimeError):
        return 0.0
