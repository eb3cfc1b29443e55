"""The two stages as tasks: each owns its models and returns `{"loss": ..., parts}` for a batch.

`DistillationTask` is the recovery stage (a small student, nothing is pruned); `JointTask` adds the gates
and the budget's constraint. The training loop runs either and knows neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sslim.backbone.modeling_sslim import SslimModel
from sslim.distill.losses import distillation_loss
from sslim.errors import ConfigError, TeacherError
from sslim.prune.budget import Budget, Decision, decide
from sslim.prune.gates import GatedModel, Gates, open_probability


def default_layers(depth: int) -> tuple[int, ...]:
    """Layers to map: 0 (the feature projection) and every third of the depth (0, 4, 8, 12 for 12)."""
    return tuple(sorted({0, *(round(depth * third / 3) for third in (1, 2, 3))}))


def check_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """The mapped layers, or the default where none are given.

    Raises:
        ConfigError: a layer does not exist.
    """
    if not layers:
        return default_layers(depth)
    bad = [layer for layer in layers if not 0 <= layer <= depth]
    if bad:
        raise ConfigError(
            f"layers={list(layers)} names layer(s) {bad} but the teacher has {depth}",
            f"give numbers from 0 (feature projection) to {depth}",
        )
    return tuple(sorted(set(layers)))


def normalise(waveforms: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance per row, as the feature extractors of large models do."""
    return F.layer_norm(waveforms, waveforms.shape[-1:], eps=1e-7)


