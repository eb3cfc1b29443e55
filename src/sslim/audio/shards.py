"""Sharded sources: tar files of WebDataset or lhotse Shar, streamed; their clips are never listed.

Clips are read shard by shard, each epoch in another order of shards, into a pool of a few updates; the pool
is cut into batches of similar lengths like any other audio. What is heard in an update follows from the seed
and the update alone: a resumed run passes over what was heard before without decoding it.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch.utils.data import IterableDataset

from sslim.audio.batching import Batch, UpdateStream, common_length, crop
from sslim.audio.loading import load_audio, problem_of, reason_of
from sslim.audio.manifest import Manifest, Skipped
from sslim.audio.sampling import UpdateSampler
from sslim.audio.sources import EXTENSIONS
from sslim.errors import AudioError
from sslim.identity import digest
from sslim.plan import SAMPLING_RATE

POOL_UPDATES = 4
"""Updates that are cut from one pool: more mixes and sorts better, and holds more audio in memory."""

Decode = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Clip:
    """A clip in a stream, not decoded yet."""

    identity: str
    seconds: float
    decode: Decode
    """The waveform, float32 mono at 16 kHz."""


@dataclass(frozen=True)
class Shards:
    """A sharded source: what each shard consists of, in order."""

    kind: str
    """`webdataset` or `shar`."""
    shards: tuple[dict[str, str], ...]
    """For each shard: `audio`, and for lhotse also `cuts`."""
    seed: int = 0
    """Of the lots that clips draw."""
    below: str = ""
    """Clips that drew a lot below this are another part than the rest; empty: there is one part."""
    held: bool = False
    """Which of the two parts this is."""

    def lot(self, key: str, seed: int) -> str:
        """What decides in which part a clip is: drawn from its name."""
        return digest("held out", seed, key)

    def keys(self, most: int) -> list[str]:
        """Names of the first clips, relative to the source: shard and clip."""
        clips = (item for item in self.clips(list(range(len(self.shards)))))
        found = (self._key(item) for item in clips if isinstance(item, Clip))
        return list(itertools.islice(found, most))

    def _key(self, clip: Clip) -> str:
        return clip.identity.rpartition("/")[2]

    def described(self) -> str:
        """In words, for people."""
        return f"{len(self.shards):,} {self.kind} shards"

    def summary(self) -> dict[str, Any]:
        """Figures that say what is heard; `fingerprint` changes when a shard's name or size does."""
        digest = hashlib.sha256()
        sizes = [Path(shard["audio"]).stat().st_size for shard in self.shards]
        for shard, size in zip(self.shards, sizes, strict=True):
            digest.update(f"{Path(shard['audio']).name}\t{size}\n".encode())
        return {
            "described": self.described(),
            "shards": len(self.shards),
            "bytes": sum(sizes),
            "kind": self.kind,
            "fingerprint": digest.hexdigest(),
        }

    def clips(self, order: list[int]) -> Iterator[Clip | Skipped]:
        """The clips of the shards in `order`, read as they come."""
        read = _read_webdataset if self.kind == "webdataset" else _read_shar
        for index in order:
            for item in read(self.shards[index]):
                if isinstance(item, Skipped) or self._belongs(item):
                    yield item

    def _belongs(self, clip: Clip) -> bool:
        if not self.below:
            return True
        return (self.lot(self._key(clip), self.seed) < self.below) == self.held


def find_shards(source: object) -> Shards | None:
    """The shards at `source`: a lhotse Shar folder, a folder of tar files, or one tar file; None: neither."""
    if not isinstance(source, (str, Path)):
        return None
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".tar":
        return Shards("webdataset", ({"audio": str(path)},))
    if not path.is_dir():
        return None
    recordings = sorted(path.glob("recording.*.tar"))
    if recordings:
        pairs = []
        for tar in recordings:
            cuts = sorted(path.glob(f"cuts.{tar.name.split('.')[1]}.jsonl*"))
            if not cuts:
                raise AudioError(f"{tar} has no cuts file beside it", "copy the Shar folder again")
            pairs.append({"audio": str(tar), "cuts": str(cuts[0])})
        return Shards("shar", tuple(pairs))
    tars = sorted(path.glob("*.tar"))
    return Shards("webdataset", tuple({"audio": str(tar)} for tar in tars)) if tars else None


def _read_webdataset(shard: dict[str, str]) -> Iterator[Clip | Skipped]:
    path = shard["audio"]
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if not member.name.lower().endswith(EXTENSIONS):
                    continue
                stream = archive.extractfile(member)
                if stream is not None:
                    yield _clip(f"{path}:{member.name}", stream.read())
    except (OSError, tarfile.TarError) as error:
        yield Skipped(path, f"the shard cannot be read to its end: {reason_of(error)}")


def _clip(identity: str, data: bytes) -> Clip | Skipped:
    try:
        header = soundfile.info(io.BytesIO(data))
    except (OSError, RuntimeError) as error:
        return Skipped(identity, reason_of(error))

    def decode() -> np.ndarray:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        return _at_16_khz(samples.mean(axis=1), rate)

    return Clip(identity, header.frames / header.samplerate, decode)


def _read_shar(shard: dict[str, str]) -> Iterator[Clip | Skipped]:
    from lhotse import CutSet

    try:
        fields = {"cuts": [shard["cuts"]], "recording": [shard["audio"]]}
        for cut in CutSet.from_shar(fields=fields):
            yield Clip(f"{shard['cuts']}:{cut.id}", cut.duration, _decoder(cut))
    except (OSError, tarfile.TarError, ValueError, AssertionError) as error:
        yield Skipped(shard["audio"], f"the shard cannot be read to its end: {reason_of(error)}")


