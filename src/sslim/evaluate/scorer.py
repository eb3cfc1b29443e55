"""What every task gives back once its heads are trained: a scorer of any clips under any condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sslim.backbone.frozen import Frozen
from sslim.evaluate.clips import Clip, LabelledClips
from sslim.evaluate.features import Alter, FeatureStore, FrameFeatures
from sslim.evaluate.fitting import CPU, Fit, Head, Schedule, fit
from sslim.evaluate.outcome import Outcome


@dataclass(frozen=True)
class Condition:
    """What happens to the audio before a model hears it."""

    name: str = "clean"
    """For people; two conditions of one name may do different things."""
    alter: Alter | None = None
    identity: str = ""
    """The same exactly when `alter` does the same to every waveform; empty where nothing is altered."""

    def __post_init__(self) -> None:
        if (self.alter is None) != (not self.identity):
            raise ValueError(f"the condition {self.name!r} needs an identity as long as it alters")


CLEAN = Condition()


@dataclass(frozen=True)
class Settings:
    """How a task is run."""

    store: FeatureStore = field(default_factory=FeatureStore)
    seeds: tuple[int, ...] = (0, 1, 2)
    learning_rates: tuple[float, ...] = ()
    """Empty: the task's own."""
    schedule: Schedule = field(default_factory=Schedule)
    options: Mapping[str, str] = field(default_factory=dict)
    """What only some tasks know, such as `trials` or `collar`."""
    device: torch.device = CPU
    """Where heads over frames learn; `run.evaluate` sets it."""
    say: Callable[[str], None] = print
    on_progress: Callable[[str, int, int], None] | None = None

    def pooled(
        self, upstream: Frozen, clips: Sequence[Clip], condition: Condition = CLEAN
    ) -> np.ndarray:
        """Mean vectors of clips under a condition, (N, L, D)."""
        return self.store.pooled(upstream, clips, **self._how(upstream, condition))

    def frames(
        self, upstream: Frozen, clips: Sequence[Clip], condition: Condition = CLEAN
    ) -> FrameFeatures:
        """All frames of clips under a condition."""
        return self.store.frames(upstream, clips, **self._how(upstream, condition))

    def fit(
        self,
        make: Callable[[], Head],
        loss: Callable[[Head, list[int]], torch.Tensor],
        validate: Callable[[Head], float],
        clips: Sequence[Clip],
        learning_rates: tuple[float, ...],
    ) -> Fit[Head]:
        """Heads over the frames of the training `clips` (see `fitting.fit`), on this device.

        `learning_rates` are the task's own; those of the settings go first.
        """
        return fit(
            lambda: make().to(self.device),
            loss,
            validate,
            [round(50 * clip.utterance.seconds) for clip in clips],
            learning_rates=self.learning_rates or learning_rates,
            seeds=self.seeds,
            schedule=self.schedule,
            on_progress=self.say,
        )

    def _how(self, upstream: Frozen, condition: Condition) -> dict[str, Any]:
        report, label = self.on_progress, f"{upstream.name}, {condition.name}"
        return {
            "alter": condition.alter,
            "condition": condition.identity,
            "on_progress": None
            if report is None
            else lambda done, total: report(label, done, total),
        }


@dataclass(frozen=True)
class Scorer:
    """Trained heads of one model on one task.

    Args:
        upstream: the model.
        outcomes: (clips, condition) -> outcome per metric, the first of which counts.
        learning_rate: chosen on the validation part.
        chance: the main metric of a guess.
        per_seed: (clips) -> the main metric of each seed.
    """

    upstream: Frozen
    outcomes: Callable[[Sequence[Clip], Condition], dict[str, Outcome]]
    learning_rate: float
    chance: float
    per_seed: Callable[[Sequence[Clip]], list[float]]


Fitter = Callable[[Frozen, LabelledClips, Settings], Scorer]
