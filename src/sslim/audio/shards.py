"""Sharded sources: tar files of WebDataset or lhotse Shar, streamed; their clips are never listed.

Clips are read shard by shard, each epoch in another order of shards, into a pool of a few updates; the pool
is cut into batches of similar lengths like any other audio. What is heard in an update follows from the seed
and the update alone: a resumed run passes over what was heard before without decoding it.
"""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from sslim.audio.archives import Clip, read_shar, read_webdataset
from sslim.audio.batch import SHORTEST, Batch
from sslim.audio.batching import Update, UpdateSet, collate
from sslim.audio.held_out import NOT_WANTED, TOO_LITTLE, HeldOutClips, bounds, lot
from sslim.audio.manifest import Skipped, sample_of
from sslim.audio.sampling import UpdateSampler
from sslim.audio.sound import reason_in
from sslim.audio.source import HeldOut, StreamSettings
from sslim.errors import AudioError, first_line
from sslim.identity import digest
from sslim.plan import SAMPLING_RATE

POOL_UPDATES = 4
"""Updates that are cut from one pool: more mixes and sorts better, and holds more audio in memory."""

POOL_BYTES = 2**31
"""Packed clips that a pool holds at most: long clips are cut from it as if it were full."""

HELD_OUT_SHARE = 0.01
COUNTED = 2000
"""Clips that are counted, to hold out a larger share where there are few."""


@dataclass(frozen=True)
class Shards:
    """A source of shards (`sslim.audio.source.Source`): what each consists of, in order."""

    kind: str
    """`webdataset` or `shar`."""
    shards: tuple[dict[str, str], ...]
    """For each shard: `audio`, and for lhotse also `cuts`."""
    min_seconds: float = 0.0
    """Shorter clips are not used."""
    seed: int = 0
    """Of the lots that clips draw."""
    below: str = ""
    """Clips that drew a lot below this are another part than the rest; empty: there is one part."""
    held: bool = False
    """Which of the two parts this is."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Nothing is known before the shards are read."""
        return ()

    @property
    def divided_by_process(self) -> bool:
        """Yes: each process reads shards of its own."""
        return True

    @property
    def repeats_crops(self) -> bool:
        """No: the pools, and with them the batches, are others in each epoch."""
        return False

    def described(self) -> str:
        """In words, for people."""
        return f"{len(self.shards):,} {self.kind} shards"

    def summary(self) -> dict[str, Any]:
        """Figures that say what is heard; `fingerprint` changes when a shard's size or a piece of it does."""
        contents = [_sampled(path) for path in self.paths()]
        return {
            "described": self.described(),
            "shards": len(self.shards),
            "bytes": sum(_size(shard["audio"]) for shard in self.shards),
            "kind": self.kind,
            "fingerprint": digest(self.kind, contents, self.seed, self.below, self.held),
        }

    def paths(self) -> Iterator[str]:
        """Every file that is read."""
        return (path for shard in self.shards for path in shard.values())

    def longest(self, max_seconds: float) -> float:
        """`max_seconds`: no clip is known before it is read."""
        return max_seconds

    def hold_out(self, share: float, seed: int) -> HeldOut:
        """Clips whose names' hash is below a threshold: known for each clip alone, as a stream asks.

        A hundredth of them, whatever `share` above 0 is; more where there are few. Names of clips are known
        only once they are read: `seed` and `below` of `HeldOut.listed` say which are held out.
        """
        if share <= 0:
            return HeldOut.nothing(self, NOT_WANTED)
        clips = (item for item in self.clips() if isinstance(item, Clip))
        lots = [lot(clip.key, seed) for clip in itertools.islice(clips, COUNTED)]
        count = len(lots)
        if count < COUNTED:
            wanted, _ = bounds(count, HELD_OUT_SHARE)
            if wanted == 0:
                return HeldOut.nothing(self, TOO_LITTLE)
            below = sorted(lots)[wanted]
            chosen = f"by clip ({wanted} of {count:,})"
        else:
            below = f"{int(HELD_OUT_SHARE * 16**8):08x}"
            chosen = f"by clip (about {HELD_OUT_SHARE:.0%})"
        training = replace(self, seed=seed, below=below, held=False)
        held_out = replace(self, seed=seed, below=below, held=True)
        try:
            # Clips were drawn by name alone; either part may consist of what cannot be used.
            training.check()
            held_out.check()
        except AudioError:
            return HeldOut.nothing(self, "too few clips can be used")
        return HeldOut(training, held_out, chosen, HeldOutClips(chosen, seed=seed, below=below))

    def datasets(self, settings: StreamSettings, first: int, last: int) -> list[UpdateSet]:
        """Updates of each process's own shards.

        Raises:
            AudioError: there are fewer shards than processes.
        """
        if len(self.shards) < settings.processes:
            raise AudioError(
                f"{len(self.shards)} shards cannot be shared by {settings.processes} processes",
                "make more shards, or start fewer processes",
            )
        return [_Updates(self, settings, first, last)]

    def waveforms(
        self, count: int, max_seconds: float, on_lost: Callable[[Skipped], None]
    ) -> Iterator[np.ndarray]:
        """The first `count` usable clips; of a clip that is too long, its beginning."""
        usable = (item for item in self._decoded() if not isinstance(item, Skipped))
        longest = int(max_seconds * SAMPLING_RATE)
        return (waveform[:longest] for waveform in itertools.islice(usable, count))

    def check(self) -> None:
        """Reads shards until a clip is found that can be used, decoded to its end.

        Raises:
            AudioError: there is none; the first reason is named.
        """
        first: Skipped | None = None
        for item in self._decoded():
            if not isinstance(item, Skipped):
                return
            first = first or item
        raise self.unusable(first)

    def clips(self, order: Iterable[int] | None = None) -> Iterator[Clip | Skipped]:
        """The clips of the shards in `order`, read as they come, however short."""
        read = read_webdataset if self.kind == "webdataset" else read_shar
        for index in range(len(self.shards)) if order is None else order:
            for item in read(self.shards[index]):
                if isinstance(item, Skipped) or self._belongs(item):
                    yield item

    def is_long_enough(self, clip: Clip) -> bool:
        """Whether a clip is used."""
        return clip.seconds >= max(self.min_seconds, SHORTEST / SAMPLING_RATE)

    def unusable(self, first: Skipped | None) -> AudioError:
        """That no clip can be used, with the first reason."""
        why = f"; the first: {first.path}: {first.reason}" if first else ""
        return AudioError(
            f"the shards hold no clip of {self.min_seconds:g} s or more that can be used{why}",
            "lower audio.min_seconds, or check that the shards hold audio",
        )

    def _belongs(self, clip: Clip) -> bool:
        if not self.below:
            return True
        return (lot(clip.key, self.seed) < self.below) == self.held

    def _decoded(self) -> Iterator[np.ndarray | Skipped]:
        """All clips that are long enough, whole, and what cannot be used."""
        for item in self.clips():
            if isinstance(item, Skipped):
                yield item
            elif self.is_long_enough(item):
                try:
                    yield item.load()
                except AudioError as error:
                    yield Skipped(item.identity, reason_in(error, item.identity))


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


