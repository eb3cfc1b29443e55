"""One sound, in a file or in memory, read piece by piece: whatever its header promises, only what is there
and what is asked for takes memory."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Callable, Iterator
from types import TracebackType

import numpy as np
import soundfile

from sslim.audio.opening import open_regular
from sslim.errors import AudioError, first_line

EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
"""Names of files that are taken for audio where nobody named each of them."""

RATES = (4_000, 384_000)
"""Sampling rates in Hz that are read. A file of 64 kB at 1 Hz would become hours of audio."""

MOST_CHANNELS = 64

LONGEST_HOURS = 48
"""Of one file."""

SAMPLES_PER_BYTE = 8192
"""More than any codec packs into a byte (FLAC: 65,535 equal samples in 11 bytes)."""

EXACT = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "ALAC_")
"""Codecs whose samples are the same after a seek. The others (Vorbis, Opus, MP3) carry a state from packet to
packet, and libsndfile's seeks in Vorbis sometimes land elsewhere: they are decoded from their beginning."""

SILENCE = 1e-4
"""A waveform that never exceeds this amplitude (-80 dB of full scale, three steps of 16 bits) is silent."""

LOUDEST = 100.0
"""Amplitudes above this are no waveform with a full scale of 1."""

COMPLETE = 0.95
"""Share of what its header promises that a file must hold: an MP3's header is an estimate."""

_BLOCK = 2**16
_UNKNOWN = 2**62
"""libsndfile gives its largest number where a header leaves the length open, as FLAC's may."""
_ENDED_EARLY = 39
"""libsndfile's error for a FLAC file that ends before its header says, or whose header does not say."""
_OPEN_LENGTHS = 0x7FFF0000
"""A WAV file written to a pipe has such a length of data, or a greater one, for want of the true one."""

Failures = (OSError, RuntimeError, ValueError, OverflowError, MemoryError, EOFError)
"""What damaged and lying files make libsndfile, numpy and soxr raise; LibsndfileError is a RuntimeError."""


