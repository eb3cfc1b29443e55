"""What a test part said: a score, its bootstrap interval, and differences between models on the same items.

An item is what is drawn with replacement: a clip, a trial, a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Outcome:
    """The items of a test part and the statistic over them.

    Args:
        items: how many there are.
        statistic: item indices (with repetitions) -> the score, a share of 1 (MTWV: a value).
        identities: the clip behind each item; empty where an item is no single clip.
        counts: numerators and denominators (items,) where the score is a ratio of sums.
    """

    items: int
    statistic: Callable[[np.ndarray], float]
    identities: tuple[str, ...] = ()
    counts: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def score(self) -> float:
        """The statistic over all items."""
        return self.statistic(np.arange(self.items))

    def over(self, indices: Sequence[int]) -> float:
        """The statistic over some items; not a number where there are none."""
        return self.statistic(np.asarray(indices)) if len(indices) else float("nan")


def ratio_outcome(
    numerators: np.ndarray, denominators: np.ndarray, identities: Sequence[str] = ()
) -> Outcome:
    """A score that is a sum over a sum: accuracy, error rates, F1.

    Args:
        numerators: (items,) or (seeds, items): the seeds' mean counts.
        denominators: likewise.
        identities: of the items.
    """
    top = np.atleast_2d(np.asarray(numerators, dtype=float)).mean(axis=0)
    bottom = np.atleast_2d(np.asarray(denominators, dtype=float)).mean(axis=0)

    def statistic(indices: np.ndarray) -> float:
        total = bottom[indices].sum()
        return float(top[indices].sum() / total) if total > 0 else float("nan")

    return Outcome(len(top), statistic, tuple(identities), (top, bottom))


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcomes of several folds as one.

    Raises:
        ValueError: a score that is no ratio of sums cannot be joined.
    """
    counts = [outcome.counts for outcome in outcomes if outcome.counts is not None]
    if len(counts) < len(outcomes):
        raise ValueError("a score over trials or queries cannot be joined over folds")
    tops, bottoms = zip(*counts, strict=True)
    names = [name for outcome in outcomes for name in outcome.identities]
    return ratio_outcome(np.concatenate(tops), np.concatenate(bottoms), names)


def draws(items: int, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Item indices of bootstrap samples, (resamples, items); the same for every model."""
    return np.random.default_rng(seed).integers(0, items, (resamples, items))


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95% of bootstrapped values, those that are no numbers left out; none where none is one."""
    if not np.isfinite(values).any():
        return float("nan"), float("nan")
    edge = 50.0 * (1.0 - LEVEL)
    low, high = np.nanpercentile(values, [edge, 100.0 - edge])
    return float(low), float(high)


def interval(outcome: Outcome, indices: Sequence[int] | None = None) -> tuple[float, float]:
    """The 95% bootstrap interval (percentiles) of a score, or of the score over some items."""
    chosen = np.arange(outcome.items) if indices is None else np.asarray(indices)
    return bounds([outcome.statistic(chosen[drawn]) for drawn in draws(len(chosen))])


def difference(
    outcome: Outcome, other: Outcome, indices: Sequence[int] | None = None
) -> tuple[float, tuple[float, float]]:
    """`outcome` minus `other` on the same items, and its paired 95% bootstrap interval."""
    if outcome.items != other.items:
        raise ValueError(f"{outcome.items} items cannot be paired with {other.items}")
    chosen = np.arange(outcome.items) if indices is None else np.asarray(indices)
    values = [
        outcome.statistic(chosen[drawn]) - other.statistic(chosen[drawn])
        for drawn in draws(len(chosen))
    ]
    return outcome.statistic(chosen) - other.statistic(chosen), bounds(values)
