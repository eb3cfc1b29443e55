"""Training a head on frames of frozen features: batches, early stopping, the search for a rate."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import nn

from sslim.errors import TrainingError
from sslim.evaluate.features import FrameFeatures

Head = TypeVar("Head", bound=nn.Module)
CPU = torch.device("cpu")
STATISTICS_CLIPS = 200
"""Clips from which the layers' mean and deviation are taken."""


@dataclass(frozen=True)
class Schedule:
    """How long a head learns, and how large it is.

    SUPERB trains for up to 200,000 steps; these heads stop when the validation part no longer gains.
    """

    epochs: int = 30
    batch: int = 16
    patience: int = 4
    """Epochs without gain on the validation part after which training stops."""
    hidden: int = 0
    """Width of recurrent and speaker heads; 0: SUPERB's."""
    clip: float = 1.0


@dataclass(frozen=True)
class Fit(Generic[Head]):
    """What came out of a search."""

    heads: tuple[Head, ...]
    learning_rate: float


def layer_statistics(features: FrameFeatures) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation per layer and dimension, (L, D) each, over evenly chosen clips."""
    step = max(1, len(features) // STATISTICS_CLIPS)
    total = squares = np.zeros((1, 1))
    frames = 0
    for index in range(0, len(features), step):
        states = features[index].astype(np.float64)
        total = total + states.sum(axis=1)
        squares = squares + np.square(states).sum(axis=1)
        frames += states.shape[1]
    mean = total / frames
    spread = np.sqrt(np.maximum(squares / frames - mean**2, 0.0)) + 1e-5
    return torch.from_numpy(mean).float(), torch.from_numpy(spread).float()


def padded(
    states: Sequence[np.ndarray], device: torch.device = CPU
) -> tuple[torch.Tensor, torch.Tensor]:
    """(L, T, D) of each clip -> (B, L, longest, D) with zeros at the ends, and the lengths (B,)."""
    lengths = torch.tensor([state.shape[1] for state in states])
    layers, _, width = states[0].shape
    batch = torch.zeros(len(states), layers, int(lengths.max()), width)
    for row, state in zip(batch, states, strict=True):
        row[:, : state.shape[1]] = torch.from_numpy(state)
    return batch.to(device), lengths.to(device)


def batches(lengths: Sequence[int], size: int, seed: str) -> Iterator[list[int]]:
    """Shuffled batches of similar lengths, each clip once."""
    shuffle = random.Random(seed)
    order = sorted(range(len(lengths)), key=lambda i: lengths[i] * (1.0 + 0.1 * shuffle.random()))
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    shuffle.shuffle(groups)
    yield from groups


BEGUN, FALLS = 0.05, 0.99
"""CTC heads say nothing but blanks for many epochs, while only the loss tells that they learn. Patience is
not spent until validation has improved on the first epoch by a twentieth, as long as the training loss falls
by a hundredth."""


def fit(
    make: Callable[[], Head],
    loss: Callable[[Head, list[int]], torch.Tensor],
    validate: Callable[[Head], float],
    lengths: Sequence[int],
    *,
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    schedule: Schedule,
    on_progress: Callable[[str], None] | None = None,
) -> Fit[Head]:
    """Trains heads: the first seed at every learning rate, all seeds at the best.

    Args:
        make: a fresh head.
        loss: of a head on training clips (indices).
        validate: what the validation part says of a head; lower is better.
        lengths: of the training clips.
        learning_rates: to choose from, on the validation part alone.
        seeds: of initial weights and order.
        schedule: how long.
        on_progress: told a line after each epoch.

    Raises:
        TrainingError: no rate, or not every seed at the best one, gave a head with a finite loss. An
            untrained head says nothing of a model.
    """
    searched: dict[float, tuple[float, Head]] = {}

    def one(rate: float, seed: int) -> tuple[float, Head]:
        return _train(
            make, loss, validate, lengths, rate, seed, schedule, on_progress or (lambda line: None)
        )

    for rate in learning_rates:
        searched[rate] = one(rate, seeds[0])
    best = min(searched, key=lambda rate: (searched[rate][0], rate))
    trained = [searched[best], *(one(best, seed) for seed in seeds[1:])]
    check_trained([score for score, _ in trained], learning_rates, seeds)
    return Fit(tuple(head for _, head in trained), best)


def check_trained(
    scores: Sequence[float], learning_rates: Sequence[float], seeds: Sequence[int]
) -> None:
    """Raises TrainingError unless all heads have a finite validation score."""
    failed = [seed for seed, score in zip(seeds, scores, strict=True) if not math.isfinite(score)]
    if failed:
        rates = ", ".join(f"{rate:g}" for rate in learning_rates)
        raise TrainingError(
            f"the head of seed {failed[0]} never had a finite loss (learning rates {rates})",
            "give lower ones with --learning-rates",
        )


def _train(
    make: Callable[[], Head],
    loss: Callable[[Head, list[int]], torch.Tensor],
    validate: Callable[[Head], float],
    lengths: Sequence[int],
    rate: float,
    seed: int,
    schedule: Schedule,
    say: Callable[[str], None],
) -> tuple[float, Head]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = make()
        optimiser = torch.optim.Adam(head.parameters(), lr=rate)
        best, since, kept = float("inf"), 0, copy.deepcopy(head.state_dict())
        first, lowest = float("inf"), float("inf")
        for epoch in range(schedule.epochs):
            head.train()
            total, steps = 0.0, 0
            for indices in batches(lengths, schedule.batch, f"{seed}/{epoch}"):
                optimiser.zero_grad()
                value = loss(head, indices)
                if not torch.isfinite(value):  # a rate too high; the search passes over it
                    head.load_state_dict(kept)
                    return best, head.eval().requires_grad_(False)
                total, steps = total + float(value.detach()), steps + 1
                value.backward()
                nn.utils.clip_grad_norm_(head.parameters(), schedule.clip)
                optimiser.step()
            head.eval()
            with torch.no_grad():
                score = validate(head)
            say(f"learning rate {rate:g}, seed {seed}, epoch {epoch + 1}: validation {score:.4f}")
            first = min(first, score) if epoch == 0 else first
            falls = total / steps < FALLS * lowest
            lowest = min(lowest, total / steps)
            if score < best:
                best, since, kept = score, 0, copy.deepcopy(head.state_dict())
            elif best < first - BEGUN * abs(first) or not falls:
                since += 1
                if since >= schedule.patience:
                    break
    head.load_state_dict(kept)
    return best, head.eval().requires_grad_(False)
