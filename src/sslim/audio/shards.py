"""Sharded sources: tar files of WebDataset or lhotse Shar, streamed; their clips are never listed.

Clips are read shard by shard, each epoch in another order of shards, into a pool of a few updates; the pool
is cut into batches of similar lengths like any other audio. What is heard in an update follows from the seed
and the update alone: a resumed run passes over what was heard before without decoding it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from sslim.audio.archives import Clip, read_shar, read_webdataset
from sslim.audio.batch import SHORTEST, Batch
from sslim.audio.batching import UpdateStream, common_length
from sslim.audio.loading import load_audio
from sslim.audio.manifest import Manifest, Skipped, sample_of
from sslim.audio.sampling import UpdateSampler
from sslim.audio.sound import reason_in
from sslim.errors import AudioError, first_line
from sslim.identity import digest
from sslim.plan import SAMPLING_RATE

POOL_UPDATES = 4
"""Updates that are cut from one pool: more mixes and sorts better, and holds more audio in memory."""

POOL_BYTES = 2**31
"""Packed clips that a pool holds at most: long clips are cut from it as if it were full."""


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

    def lot(self, clip: Clip, seed: int) -> str:
        """What decides in which part a clip is: drawn from its name, relative to the source."""
        return digest("held out", seed, clip.key)

    def described(self) -> str:
        """In words, for people."""
        return f"{len(self.shards):,} {self.kind} shards"

    def summary(self) -> dict[str, Any]:
        """Figures that say what is heard; `fingerprint` changes when a shard's size or a piece of it does."""
        paths = [path for shard in self.shards for path in shard.values()]
        contents = [_sampled(path) for path in paths]
        return {
            "described": self.described(),
            "shards": len(self.shards),
            "bytes": sum(_size(shard["audio"]) for shard in self.shards),
            "kind": self.kind,
            "fingerprint": digest(self.kind, contents, self.seed, self.below, self.held),
        }

    def clips(self, order: list[int]) -> Iterator[Clip | Skipped]:
        """The clips of the shards in `order`, read as they come."""
        read = read_webdataset if self.kind == "webdataset" else read_shar
        for index in order:
            for item in read(self.shards[index]):
                if isinstance(item, Skipped) or self._belongs(item):
                    yield item

    def _belongs(self, clip: Clip) -> bool:
        if not self.below:
            return True
        return (self.lot(clip, self.seed) < self.below) == self.held


def _sampled(path: str) -> str:
    try:
        return sample_of(path)
    except OSError:
        return "unreadable"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def find_shards(source: object) -> Shards | None:
    """The shards at `source`: a lhotse Shar folder, a folder of tar files, or one tar file; None: neither.

    Raises:
        AudioError: the folder cannot be read, or a part of a Shar shard is missing.
    """
    if not isinstance(source, (str, Path)):
        return None
    path = Path(os.path.expanduser(source))
    if path.suffix == ".tar" and os.path.isfile(path):
        return Shards("webdataset", ({"audio": str(path)},))
    if not os.path.isdir(path):
        return None
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise AudioError(
            f"the folder {path} cannot be read: {first_line(error)}", "make it readable"
        ) from error
    tars = [name for name in names if name.endswith(".tar") and os.path.isfile(path / name)]
    recordings = [name for name in tars if re.fullmatch(r"recording\..+\.tar", name)]
    pairs = []
    for name in recordings:
        number = name.removeprefix("recording.").removesuffix(".tar")
        endings = (f"cuts.{number}.jsonl", f"cuts.{number}.jsonl.gz")
        cuts = [ending for ending in endings if os.path.isfile(path / ending)]
        if not cuts:
            raise AudioError(
                f"{path / name} has no cuts file beside it", "copy the Shar folder again"
            )
        pairs.append({"audio": str(path / name), "cuts": str(path / cuts[0])})
    if pairs:
        return Shards("shar", tuple(pairs))
    found = tuple({"audio": str(path / name)} for name in tars)
    return Shards("webdataset", found) if found else None


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
            unusable: Skipped | None = None
            for item in self.shards.clips(order[settings.rank :: settings.processes]):
                if isinstance(item, Skipped):
                    unusable = unusable or item
                    yield item
                elif item.seconds >= max(settings.min_seconds, SHORTEST / SAMPLING_RATE):
                    usable = True
                    yield item
            if not usable:
                raise _nothing(settings.min_seconds, unusable)
            epoch += 1

    def __iter__(self) -> Iterator[Update]:
        settings, update = self.settings, 0
        limit = POOL_UPDATES * settings.seconds_per_update
        pool: list[Clip] = []
        lost: list[Skipped] = []
        held, size = 0.0, 0
        for item in self._endless():
            if isinstance(item, Skipped):
                lost.append(item)
                continue
            pool.append(item)
            held += min(item.seconds, settings.max_seconds)
            size += len(item.data)
            if held < limit and size < POOL_BYTES:
                continue
            for batches in self._cut(pool, update):
                if update >= self.last:
                    return
                if update >= self.first:
                    yield self._decoded(update, batches, lost)
                    lost = []
                update += 1
            pool, held, size = [], 0.0, 0

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
                seed = f"{settings.seed}/{update}/{settings.rank}/{number}/{place}"
                try:
                    crops.append(clip.crop(length, seed))
                except AudioError as error:
                    lost.append(Skipped(clip.identity, reason_in(error, clip.identity)))
                    continue
                names.append(clip.identity)
            if crops:
                done.append(Batch(torch.from_numpy(np.stack(crops)), tuple(names)))
        return update, done, lost


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


def check_usable(audio: Shards, min_seconds: float) -> None:
    """Reads shards until a clip is found that can be trained on, decoded to its end.

    Raises:
        AudioError: there is none; the first reason is named.
    """
    unusable: Skipped | None = None
    for item in audio.clips(list(range(len(audio.shards)))):
        if isinstance(item, Skipped):
            unusable = unusable or item
        elif item.seconds >= max(min_seconds, SHORTEST / SAMPLING_RATE):
            try:
                item.load()
                return
            except AudioError as error:
                reason = reason_in(error, item.identity)
                unusable = unusable or Skipped(item.identity, reason)
    raise _nothing(min_seconds, unusable)


def _nothing(min_seconds: float, unusable: Skipped | None) -> AudioError:
    why = f"; the first: {unusable.path}: {unusable.reason}" if unusable else ""
    return AudioError(
        f"the shards hold no clip of {min_seconds:g} s or more that can be used{why}",
        "lower audio.min_seconds, or check that the shards hold audio",
    )


def first_clips(
    audio: Manifest | Shards, count: int, min_seconds: float = 0.0
) -> Iterator[np.ndarray]:
    """The first usable waveforms of any source, (samples,) float32 at 16 kHz each; others are passed over."""
    yield from itertools.islice(_usable(audio, min_seconds), count)


def _usable(audio: Manifest | Shards, min_seconds: float) -> Iterator[np.ndarray]:
    if isinstance(audio, Manifest):
        for utterance in audio.utterances:
            with contextlib.suppress(AudioError):
                yield load_audio(utterance)
        return
    for item in audio.clips(list(range(len(audio.shards)))):
        if isinstance(item, Clip) and item.seconds >= min_seconds:
            with contextlib.suppress(AudioError):
                yield item.load()