def find_shards(source: object, min_seconds: float = 0.0) -> Shards | None:
    """The shards at `source`: a lhotse Shar folder, a folder of tar files, or one tar file; None: neither.

    Args:
        source: a path; anything else is no shard.
        min_seconds: shorter clips are not used.

    Raises:
        AudioError: the folder cannot be read, or a part of a Shar shard is missing.
    """
    if not isinstance(source, (str, Path)):
        return None
    path = Path(os.path.expanduser(source))
    if path.suffix == ".tar" and os.path.isfile(path):
        return Shards("webdataset", ({"audio": str(path)},), min_seconds)
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
        return Shards("shar", tuple(pairs), min_seconds)
    found = tuple({"audio": str(path / name)} for name in tars)
    return Shards("webdataset", found, min_seconds) if found else None


class _Updates(IterableDataset[Update]):
    """The updates of one process, in order; what a loader's worker runs."""

    def __init__(self, shards: Shards, settings: StreamSettings, first: int, last: int) -> None:
        self.shards = shards
        self.settings = settings
        self.first = first
        self.last = last
        self.seconds_per_update = settings.seconds_per_update / settings.processes

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
                elif self.shards.is_long_enough(item):
                    usable = True
                    yield item
            if not usable:
                raise self.shards.unusable(unusable)
            epoch += 1

    def __iter__(self) -> Iterator[Update]:
        update = 0
        limit = POOL_UPDATES * self.seconds_per_update
        pool: list[Clip] = []
        lost: list[Skipped] = []
        held, size = 0.0, 0
        for item in self._endless():
            if isinstance(item, Skipped):
                lost.append(item)
                continue
            pool.append(item)
            held += min(item.seconds, self.settings.max_seconds)
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
            seconds_per_update=self.seconds_per_update,
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
            batch, missing = collate(
                clips,
                Clip.crop,
                max_seconds=settings.max_seconds,
                seed=f"{settings.seed}/{update}/{settings.rank}/{number}",
            )
            lost += missing
            if batch is not None:
                done.append(batch)
        return update, done, lost