def _decoder(cut: Any) -> Decode:
    return lambda: _at_16_khz(cut.load_audio().mean(axis=0), cut.sampling_rate)


def _at_16_khz(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate != SAMPLING_RATE:
        samples = soxr.resample(samples, rate, SAMPLING_RATE)
    return np.ascontiguousarray(samples, dtype=np.float32)


@dataclass(frozen=True)
class StreamSettings:
    """How a stream is cut into updates; the seconds are those of one process."""

    seconds_per_update: float
    seconds_per_batch: float
    min_seconds: float
    max_seconds: float
    seed: int
    rank: int = 0
    processes: int = 1


Update = tuple[int, list[Batch], list[Skipped]]


class _ShardUpdates(IterableDataset[Update]):
    def __init__(self, shards: Shards, settings: StreamSettings, first: int, last: int) -> None:
        self.shards = shards
        self.settings = settings
        self.first = first
        self.last = last

    def _endless(self) -> Iterator[Clip | Skipped]:
        """Epoch after epoch, this process's shards in an order of their own each time."""
        settings, epoch = self.settings, 0
        while True:
            order = list(range(len(self.shards.shards)))
            random.Random(f"{settings.seed}/{epoch}").shuffle(order)
            usable = False
            for item in self.shards.clips(order[settings.rank :: settings.processes]):
                if isinstance(item, Skipped):
                    yield item
                elif item.seconds >= settings.min_seconds:
                    usable = True
                    yield item
            if not usable:
                raise AudioError(
                    f"the shards hold no clip of {settings.min_seconds:g} s or more",
                    "lower audio.min_seconds, or check that the shards hold audio",
                )
            epoch += 1

    def __iter__(self) -> Iterator[Update]:
        settings, update = self.settings, 0
        limit = POOL_UPDATES * settings.seconds_per_update
        pool: list[Clip] = []
        lost: list[Skipped] = []
        held = 0.0
        for item in self._endless():
            if isinstance(item, Skipped):
                lost.append(item)
                continue
            pool.append(item)
            held += min(item.seconds, settings.max_seconds)
            if held < limit:
                continue
            for batches in self._cut(pool, update):
                if update >= self.last:
                    return
                if update >= self.first:
                    yield self._decoded(update, batches, lost)
                    lost = []
                update += 1
            pool, held = [], 0.0

    def _cut(self, pool: list[Clip], update: int) -> list[list[list[Clip]]]:
        settings = self.settings
        sampler = UpdateSampler(
            [clip.seconds for clip in pool],
            seconds_per_update=settings.seconds_per_update,
            seconds_per_batch=settings.seconds_per_batch,
            max_seconds=settings.max_seconds,
            # Each pool is an epoch of its own to the sampler.
            seed=settings.seed + update,
        )
        return [
            [[pool[index] for index in batch] for batch in sampler.update(number)]
            for number in range(sampler.updates_per_epoch)
        ]

    def _decoded(self, update: int, batches: list[list[Clip]], lost: list[Skipped]) -> Update:
        settings = self.settings
        done: list[Batch] = []
        for number, clips in enumerate(batches):
            length = common_length([clip.seconds for clip in clips], settings.max_seconds)
            crops, names = [], []
            for place, clip in enumerate(clips):
                waveform = _decode(clip)
                if isinstance(waveform, Skipped):
                    lost.append(waveform)
                    continue
                seed = f"{settings.seed}/{update}/{settings.rank}/{number}/{place}"
                crops.append(crop(waveform, length, seed))
                names.append(clip.identity)
            if crops:
                done.append(Batch(torch.from_numpy(np.stack(crops)), tuple(names)))
        return update, done, lost


def _decode(clip: Clip) -> np.ndarray | Skipped:
    try:
        waveform = clip.decode()
    except Exception as error:  # whatever a damaged clip makes a decoder raise
        return Skipped(clip.identity, reason_of(error))
    problem = problem_of(waveform)
    return Skipped(clip.identity, problem) if problem else waveform


class ShardBatches(UpdateStream):
    """The updates of a sharded source, from `first_update` up to and without `last_update`.

    One worker reads ahead; more would have to share the shards and hear them in another order.

    Raises:
        AudioError: there are fewer shards than processes.
    """

    def __init__(
        self,
        shards: Shards,
        stream: StreamSettings,
        *,
        first_update: int,
        last_update: int,
        workers: int = 0,
        **settings: Any,
    ) -> None:
        if len(shards.shards) < stream.processes:
            raise AudioError(
                f"{len(shards.shards)} shards cannot be shared by {stream.processes} processes",
                "make more shards, or start fewer processes",
            )
        updates = _ShardUpdates(shards, stream, first_update, last_update)
        super().__init__(updates, workers=min(1, workers), **settings)


def first_clips(
    audio: Manifest | Shards, count: int, min_seconds: float = 0.0
) -> Iterator[np.ndarray]:
    """The first usable waveforms of any source, (samples,) float32 at 16 kHz each."""
    if isinstance(audio, Manifest):
        for utterance in audio.utterances[:count]:
            yield load_audio(utterance)
        return
    for item in audio.clips(list(range(len(audio.shards)))):
        if count == 0:
            return
        if isinstance(item, Clip) and item.seconds >= min_seconds:
            waveform = _decode(item)
            if not isinstance(waveform, Skipped):
                count -= 1
                yield waveform
