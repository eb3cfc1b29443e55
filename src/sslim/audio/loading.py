"""Decoding: any format libsndfile reads, any rate, any channel count -> 16 kHz mono float32."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import psutil
import soundfile
import soxr

from sslim.audio.manifest import Utterance
from sslim.errors import AudioError
from sslim.plan import SAMPLING_RATE

LOSSY = ("OGG", "MP3")
"""Containers whose codecs cannot be cut exactly by seeking: Opus needs a while to warm up."""

CACHE_BYTES = min(2**30, psutil.virtual_memory().total // 16)
"""Decoded lossy files kept per process: decoding a file of a hundred words again for each word would cost
more than the training it feeds."""

SILENCE = 1e-5
"""A waveform that never exceeds this amplitude (-100 dB of full scale) is silent."""


class _Decoded:
    """The most recently used packed files of a lossy codec, decoded, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.files: OrderedDict[str, np.ndarray] = OrderedDict()

    def get(self, path: str) -> np.ndarray:
        if path in self.files:
            self.files.move_to_end(path)
            return self.files[path]
        samples = _decode(path)
        if samples.nbytes <= self.limit:
            self.files[path] = samples
            self.held += samples.nbytes
            while self.held > self.limit:
                _, oldest = self.files.popitem(last=False)
                self.held -= oldest.nbytes
        return samples


_decoded = _Decoded(CACHE_BYTES)


def _stretch(path: str, start: int | None, end: int | None) -> np.ndarray:
    """Samples `start` to `end` of a file, channels averaged, at its own rate."""
    if start is None and end is None:
        return _decode(path)
    if path not in _decoded.files:
        try:
            with soundfile.SoundFile(path) as file:
                exact = file.format not in LOSSY
        except (OSError, RuntimeError):
            exact = False  # decoding will say what is wrong with it
        if exact:
            return _decode(path, start or 0, end)
    return _decoded.get(path)[start:end]


def _decode(path: str, start: int = 0, end: int | None = None) -> np.ndarray:
    try:
        samples, _ = soundfile.read(path, start=start, stop=end, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:  # LibsndfileError is a RuntimeError
        raise AudioError(
            f"{path} cannot be decoded: {reason_of(error)}", "repair or remove it"
        ) from error
    mono: np.ndarray = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    return np.ascontiguousarray(mono)


def reason_of(error: Exception) -> str:
    """libsndfile's own words, without the path it repeats."""
    text = str(getattr(error, "error_string", "") or getattr(error, "strerror", "") or error)
    return text.split(": ", 1)[-1].strip().rstrip(".") or type(error).__name__


def load_audio(utterance: Utterance, sampling_rate: int = SAMPLING_RATE) -> np.ndarray:
    """The utterance as a float32 mono waveform, (samples,), at `sampling_rate` Hz.

    Raises:
        AudioError: the file is gone, cannot be decoded, ends before the utterance does, or holds
            values that are not numbers, or nothing but silence.
    """
    samples = _stretch(utterance.path, utterance.start, utterance.end)
    expected = utterance.seconds * utterance.sampling_rate
    # MP3 headers are estimates; a twentieth missing is a file cut short.
    if len(samples) < 0.95 * expected:
        raise AudioError(
            f"{utterance.identity} is truncated: {len(samples) / utterance.sampling_rate:.2f} s of "
            f"{utterance.seconds:.2f} s can be decoded",
            "copy the file again, or remove it",
        )
    problem = problem_of(samples)
    if problem:
        raise AudioError(f"{utterance.identity} {problem}", "remove it from the source")
    if utterance.sampling_rate != sampling_rate:
        samples = soxr.resample(samples, utterance.sampling_rate, sampling_rate)
    return np.ascontiguousarray(samples, dtype=np.float32)


def problem_of(samples: np.ndarray) -> str:
    """What makes a waveform useless, or an empty string."""
    if len(samples) == 0:
        return "is empty"
    peak = float(np.abs(samples).max())
    if not np.isfinite(peak):
        return "holds values that are not finite numbers (NaN or infinity)"
    return "is silent" if peak < SILENCE else ""
