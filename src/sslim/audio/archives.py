"""Tar files of audio, read in one pass: WebDataset and lhotse Shar.

Nothing is unpacked to disk, and nothing outside the tar file is ever read: links, devices and whatever else a
tar file can name are left out one by one, and of lhotse's cuts only the bytes beside them are heard.
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path

import numpy as np

from sslim.audio.cuts import Cut, check_transforms, columns, parse_line
from sslim.audio.lists import lines_of
from sslim.audio.loading import crop, examined, place_of, read_all, resampled
from sslim.audio.manifest import Skipped
from sslim.audio.opening import open_regular
from sslim.audio.sound import EXTENSIONS, Sound, reason_in, reason_of
from sslim.errors import AudioError
from sslim.plan import SAMPLING_RATE

LARGEST_CLIP = 2**30
"""Bytes of one member that is read."""
LARGEST_HEADER = 2**20
"""Bytes of a tar file's long name or list of attributes."""

_DESCRIBING = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_FAILURES = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    OverflowError,
    MemoryError,
    tarfile.TarError,
    zlib.error,
    LZMAError,
)


@dataclass(frozen=True)
class Clip:
    """A clip in a stream, not decoded yet."""

    identity: str
    """For messages: shard and clip."""
    key: str
    """The same without the folder."""
    data: bytes
    """Of a file of audio."""
    rate: int
    start: int
    end: int
    """Samples `start` to `end`, at its own rate, are heard."""
    channels: tuple[int, ...] = ()
    """That are averaged; empty: all."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end - self.start) / self.rate

    def load(self) -> np.ndarray:
        """All of it, (samples,) float32 at 16 kHz.

        Raises:
            AudioError: it cannot be decoded, or holds what is no waveform.
        """
        samples = self._read(self.start, self.end)
        return resampled(samples, self.rate, SAMPLING_RATE, self.identity)

    def crop(self, length: int, seed: str) -> np.ndarray:
        """`length` samples at 16 kHz from a place drawn from `seed`.

        Raises:
            AudioError: as `load`.
        """
        place = place_of(self.end - self.start, self.rate, length, seed)
        if place is None:
            return crop(self.load(), length, seed)
        # All of it is looked at, so that a clip that is cut short or silent is left out.
        samples = self._read(self.start, self.end)[place.begin : place.stop]
        waveform = resampled(samples, self.rate, SAMPLING_RATE, self.identity)
        return crop(waveform[place.skip :][:length], length, seed)

    def _read(self, start: int, end: int) -> np.ndarray:
        with Sound(self.data, self.identity) as sound:
            samples = read_all(sound, start, end, self.channels)
        return examined(samples, self.rate, end - start, self.identity)


def read_webdataset(shard: dict[str, str]) -> Iterator[Clip | Skipped]:
    """The clips of one tar file."""
    for name, data in _members(shard["audio"]):
        if isinstance(data, Skipped):
            if not name or name.lower().endswith(EXTENSIONS):
                yield data
        elif name.lower().endswith(EXTENSIONS):
            yield _clip(shard["audio"], name, data, None, b"")


def read_shar(shard: dict[str, str]) -> Iterator[Clip | Skipped]:
    """The clips of one Shar shard: for each member of the tar file, the line of the cuts with its name."""
    path, lines = shard["audio"], shard["cuts"]
    cuts: dict[str, list[Cut]] = {}
    refused = False
    try:
        with lines_of(Path(lines)) as text:
            for number, line in enumerate(text, 1):
                if not line.strip():
                    continue
                try:
                    cut = parse_line(line, lines)
                except AudioError as error:
                    refused = True
                    yield Skipped(f"{lines}, line {number}", reason_in(error, lines))
                else:
                    cuts.setdefault(cut.name, []).append(cut)
    except AudioError as error:
        refused = True
        yield Skipped(lines, reason_in(error, lines))
    for name, data, facts in _pairs(path):
        stem, ending = os.path.splitext(name)
        waiting = cuts.get(stem)
        if isinstance(data, Skipped):
            yield data
        elif waiting:
            cut = waiting.pop(0)
            if ending == ".nodata":
                yield Skipped(f"{path}:{stem}", "the shard holds no audio of this cut")
            else:
                yield _clip(path, name, data, cut, facts)
        elif not refused:
            yield Skipped(f"{path}:{name}", f"{lines} has no cut of this name")
    for stem, left in cuts.items():
        if left:
            yield Skipped(f"{path}:{stem}", "the shard holds no audio of this cut")


def _pairs(path: str) -> Iterator[tuple[str, bytes | Skipped, bytes]]:
    """Audio (name, data) and the JSON beside it, which follows it; empty where there is none."""
    held: tuple[str, bytes | Skipped] | None = None
    for name, data in _members(path):
        stem, ending = os.path.splitext(name)
        if ending in (".json", ".nometa"):
            if held is not None and os.path.splitext(held[0])[0] == stem:
                yield *held, data if isinstance(data, bytes) else b""
                held = None
            continue
        if held is not None:
            yield *held, b""
        held = (name, data)
    if held is not None:
        yield *held, b""


def _clip(path: str, name: str, data: bytes, cut: Cut | None, facts: bytes) -> Clip | Skipped:
    identity = f"{path}:{name}"
    try:
        channels: tuple[int, ...] = ()
        if cut is not None:
            channels = _channels(cut, facts, identity)
        with Sound(data, identity) as sound:
            rate, samples = sound.rate, sound.samples()
            stretch = None if cut is None else cut.samples(rate, samples)
            start, end = stretch or (0, samples)
            if end > samples:
                return Skipped(identity, f"ends at sample {end}, its audio at {samples}")
            if channels and max(channels) >= sound.channels:
                return Skipped(identity, f"has {sound.channels} channels, not those of its cut")
    except AudioError as error:
        return Skipped(identity, reason_in(error, identity))
    if end <= start:
        return Skipped(identity, "holds no samples")
    return Clip(identity, f"{os.path.basename(path)}:{name}", data, rate, start, end, channels)


def _channels(cut: Cut, facts: bytes, at: str) -> tuple[int, ...]:
    """Columns of the data that a cut wants, by the recording that lies beside the data."""
    recording = cut.recording
    if facts:
        try:
            recording = json.loads(facts)
            held = recording["sources"][0]["channels"]
        except (ValueError, RecursionError, LookupError, TypeError) as error:
            raise AudioError(f"{at} has a description that is not as lhotse writes it") from error
        if not isinstance(held, list) or not all(type(item) is int for item in held):
            raise AudioError(f"{at} has a description that is not as lhotse writes it")
        check_transforms(recording, at)
    return columns(cut.channels, recording["sources"][0]["channels"])


class _Member(tarfile.TarInfo):
    """A member whose descriptions are read within bounds: they are held in memory before they are known."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _DESCRIBING and self.size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a description of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def _members(path: str) -> Iterator[tuple[str, bytes | Skipped]]:
    """Names and contents of a tar file's plain files; what else it holds is left out, each with a reason."""
    try:
        with (
            os.fdopen(open_regular(path), "rb") as stream,
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as archive,
        ):
            for member in archive:
                name, identity = member.name, f"{path}:{member.name}"
                if member.isdir():
                    continue
                if not member.isreg():
                    yield name, Skipped(identity, "is a link or a device, not a file")
                elif member.issparse():
                    yield name, Skipped(identity, "is a file with holes")
                elif member.size > LARGEST_CLIP:
                    yield (
                        name,
                        Skipped(identity, f"has {member.size:,} bytes, which no clip needs"),
                    )
                else:
                    data = archive.extractfile(member)
                    yield name, data.read() if data is not None else b""
    except _FAILURES as error:
        yield "", Skipped(path, f"the shard cannot be read to its end: {reason_of(error)}")
