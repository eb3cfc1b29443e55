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

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sslim.errors import ConfigError

Extract = Callable[[np.ndarray], np.ndarray]
"""A waveform (samples,) float32 at 16 kHz -> its features (L, frames, D), or (frames, D) for one layer."""

HIDDEN = 256
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
MAX_STEPS = 200
PATIENCE = 30
"""Steps without a better validation loss after which training stops."""


@dataclass(frozen=True)
class LabelledFeatures:
    """Pooled features (N, L, D) and the class of each."""

    features: np.ndarray
    labels: Sequence[Hashable]

    def __post_init__(self) -> None:
        if self.features.ndim != 3 or len(self.features) != len(self.labels):
            raise ValueError(
                f"expected features (N, layers, width) and N labels, got {self.features.shape} and "
                f"{len(self.labels)} labels"
            )

    def where(self, chosen: Sequence[bool]) -> LabelledFeatures:
        """The chosen clips only."""
        mask = np.asarray(chosen, dtype=bool)
        labels = [label for label, take in zip(self.labels, mask, strict=True) if take]
        return LabelledFeatures(self.features[mask], labels)


@dataclass(frozen=True)
class ProbeScore:
    """Test accuracy over seeds, as shares of 1."""

    per_seed: tuple[float, ...]
    validation: float
    """Mean accuracy over seeds on the validation part, at the learning rate that it chose."""
    learning_rate: float
    chance: float
    """Accuracy of always naming the class that is most frequent in the test part."""
    clips: int
    """Size of the test part."""

    @property
    def mean(self) -> float:
        """Mean accuracy over seeds."""
        return float(np.mean(self.per_seed))

    @property
    def std(self) -> float:
        """Standard deviation over seeds (of the sample; 0 for one seed)."""
        return float(np.std(self.per_seed, ddof=1)) if len(self.per_seed) > 1 else 0.0


def pooled_features(extract: Extract, clips: Iterable[np.ndarray]) -> np.ndarray:
    """Mean over time of every layer's features.

    Args:
        extract: any callable; see `Extract`. It sees one clip at a time, so nothing is padded (padding
            would change what models with a GroupNorm compute).
        clips: waveforms (samples,).

    Returns:
        (N, L, D) float32.

    Raises:
        ConfigError: there are no clips, or a feature is not finite.
    """
    rows = []
    for clip in clips:
        features = np.asarray(extract(clip), dtype=np.float32)
        if features.ndim == 2:
            features = features[None]
        rows.append(features.mean(axis=1))
    if not rows:
        raise ConfigError("there are no clips to probe", "give at least one clip per part")
    pooled = np.stack(rows)
    if not np.isfinite(pooled).all():
        raise ConfigError("the features hold values that are not finite", "check the model")
    return pooled


def probe(
    train: LabelledFeatures,
    valid: LabelledFeatures,
    test: LabelledFeatures,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> ProbeScore:
    """Trains the head on frozen features and scores it.

    Features are brought to zero mean and unit variance per layer and dimension with the training part's
    statistics, so that a model's scale does not decide how well one learning rate suits it.

    Raises:
        ConfigError: a class of `valid` or `test` never occurs in `train`, or there is only one class.
    """
    classes = {label: index for index, label in enumerate(sorted(set(train.labels), key=str))}
    unseen = sorted({str(x) for x in (*valid.labels, *test.labels) if x not in classes})
    if unseen:
        raise ConfigError(
            f"{len(unseen)} class(es) of the validation or test part never occur in the training part, "
            f"such as {unseen[0]!r}",
            "split so that every class has training clips",
        )
    if len(classes) < 2:
        raise ConfigError("a probe needs at least two classes, got one", "check the label column")
    mean = train.features.mean(axis=0)
    spread = train.features.std(axis=0) + 1e-5
    parts = []
    for part in (train, valid, test):
        features = torch.from_numpy(((part.features - mean) / spread).astype(np.float32))
        parts.append((features, torch.tensor([classes[label] for label in part.labels])))
    runs = {
        rate: [_fit(parts, len(classes), rate, seed) for seed in seeds] for rate in learning_rates
    }
    best = max(runs, key=lambda rate: (np.mean([run[0] for run in runs[rate]]), -rate))
    counts = np.unique([classes[label] for label in test.labels], return_counts=True)[1]
    return ProbeScore(
        per_seed=tuple(run[1] for run in runs[best]),
        validation=float(np.mean([run[0] for run in runs[best]])),
        learning_rate=best,
        chance=float(counts.max() / counts.sum()),
        clips=len(test.labels),
    )


class _Head(nn.Module):
    """Softmax-weighted sum over layers, then two linear maps. (N, L, D) -> (N, C)"""

    def __init__(self, layers: int, width: int, classes: int) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.zeros(layers))
        self.project = nn.Linear(width, HIDDEN)
        self.classify = nn.Linear(HIDDEN, classes)

    def forward(self, features_NLD: torch.Tensor) -> torch.Tensor:
        weights_L = self.layer_weights.softmax(0)
        summed_ND = torch.einsum("l,nld->nd", weights_L, features_NLD)
        logits: torch.Tensor = self.classify(self.project(summed_ND))
        return logits


def _fit(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]], classes: int, rate: float, seed: int
) -> tuple[float, float]:
    """Accuracy on the validation and test parts, at the step with the lowest validation loss."""
    (train, train_labels), (valid, valid_labels), (test, test_labels) = parts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _Head(train.shape[1], train.shape[2], classes)
    optimiser = torch.optim.Adam(head.parameters(), lr=rate)
    lowest, since, kept = float("inf"), 0, {}
    for _ in range(MAX_STEPS):
        optimiser.zero_grad()
        F.cross_entropy(head(train), train_labels).backward()
        optimiser.step()
        with torch.no_grad():
            loss = float(F.cross_entropy(head(valid), valid_labels))
        if loss < lowest:
            lowest, since = loss, 0
            kept = {name: value.clone() for name, value in head.state_dict().items()}
        else:
            since += 1
            if since >= PATIENCE:
                break
    head.load_state_dict(kept)
    with torch.no_grad():
        return tuple(  # type: ignore[return-value]
            float((head(x).argmax(-1) == labels).float().mean())
            for x, labels in ((valid, valid_labels), (test, test_labels))
        )
