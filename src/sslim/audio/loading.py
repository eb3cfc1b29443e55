"""Decoding: any format libsndfile reads, any rate, any channel count -> 16 kHz mono float32.

Of a file whose codec allows it, only what is asked for is read; of the others, all that comes before it is
decoded and dropped. The samples are the same either way, so what is heard never depends on how it was read.
"""

from __future__ import annotations

import math
import random
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import psutil
import soxr

from sslim.audio.manifest import Utterance
from sslim.audio.sound import SILENCE, Examiner, Sound, told
from sslim.errors import AudioError
from sslim.plan import SAMPLING_RATE

CACHE_BYTES = min(2**30, psutil.virtual_memory().total // 16)
"""Decoded packed files of codecs that cannot be read from the middle, kept per process: decoding a file of a
hundred words again for each word would cost more than the training it feeds."""

PACKED_SECONDS = 60.0
"""A file of such a codec that is longer than this is kept even where it is one utterance."""

MOST_SAMPLES = 2**28
"""Of one channel, held at once: 1 GiB of float32, 4.6 hours at 16 kHz."""

MARGIN_SECONDS = 0.1
"""On both sides of a crop before it is resampled: longer than the resampler's filter at any rate."""


class _Decoded:
    """The most recently used of the files that cannot be read from the middle, up to a number of bytes.

    Threads may share it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.files: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str) -> np.ndarray | None:
        with self._lock:
            samples = self.files.get(path)
            if samples is not None:
                self.files.move_to_end(path)
            return samples

    def put(self, path: str, samples: np.ndarray) -> None:
        with self._lock:
            if path in self.files or samples.nbytes > self.limit:
                return
            self.files[path] = samples
            self.held += samples.nbytes
            while self.held > self.limit:
                _, oldest = self.files.popitem(last=False)
                self.held -= oldest.nbytes


_decoded = _Decoded(CACHE_BYTES)


def load_audio(utterance: Utterance, sampling_rate: int = SAMPLING_RATE) -> np.ndarray:
    """The utterance as a float32 mono waveform, (samples,), at `sampling_rate` Hz.

    Raises:
        AudioError: the file is gone, is no regular file, cannot be decoded, has another rate than when it
            was looked at, ends before the utterance does, is too long to be held at once, or holds values
            that are no amplitudes, or nothing but silence.
    """
    rate, name = utterance.sampling_rate, utterance.identity
    samples = _stretch(utterance, utterance.start or 0, utterance.end)
    return resampled(
        examined(samples, rate, utterance.seconds * rate, name), rate, sampling_rate, name
    )


def load_crop(utterance: Utterance, length: int, seed: str) -> np.ndarray:
    """`length` samples at 16 kHz of an utterance, (length,) float32, from a place drawn from `seed`.

    They are what `crop` takes from the whole utterance, up to the rounding of the resampler, but only they
    are decoded and resampled.

    Raises:
        AudioError: as `load_audio`, as far as the crop shows it.
    """
    rate = utterance.sampling_rate
    place = place_of(round(utterance.seconds * rate), rate, length, seed)
    if place is None:
        return crop(load_audio(utterance), length, seed)
    offset = utterance.start or 0
    samples = _stretch(utterance, offset + place.begin, offset + place.stop)
    if len(samples) < place.stop - place.begin:
        # Less than the header promised: how much less decides what is done.
        return crop(load_audio(utterance), length, seed)
    examiner = Examiner(utterance.identity, rate)
    examiner.look(samples)
    if examiner.peak < SILENCE:
        _refuse_silence(utterance)
    return resampled(samples, rate, SAMPLING_RATE, utterance.identity)[
        place.skip : place.skip + length
    ]


@dataclass(frozen=True)
class Place:
    """Where a crop lies in audio of another rate."""

    begin: int
    stop: int
    """Samples `begin` to `stop`, at the audio's own rate, are resampled;"""
    skip: int
    """the crop begins after this many samples at 16 kHz."""


def place_of(samples: int, rate: int, length: int, seed: str) -> Place | None:
    """The crop of `length` samples at 16 kHz that `seed` draws from `samples` at `rate` Hz; None: all.

    The resampler's output meets its input every `step` samples; a piece that begins there, a margin before
    the crop, gives what the whole would give.
    """
    shared = math.gcd(rate, SAMPLING_RATE)
    step, each = rate // shared, SAMPLING_RATE // shared
    margin = 0 if rate == SAMPLING_RATE else round(MARGIN_SECONDS * rate)
    total = samples * SAMPLING_RATE // rate
    if total <= length:
        return None
    first = random.Random(seed).randint(0, total - length)
    begin = max(0, first * rate // SAMPLING_RATE - margin) // step
    stop = min(samples, -(-(first + length) * rate // SAMPLING_RATE) + margin)
    return Place(begin * step, stop, first - begin * each)


def crop(waveform: np.ndarray, length: int, seed: str) -> np.ndarray:
    """`length` samples of a waveform, from a place drawn from `seed`.

    A file may fall a little short of what its header promised (resampling, an MP3's estimate); its end is
    then reflected, so that the length of a batch is known before anything is decoded.
    """
    if len(waveform) < length:
        return np.pad(waveform, (0, length - len(waveform)), mode="reflect")
    start = random.Random(seed).randint(0, len(waveform) - length)
    return waveform[start : start + length]


def check_audio(utterance: Utterance) -> None:
    """Decodes an utterance of any length in bounded memory.

    Raises:
        AudioError: `load_audio` would refuse it for what it holds.
    """
    examiner = Examiner(utterance.identity, utterance.sampling_rate)
    kept = _kept(utterance)
    if kept is not None:
        examiner.look(kept[utterance.start or 0 : utterance.end])
    else:
        with _opened(utterance) as sound:
            for block in sound.blocks(utterance.start or 0, utterance.end, utterance.channels):
                examiner.look(block)
    examiner.finish(utterance.seconds * utterance.sampling_rate)


def _refuse_silence(utterance: Utterance) -> None:
    """A pause may be heard; an utterance of nothing else is an error, as if it had been loaded whole."""
    examiner = Examiner(utterance.identity, utterance.sampling_rate)
    with _opened(utterance) as sound:
        for block in sound.blocks(utterance.start or 0, utterance.end, utterance.channels):
            examiner.look(block)
            if examiner.peak >= SILENCE:
                return
    examiner.finish()


def _opened(utterance: Utterance) -> Sound:
    sound = Sound(utterance.path)
    if sound.rate != utterance.sampling_rate:
        sound.close()
        raise AudioError(
            f"{utterance.path} has {sound.rate:,} Hz now, and had {utterance.sampling_rate:,} Hz when it "
            "was looked at",
            "leave the audio alone while it is used",
        )
    return sound


def _stretch(utterance: Utterance, start: int, end: int | None) -> np.ndarray:
    """Samples `start` to `end` of its file, channels averaged, at its own rate."""
    kept = _kept(utterance)
    if kept is not None:
        return kept[start:end]
    with _opened(utterance) as sound:
        return read_all(sound, start, end, utterance.channels)


def _kept(utterance: Utterance) -> np.ndarray | None:
    """All of its file, channels averaged; None where it is not worth keeping once it is decoded."""
    part = utterance.start is not None or utterance.end is not None
    if utterance.channels or not (part or utterance.seconds > PACKED_SECONDS):
        return None
    samples = _decoded.get(utterance.path)
    if samples is None:
        with _opened(utterance) as sound:
            if sound.exact or (sound.promised or MOST_SAMPLES) * 4 > _decoded.limit:
                return None
            samples = read_all(sound, 0, None, ())
        _decoded.put(utterance.path, samples)
    return samples


def read_all(sound: Sound, start: int, end: int | None, channels: tuple[int, ...]) -> np.ndarray:
    """Samples `start` to `end` at the sound's own rate, channels averaged, as far as they are there.

    Raises:
        AudioError: they cannot be decoded, or are too many to be held at once.
    """
    pieces: list[np.ndarray] = []
    held = 0
    for block in sound.blocks(start, end, channels):
        held += len(block)
        if held > MOST_SAMPLES:
            raise AudioError(
                f"{sound.name} has more than {MOST_SAMPLES / sound.rate / 3600:.1f} h in one piece, which is "
                "the most that is decoded at once",
                "cut it into utterances, with a CSV of path, start and end, say",
            )
        pieces.append(block)
    with told(sound.name, "cannot be decoded"):
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def examined(samples: np.ndarray, rate: int, expected: float, name: str) -> np.ndarray:
    """A whole waveform, (samples,) at `rate` Hz, that can be used.

    Raises:
        AudioError: it holds what is no amplitude, is empty or silent, or far shorter than `expected` samples.
    """
    examiner = Examiner(name, rate)
    examiner.look(samples)
    examiner.finish(expected)
    return samples


def resampled(samples: np.ndarray, rate: int, wanted: int, name: str) -> np.ndarray:
    """A waveform at another rate, (samples,) float32."""
    with told(name, "cannot be resampled"):
        if rate != wanted:
            samples = soxr.resample(samples, rate, wanted)
        return np.ascontiguousarray(samples, dtype=np.float32)