class Sound:
    """A sound, open for reading; a context manager.

    Args:
        source: path of a regular file, or a file's bytes.
        name: for messages.

    Raises:
        AudioError: it cannot be opened or its header cannot be believed; the problem begins with `name`.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, name: str = "") -> None:
        self.name = name or (os.fspath(source) if not isinstance(source, bytes) else "the sound")
        self._descriptor: int | None = None
        self._file: soundfile.SoundFile | None = None
        self._place = 0
        try:
            with told(self.name, "cannot be read"):
                self._open(source)
        except BaseException:
            self.close()
            raise

    def _open(self, source: str | os.PathLike[str] | bytes) -> None:
        if isinstance(source, bytes):
            data, size = source, len(source)

            def read_at(place: int, count: int) -> bytes:
                return data[place : place + count]

            self._file = soundfile.SoundFile(io.BytesIO(data))
        else:
            descriptor = self._descriptor = open_regular(source)
            size = os.fstat(descriptor).st_size
            if size == 0:
                self._refuse("is an empty file")

            def read_at(place: int, count: int) -> bytes:
                return os.pread(descriptor, count, place)

            self._file = soundfile.SoundFile(descriptor, closefd=False)
        file = self._file
        self.rate: int = file.samplerate
        """In Hz."""
        self.channels: int = file.channels
        self.exact: bool = file.subtype.startswith(EXACT)
        """Whether reading from the middle gives what reading from the beginning does."""
        if not RATES[0] <= self.rate <= RATES[1]:
            low, high = RATES
            self._refuse(
                f"has a sampling rate of {self.rate:,} Hz, and rates from {low:,} to {high:,} Hz are read"
            )
        if self.channels > MOST_CHANNELS:
            self._refuse(f"has {self.channels} channels, and up to {MOST_CHANNELS} are read")
        self.promised: int | None = None if file.frames >= _UNKNOWN else file.frames
        """Samples per channel, as its header says; None where it leaves that open."""
        if self.promised is not None:
            hours = self.promised / self.rate / 3600
            if self.promised > size * SAMPLES_PER_BYTE:
                self._refuse(
                    f"is truncated: its header promises {hours:,.2f} h, which {size:,} bytes cannot hold"
                )
            if hours > LONGEST_HOURS:
                self._refuse(f"has {hours:,.0f} h, and up to {LONGEST_HOURS} h are read")
        there, said = _lengths_of_data(read_at, size)
        if there < COMPLETE * said:
            self._refuse(f"is truncated: {max(0, there):,} of {said:,} bytes of samples are there")

    def _refuse(self, reason: str) -> None:
        raise AudioError(f"{self.name} {reason}", "repair or remove it")

    def samples(self) -> int:
        """Samples per channel; a file whose header leaves this open is decoded to find out, and is then at
        its end.

        Raises:
            AudioError: it cannot be decoded.
        """
        if self.promised is None:
            self.promised = sum(len(block) for block in self.blocks())
        return self.promised

    def blocks(
        self, start: int = 0, end: int | None = None, channels: tuple[int, ...] = ()
    ) -> Iterator[np.ndarray]:
        """Samples `start` to `end` at the sound's own rate, as far as they are there.

        Call it once: it reads on from where it is.

        Args:
            start: first sample.
            end: sample after the last; None: to the end.
            channels: that are averaged; empty: all.

        Yields:
            (up to 65,536,) float32.

        Raises:
            AudioError: it cannot be decoded, or lacks one of `channels`.
        """
        if channels and max(channels) >= self.channels:
            self._refuse(f"has no channel {max(channels)}: it has {self.channels}")
        most = LONGEST_HOURS * 3600 * self.rate
        if self.promised is not None:
            most = min(most, self.promised)
        stop = most if end is None else min(end, most)
        if self.exact and start < stop:
            with told(self.name, "cannot be decoded"):
                assert self._file is not None
                self._file.seek(start)
                self._place = start
        while self._place < stop:
            # The others are read in the same pieces whatever is wanted: MP3's last bit depends on them.
            wanted = min(_BLOCK, (stop if self.exact else most) - self._place)
            with told(self.name, "cannot be decoded"):
                block = self._read(wanted)
                mono = _mono(block[max(0, start - self._place) : stop - self._place], channels)
            self._place += len(block)
            if len(mono):
                yield mono
            if len(block) < wanted:
                return

    def _read(self, count: int) -> np.ndarray:
        """Up to `count` samples, (samples, channels); fewer only at the end."""
        assert self._file is not None
        block = np.full((count, self.channels), np.nan, dtype=np.float32)
        try:
            return self._file.read(out=block)
        except soundfile.LibsndfileError as error:
            # The samples before the end are there, but not their number; FLAC has no NaN.
            if error.code != _ENDED_EARLY or self._file.format != "FLAC":
                raise
            return block[: int(np.isfinite(block[:, 0]).sum())]

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Sound:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Examiner:
    """Looks at a waveform as it passes by: whether it can be used.

    Args:
        name: for messages.
        rate: of the waveform, in Hz.
    """

    def __init__(self, name: str, rate: int) -> None:
        self.name = name
        self.rate = rate
        self.samples = 0
        self.peak = 0.0

    def look(self, block: np.ndarray) -> None:
        """The next piece.

        Raises:
            AudioError: it holds what is no amplitude; the message says where.
        """
        peak = float(np.abs(block).max()) if len(block) else 0.0
        if not peak <= LOUDEST:
            near = f"near {self.samples / self.rate:.1f} s"
            reason = (
                f"has amplitudes of {peak:.3g} {near}, where full scale is 1"
                if np.isfinite(peak)
                else f"holds NaN or infinity {near}: values that are not finite numbers"
            )
            raise AudioError(f"{self.name} {reason}", "repair or remove it")
        self.samples += len(block)
        self.peak = max(self.peak, peak)

    def finish(self, expected: float = 0.0) -> None:
        """All has passed.

        Args:
            expected: samples that were promised.

        Raises:
            AudioError: it is empty, silent, or a good deal shorter than promised.
        """
        if self.samples < COMPLETE * expected:
            raise AudioError(
                f"{self.name} is truncated: {self.samples / self.rate:.2f} s of "
                f"{expected / self.rate:.2f} s can be decoded",
                "copy the file again, or remove it",
            )
        reason = "is empty" if self.samples == 0 else "is silent" if self.peak < SILENCE else ""
        if reason:
            raise AudioError(f"{self.name} {reason}", "remove it from the source")


@contextlib.contextmanager
def told(name: str, what: str) -> Iterator[None]:
    """Whatever a damaged or lying file raises, as an AudioError: `name` `what`: the reason."""
    try:
        yield
    except Failures as error:
        raise AudioError(f"{name} {what}: {reason_of(error)}", "repair or remove it") from error


def reason_of(error: BaseException) -> str:
    """libsndfile's own words, without the path it repeats."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    said = str(getattr(error, "error_string", "") or first_line(error))
    text = said.split(": ", 1)[-1].strip().rstrip(".")
    return first_line(ValueError(text)) if text else type(error).__name__


def reason_in(error: AudioError, name: str) -> str:
    """The problem without the name that it begins with."""
    return error.problem.removeprefix(name).strip()


def _mono(block: np.ndarray, channels: tuple[int, ...]) -> np.ndarray:
    if channels:
        block = block[:, list(channels)]
    mono: np.ndarray = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    return np.ascontiguousarray(mono)


def _lengths_of_data(read_at: Callable[[int, int], bytes], size: int) -> tuple[int, int]:
    """Bytes of a WAV or AIFF file's samples that are there and that it promises; (0, 0): it does not say.

    libsndfile takes what is there of a file that was cut short, and mends its length in silence.
    """
    head = read_at(0, 12)
    order, wanted = {
        b"RIFFWAVE": ("<", b"data"),
        b"RF64WAVE": ("<", b"data"),
        b"RIFXWAVE": (">", b"data"),
        b"FORMAIFF": (">", b"SSND"),
        b"FORMAIFC": (">", b"SSND"),
    }.get(head[:4] + head[8:12], ("", b""))
    place, long = 12, 0
    for _ in range(1000):  # chunks before the samples; more are no audio file
        chunk = read_at(place, 24)
        if not wanted or len(chunk) < 8:
            break
        name, length = chunk[:4], struct.unpack(f"{order}I", chunk[4:8])[0]
        if name == b"ds64" and len(chunk) == 24:
            long = struct.unpack(f"{order}Q", chunk[16:24])[0]
        if name == wanted:
            if length == 0xFFFFFFFF and long:
                length = long
            elif length >= _OPEN_LENGTHS and length > size:
                break
            return size - place - 8, length
        place += 8 + length + length % 2
    return 0, 0
