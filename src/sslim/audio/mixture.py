"""Several sources heard together: each gives its share of the seconds of every update."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from sslim.audio.batching import UpdateSet
from sslim.audio.held_out import HeldOutClips
from sslim.audio.manifest import Skipped
from sslim.audio.source import HeldOut, Source, StreamSettings
from sslim.errors import AudioError
from sslim.identity import digest


@dataclass(frozen=True)
class Mixture:
    """A source of sources (`sslim.audio.source.Source`).

    Each part comes round at a pace of its own. As an update hears at least one clip of each part, clips are
    cropped to the part's share of an update where that is shorter than `max_seconds`.

    Raises:
        AudioError: there is no part, or a share is not above 0.
    """

    parts: tuple[tuple[Source, float], ...]
    """Sources and their shares of what is heard; made to sum to 1."""

    def __post_init__(self) -> None:
        shares = [share for _, share in self.parts]
        if not shares or not all(math.isfinite(share) and share > 0 for share in shares):
            raise AudioError(
                f"a mixture needs sources with shares above 0, got {shares}", "correct the shares"
            )
        total = math.fsum(shares)
        parts = tuple((source, share / total) for source, share in self.parts)
        object.__setattr__(self, "parts", parts)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What is not used of any part."""
        return tuple(item for source, _ in self.parts for item in source.skipped)

    @property
    def divided_by_process(self) -> bool:
        """Whether any part is."""
        return any(source.divided_by_process for source, _ in self.parts)

    @property
    def repeats_crops(self) -> bool:
        """Whether all parts do."""
        return all(source.repeats_crops for source, _ in self.parts)

    def described(self) -> str:
        """In words, for people."""
        return " + ".join(
            f"{100 * share:.3g}% from {source.described()}" for source, share in self.parts
        )

    def summary(self) -> dict[str, Any]:
        """Figures of all, and those of each part with its `share` under `parts`."""
        parts = [{"share": share, **source.summary()} for source, share in self.parts]
        totals = {
            name: sum(part[name] for part in parts)
            for name in ("utterances", "seconds")
            if all(name in part for part in parts)
        }
        return {
            "described": self.described(),
            **totals,
            "skipped": len(self.skipped),
            "parts": parts,
            "fingerprint": digest(
                "mixture", [(part["share"], part["fingerprint"]) for part in parts]
            ),
        }

    def paths(self) -> Iterator[str]:
        """Every file that is read."""
        return chain.from_iterable(source.paths() for source, _ in self.parts)

    def longest(self, max_seconds: float) -> float:
        """Seconds of the longest crop of any part."""
        return max(source.longest(max_seconds) for source, _ in self.parts)

    def hold_out(self, share: float, seed: int) -> HeldOut:
        """Of every part by its own kind; what is held out is a mixture of the parts that could spare some."""
        parted = [(source.hold_out(share, seed), weight) for source, weight in self.parts]
        chosen = "; ".join(part.chosen for part, _ in parted)
        held = tuple(
            (part.held_out, weight) for part, weight in parted if part.held_out is not None
        )
        if not held:
            return HeldOut(self, None, chosen)
        return HeldOut(
            Mixture(tuple((part.training, weight) for part, weight in parted)),
            Mixture(held),
            chosen,
            HeldOutClips(chosen, parts=tuple(part.listed() for part, _ in parted)),
        )

    def datasets(self, settings: StreamSettings, first: int, last: int) -> list[UpdateSet]:
        """Those of all parts, each with its share of the seconds of an update and a seed of its own."""
        datasets: list[UpdateSet] = []
        for number, (source, share) in enumerate(self.parts):
            seconds = share * settings.seconds_per_update
            each = seconds / settings.processes if source.divided_by_process else seconds
            part = replace(
                settings,
                seconds_per_update=seconds,
                max_seconds=min(settings.max_seconds, each),
                seed=random.Random(f"{settings.seed}/part {number}").getrandbits(32),
            )
            datasets += source.datasets(part, first, last)
        return datasets

    def waveforms(
        self, count: int, max_seconds: float, on_lost: Callable[[Skipped], None]
    ) -> Iterator[np.ndarray]:
        """By share, and at least one of each part."""
        return chain.from_iterable(
            source.waveforms(max(1, round(share * count)), max_seconds, on_lost)
            for source, share in self.parts
        )
