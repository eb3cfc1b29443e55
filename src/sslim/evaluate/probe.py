"""Frozen-feature probes: what does a model's output tell a small linear head?

The SUPERB recipe (Yang et al., Interspeech 2021) for utterance-level tasks, in its cheapest form: hidden
states are averaged over time, layers are summed with softmax weights, and two linear maps (256 wide in
between, nothing non-linear) give the classes. Because everything after the hidden states is linear in
them, averaging over time first gives the same head as averaging last; one vector per layer and clip is
all that has to be kept, and a probe takes seconds.

Learning rate and stopping are chosen on the validation part alone; the test part is read once per seed.

Shape legend: N clips, L layers, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sslim.evaluate.fitting import check_trained

HIDDEN = 256
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
MAX_PASSES = 200
PATIENCE = 30
"""Passes without a better validation loss after which training stops."""
BATCH = 4096
"""Clips per step; fewer clips than this are one step per pass."""


class PooledHead(nn.Module):
    """SUPERB's utterance-level head: softmax-weighted sum over layers, then two linear maps.

    (N, L, D) -> (N, C); given frames (N, L, T, D) it averages their scores over time, as SUPERB writes it,
    which is the same number.

    Args:
        layers: L.
        width: D.
        classes: C.
    """

    def __init__(self, layers: int, width: int, classes: int) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.zeros(layers))
        self.project = nn.Linear(width, HIDDEN)
        self.classify = nn.Linear(HIDDEN, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        weights_L = self.layer_weights.softmax(0)
        if features.dim() == 4:
            summed_NTD = torch.einsum("l,nltd->ntd", weights_L, features)
            pooled: torch.Tensor = self.classify(self.project(summed_NTD).mean(dim=1))
            return pooled
        summed_ND = torch.einsum("l,nld->nd", weights_L, features)
        logits: torch.Tensor = self.classify(self.project(summed_ND))
        return logits


@dataclass(frozen=True)
class FittedHeads:
    """Trained heads, one per seed, and the training part's statistics they were trained under."""

    heads: tuple[PooledHead, ...]
    mean: np.ndarray
    spread: np.ndarray
    slots: tuple[int, ...]
    """Classes of each question that is answered; one, but for intents, which have three."""
    learning_rate: float
    """The one that the validation part chose."""

    @torch.no_grad()
    def answers(self, features: np.ndarray) -> np.ndarray:
        """Pooled features (N, L, D) -> the class of each slot, (seeds, N, slots)."""
        standard = torch.from_numpy(((features - self.mean) / self.spread).astype(np.float32))
        answers = []
        for head in self.heads:
            parts = head(standard).split(self.slots, dim=1)
            answers.append(torch.stack([part.argmax(-1) for part in parts], dim=1).numpy())
        return np.stack(answers)

    def right(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether all slots (N, slots) are answered rightly, (seeds, N)."""
        return (self.answers(features) == labels[None]).all(axis=-1)


Part = tuple[np.ndarray, np.ndarray]
"""Pooled features (N, L, D) and the class of each slot (N, slots)."""


def fit_heads(
    train: Part,
    valid: Part,
    slots: Sequence[int],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> FittedHeads:
    """Trains heads at every learning rate and keeps those of the best on the validation part.

    Features are brought to zero mean and unit variance per layer and dimension with the training part's
    statistics, so that a model's scale does not decide how well one learning rate suits it.

    Raises:
        TrainingError: at every rate the head of some seed never had a finite loss.
    """
    mean = train[0].mean(axis=0)
    spread = train[0].std(axis=0) + 1e-5
    parts = [
        (torch.from_numpy(((features - mean) / spread).astype(np.float32)), torch.tensor(labels))
        for features, labels in (train, valid)
    ]
    runs = {
        rate: [_fit(parts[0], parts[1], tuple(slots), rate, seed) for seed in seeds]
        for rate in learning_rates
    }
    means = {rate: float(np.mean([score for score, _ in seeded])) for rate, seeded in runs.items()}
    # A rate at which a seed diverged has no mean.
    best = max(means, key=lambda rate: (means[rate] if means[rate] >= 0 else -1.0, -rate))
    check_trained([score for score, _ in runs[best]], learning_rates, seeds)
    heads = tuple(head for _, head in runs[best])
    return FittedHeads(heads, mean, spread, tuple(slots), best)


def _loss(logits: torch.Tensor, labels: torch.Tensor, slots: tuple[int, ...]) -> torch.Tensor:
    parts = logits.split(slots, dim=1)
    losses = [F.cross_entropy(part, labels[:, slot]) for slot, part in enumerate(parts)]
    return torch.stack(losses).sum()


def _fit(
    train: tuple[torch.Tensor, torch.Tensor],
    valid: tuple[torch.Tensor, torch.Tensor],
    slots: tuple[int, ...],
    rate: float,
    seed: int,
) -> tuple[float, PooledHead]:
    """The head at the pass with the lowest validation loss, and its accuracy there; not a number where no
    loss was finite."""
    features, labels = train
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = PooledHead(features.shape[1], features.shape[2], sum(slots))
    optimiser = torch.optim.Adam(head.parameters(), lr=rate)
    lowest, since, kept = float("inf"), 0, {}
    for _ in range(MAX_PASSES):
        single = len(features) <= BATCH
        order = None if single else torch.randperm(len(features), generator=generator)
        for indices in [slice(None)] if order is None else order.split(BATCH):
            optimiser.zero_grad()
            _loss(head(features[indices]), labels[indices], slots).backward()
            optimiser.step()
        with torch.no_grad():
            loss = float(_loss(head(valid[0]), valid[1], slots))
        if loss < lowest:
            lowest, since = loss, 0
            kept = {name: value.clone() for name, value in head.state_dict().items()}
        else:
            since += 1
            if since >= PATIENCE:
                break
    if not kept:
        return float("nan"), head.requires_grad_(False)
    head.load_state_dict(kept)
    with torch.no_grad():
        answered = [part.argmax(-1) for part in head(valid[0]).split(slots, dim=1)]
        right = (torch.stack(answered, dim=1) == valid[1]).all(dim=1)
    return float(right.float().mean()), head.requires_grad_(False)