class Projections(nn.Module):
    """Student states to teacher states, started at identity: one map for layer 0, one for all others."""

    def __init__(self, width: int, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.front = _identity(width) if 0 in layers else None
        self.deep = _identity(width)

    def forward(self, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """`states` in the order of `layers`."""
        projected = []
        for layer, state in zip(self.layers, states, strict=True):
            map_ = self.front if layer == 0 and self.front is not None else self.deep
            projected.append(map_(state))
        return projected


def _identity(width: int) -> nn.Linear:
    linear = nn.Linear(width, width)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class DistillationTask(nn.Module):
    """The student learns the teacher's hidden states.

    Args:
        teacher: frozen.
        student: trained.
        layers: mapped layers in DPHuBERT's numbering.
        learning_rate: of weights and projections.
        normalise_waveform: whether the teacher expects normalised waveforms.
        projections: those of an earlier stage, to go on from.
    """

    def __init__(
        self,
        teacher: SslimModel,
        student: SslimModel,
        *,
        layers: Sequence[int],
        learning_rate: float,
        normalise_waveform: bool,
        projections: Projections | None = None,
    ) -> None:
        super().__init__()
        # The teacher is not a submodule: it is not trained, saved or counted.
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.student = student.train().requires_grad_(True)
        self.layers = tuple(layers)
        self.learning_rate = learning_rate
        self.normalise_waveform = normalise_waveform
        width = teacher.config.hidden_size
        self.projections = projections or Projections(width, layers)

    @property
    def teacher(self) -> SslimModel:
        return self._teacher[0]

    def to(self, *args: Any, **kwargs: Any) -> DistillationTask:
        self._teacher[0].to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser, each with its own peak learning rate."""
        weights = [*self.student.parameters(), *self.projections.parameters()]
        return [{"params": weights, "lr": self.learning_rate, "name": "weights"}]

    def begin_update(self, update: int) -> None:
        """Called once before the batches of an update."""

    def student_states(self, waveforms: torch.Tensor) -> list[torch.Tensor]:
        """Student states up to the last mapped layer, in DPHuBERT's numbering."""
        return self.student.distillation_features(waveforms, last_layer=self.layers[-1])

    def forward(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss of one batch of equally long waveforms, (batch, samples)."""
        if self.normalise_waveform:
            waveforms = normalise(waveforms)
        with torch.no_grad():
            target = self.teacher.distillation_features(waveforms, last_layer=self.layers[-1])
        states = self.student_states(waveforms)
        if len(states) != len(target):
            raise TeacherError(
                f"teacher and student return {len(target)} and {len(states)} hidden states",
                "set layerdrop to 0 in the teacher's config.json",
            )
        projected = self.projections([states[layer] for layer in self.layers])
        return distillation_loss(projected, [target[layer] for layer in self.layers])

    def constraint(self) -> dict[str, torch.Tensor]:
        """What is added to the loss once per update; empty: nothing."""
        return {}

    def report(self) -> dict[str, float]:
        """Figures for the log beyond the losses."""
        return {}


class JointTask(DistillationTask):
    """Joint distillation and structured pruning (DPHuBERT, section 2.2).

    L + lambda1 (s - t) + lambda2 (s - t)^2 with the expected sparsity s of the budgeted quantity and a
    target t that rises linearly from 0 over `sparsity_warmup` updates; descent on weights and gates,
    ascent on the multipliers.
    """

    def __init__(
        self,
        teacher: SslimModel,
        student: SslimModel,
        *,
        budget: Budget,
        kinds: Sequence[str],
        gate_learning_rate: float,
        sparsity_warmup: int,
        seed: int,
        **settings: Any,
    ) -> None:
        super().__init__(teacher, student, **settings)
        self.budget = budget
        self.gates = Gates(student, kinds, seed=seed)
        # Holds the same modules again, so it is kept out of this module's own children.
        self._gated = [GatedModel(student, self.gates)]
        self.multipliers = nn.Parameter(torch.zeros(2))
        self.gate_learning_rate = gate_learning_rate
        self.sparsity_warmup = sparsity_warmup
        self.seed = seed
        self.update = 0
        self._noise: torch.Tensor | None = None

    def parameter_groups(self) -> list[dict[str, Any]]:
        rate = self.gate_learning_rate
        return [
            *super().parameter_groups(),
            {"params": [self.gates.log_alpha], "lr": rate, "name": "gates"},
            {"params": [self.multipliers], "lr": rate, "name": "multipliers", "maximize": True},
        ]

    @property
    def gated(self) -> GatedModel:
        """The student under its gates."""
        return self._gated[0]

    def begin_update(self, update: int) -> None:
        self.update = update
        self._noise = self.gates.noise(self.seed, update)

    def set_noise(self, noise: torch.Tensor) -> None:
        """Uses this uniform noise (all units,) until the next update (recorded noise, in tests)."""
        self._noise = noise

    @property
    def target(self) -> float:
        """The sparsity asked for at this update."""
        share = 1.0 if self.sparsity_warmup <= 0 else min(1.0, self.update / self.sparsity_warmup)
        return self.budget.target_sparsity * share

    def student_states(self, waveforms: torch.Tensor) -> list[torch.Tensor]:
        if self._noise is None:
            raise RuntimeError("begin_update has not been called")
        # Gate arithmetic stays in float32: products of small probabilities do not survive bfloat16.
        with torch.autocast(waveforms.device.type, enabled=False):
            values = self.gates.sample(self._noise)
        states: list[torch.Tensor] = self.gated(values, waveforms, last_layer=self.layers[-1])
        return states

    def expected_sparsity(self) -> torch.Tensor:
        """Expected share of the budgeted quantity that is gone, differentiable."""
        return self.budget.sparsity(self.gates.shape, self.gates.expected_widths())

    def constraint(self) -> dict[str, torch.Tensor]:
        sparsity = self.expected_sparsity()
        gap = sparsity - self.target
        loss = self.multipliers[0] * gap + self.multipliers[1] * gap.square()
        return {"loss": loss, "sparsity": sparsity.detach()}

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        opened = self.gates.split(open_probability(self.gates.log_alpha))
        shares: dict[str, list[torch.Tensor]] = {}
        for group in self.gates.groups:
            shares.setdefault(group.kind, []).append(opened[group.name])
        figures = {f"open.{kind}": float(torch.cat(parts).mean()) for kind, parts in shares.items()}
        first, second = self.multipliers.tolist()
        return {"target": self.target, "lambda1": first, "lambda2": second, **figures}

    def decide(self) -> Decision:
        """Which units stay, within the budget."""
        return decide(self.gates, self.budget)

