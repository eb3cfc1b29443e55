"""A source of audio: what training and measuring need of it, however it is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sslim.audio.batching import UpdateSet
from sslim.audio.held_out import HeldOutClips
from sslim.audio.manifest import Skipped


@dataclass(frozen=True)
class StreamSettings:
    """How a source is cut into updates, and which process of how many hears it."""

    seconds_per_update: float
    """Heard by all processes together in one update."""
    seconds_per_batch: float
    """That pass through the models of one process at once."""
    max_seconds: float
    """Longer utterances are cropped to this."""
    seed: int
    rank: int = 0
    """This training process among its peers."""
    processes: int = 1
    fixed_crops: bool = False
    """Every epoch is cut into the same batches and crops, heard in another order."""


class Source(Protocol):
    """Audio that can be trained and measured on.

    Sources are `files.Files`, `shards.Shards` and `mixture.Mixture`. What is heard in an update is a function
    of the settings and the update alone.
    """

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What is not used, as far as that is known before training."""
        ...

    @property
    def divided_by_process(self) -> bool:
        """Whether each process hears a part of its own: another number of them hears other batches."""
        ...

    @property
    def repeats_crops(self) -> bool:
        """Whether `StreamSettings.fixed_crops` can be had."""
        ...

    def described(self) -> str:
        """In words, for people."""
        ...

    def summary(self) -> dict[str, Any]:
        """Figures as JSON: `described`, `fingerprint` (of what is heard, not of where it lies), and more."""
        ...

    def paths(self) -> Iterable[str]:
        """Every file that is read."""
        ...

    def longest(self, max_seconds: float) -> float:
        """Seconds of the longest crop where utterances are cropped to `max_seconds`."""
        ...

    def hold_out(self, share: float, seed: int) -> HeldOut:
        """Divides it into what is trained on and what is measured on.

        Args:
            share: of the utterances; 0 holds out nothing.
            seed: of the draw.
        """
        ...

    def datasets(self, settings: StreamSettings, first: int, last: int) -> list[UpdateSet]:
        """The updates from `first` up to and without `last`, for an `UpdateStream`.

        Returns:
            One data set for each part of the source; an update hears all of them.

        Raises:
            AudioError: it cannot be shared by so many processes.
        """
        ...

    def waveforms(
        self, count: int, max_seconds: float, on_lost: Callable[[Skipped], None]
    ) -> Iterator[np.ndarray]:
        """About `count` waveforms to measure on, (samples,) float32 at 16 kHz, always the same ones.

        Args:
            max_seconds: longer ones are cropped to this.
            on_lost: told what was listed and cannot be decoded; it is passed over.
        """
        ...


@dataclass(frozen=True)
class HeldOut:
    """Audio in two parts that have nothing in common."""

    training: Source
    held_out: Source | None
    """Not heard in training; None where nothing is held out."""
    chosen: str
    """How, in a few words: `by speaker (3 of 60)`, `nothing: too little audio`."""
    clips: HeldOutClips | None = None
    """Which clips are held out; None: none are."""

    @classmethod
    def nothing(cls, source: Source, reason: str) -> HeldOut:
        """All of `source` is trained on."""
        return cls(source, None, f"nothing: {reason}")

    def __bool__(self) -> bool:
        """Whether anything is held out."""
        return self.held_out is not None

    def listed(self) -> HeldOutClips:
        """Which clips these are, so that others can leave them out or measure on them again."""
        return self.clips or HeldOutClips(self.chosen, ())
