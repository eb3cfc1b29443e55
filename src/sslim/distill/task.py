"""The two stages as tasks: each owns its models and returns `{"loss": ..., parts}` for a batch.

`DistillationTask` is the recovery stage (a small student, nothing is pruned); `JointTask` adds the gates
and the budget's constraint. The training loop runs either and knows neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.units import plan_of
from sslim.backbone.waveforms import normalise
from sslim.distill.cache import TargetCache
from sslim.distill.losses import distillation_loss
from sslim.errors import ConfigError
from sslim.plan import MACS_SECONDS, PruningPlan
from sslim.prune.budget import Budget
from sslim.prune.decision import Decision, closed_for_good, decide
from sslim.prune.gates import GatedModel, Gates, open_probability
from sslim.prune.surgery import cut, slice_state

WORTH_SHRINKING = 0.05
"""A shrink must save at least this share of the student's MACs: each one costs a recompilation."""


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
        cache: where the teacher's states are kept; None: they are computed every time.
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
        cache: TargetCache | None = None,
    ) -> None:
        super().__init__()
        self.cache = cache
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

    def after_update(self, update: int, optimiser: torch.optim.Optimizer) -> bool:
        """Called once after the optimiser's step; True where parameters were exchanged."""
        return False

    def structure(self) -> dict[str, Any]:
        """What a checkpoint must say so that `restructure` can make the tensors it holds fit."""
        return {}

    def restructure(self, structure: Mapping[str, Any]) -> None:
        """Brings a fresh task to the structure of a checkpoint, before its tensors are loaded."""

    def student_states(self, waveforms: torch.Tensor) -> list[torch.Tensor]:
        """Student states up to the last mapped layer, in DPHuBERT's numbering."""
        return self.student.distillation_features(waveforms, last_layer=self.layers[-1])

    def forward(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss of one batch of equally long waveforms, (batch, samples)."""
        if self.normalise_waveform:
            waveforms = normalise(waveforms)
        targets = self.targets(waveforms)
        states = self.student_states(waveforms)
        projected = self.projections([states[layer] for layer in self.layers])
        return distillation_loss(projected, targets)

    @torch.no_grad()
    def targets(self, waveforms: torch.Tensor) -> list[torch.Tensor]:
        """The teacher's states of the mapped layers."""

        def compute() -> list[torch.Tensor]:
            states = self.teacher.distillation_features(waveforms, last_layer=self.layers[-1])
            return [states[layer] for layer in self.layers]

        return compute() if self.cache is None else self.cache.targets(waveforms, compute)

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
        shrink_every: int = 0,
        shrink_multiple: int = 8,
        **settings: Any,
    ) -> None:
        super().__init__(teacher, student, **settings)
        self.shrink_every = shrink_every
        self.shrink_multiple = shrink_multiple
        self.budget = budget
        self.gates = Gates(student, kinds, seed=seed)
        # Holds the same modules again, so it is kept out of this module's own children.
        self._gated = [GatedModel(student, self.gates)]
        self.shrinks: list[dict[str, int]] = []
        """When the student shrank, and to how many parameters and MACs (of one second)."""
        self.multipliers = nn.Parameter(torch.zeros(2, len(budget.limits)))
        """lambda1 and lambda2 of each limit of the budget, (2, limits)."""
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

    @property
    def target_sparsities(self) -> list[float]:
        """The sparsity asked for at this update, for each limit of the budget."""
        share = 1.0 if self.sparsity_warmup <= 0 else min(1.0, self.update / self.sparsity_warmup)
        return [limit.target_sparsity * share for limit in self.budget.limits]

    def sample(self) -> torch.Tensor:
        """Gate values (all units,) of the update at hand.

        Raises:
            RuntimeError: `begin_update` has not been called.
        """
        if self._noise is None:
            raise RuntimeError("begin_update has not been called")
        # Gate arithmetic stays in float32: products of small probabilities do not survive bfloat16.
        with torch.autocast(self._noise.device.type, enabled=False):
            return self.gates.sample(self._noise)

    def student_states(self, waveforms: torch.Tensor) -> list[torch.Tensor]:
        states: list[torch.Tensor] = self.gated(
            self.sample(), waveforms, last_layer=self.layers[-1]
        )
        return states

    def expected_sparsities(self) -> list[torch.Tensor]:
        """Expected share of each budgeted quantity that is gone, differentiable."""
        widths = self.gates.expected_widths()
        return [limit.sparsity(widths) for limit in self.budget.limits]

    def constraint(self) -> dict[str, torch.Tensor]:
        sparsities = self.expected_sparsities()
        loss = torch.zeros_like(sparsities[0])
        for number, (sparsity, target) in enumerate(
            zip(sparsities, self.target_sparsities, strict=True)
        ):
            first, second = self.multipliers[:, number]
            gap = sparsity - target
            loss = loss + (first * gap + second * gap.square())
        figures = {
            name: sparsity.detach()
            for name, sparsity in zip(self._named("sparsity"), sparsities, strict=True)
        }
        return {"loss": loss, **figures}

    def _named(self, figure: str) -> list[str]:
        """A figure's name for each limit; the first one's, usually the only one's, is the plain name."""
        others = [f"{figure}.{limit.cost.name}" for limit in self.budget.limits[1:]]
        return [figure, *others]

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        opened = self.gates.split(open_probability(self.gates.log_alpha))
        shares: dict[str, list[torch.Tensor]] = {}
        for axis in self.gates.axes:
            shares.setdefault(axis.kind, []).append(opened[axis.name])
        figures = {f"open.{kind}": float(torch.cat(parts).mean()) for kind, parts in shares.items()}
        first, second = self.multipliers.tolist()
        for figure, values in (
            ("target", self.target_sparsities),
            ("lambda1", first),
            ("lambda2", second),
        ):
            figures |= dict(zip(self._named(figure), values, strict=True))
        return {"shrinks": float(len(self.shrinks)), **figures}

    def structure(self) -> dict[str, Any]:
        return {"plan": plan_of(self.student).to_dict(), "shrinks": self.shrinks}

    def restructure(self, structure: Mapping[str, Any]) -> None:
        plan = PruningPlan.from_dict(structure["plan"])
        if plan != plan_of(self.student):
            self._adopt(cut(self.student, plan))
        self.shrinks = list(structure["shrinks"])

    def after_update(self, update: int, optimiser: torch.optim.Optimizer) -> bool:
        """Removes units that are practically closed for good, now and then, once the target is reached.

        The target sparsity is reached early in the stage; what is closed by then hardly ever opens again,
        so the rest of the stage can run on a model that is physically smaller.
        """
        step = update + 1
        if self.shrink_every <= 0 or step < self.sparsity_warmup or step % self.shrink_every:
            return False
        with torch.no_grad():
            values = self.sample()
        plan = closed_for_good(self.gates, self.budget, self.shrink_multiple, values)
        now = self.gates.plan.count(self.gates.layout.shape, "macs")
        if plan.count(self.gates.layout.shape, "macs") > (1.0 - WORTH_SHRINKING) * now:
            return False
        self.shrink(plan, optimiser)
        shape = self.gates.layout.shape
        self.shrinks.append(
            {
                "update": step,
                "parameters": plan.parameters(shape),
                "macs_per_second": round(plan.macs(shape) / MACS_SECONDS),
            }
        )
        return True

    def shrink(self, plan: PruningPlan, optimiser: torch.optim.Optimizer) -> None:
        """Cuts the student to `plan` in mid-training: weights, gates and optimiser moments together."""
        before = dict(self.student.named_parameters())
        moments = {name: optimiser.state.pop(weight, {}) for name, weight in before.items()}
        gate_moments = optimiser.state.pop(self.gates.log_alpha, {})
        sliced: dict[str, dict[str, torch.Tensor]] = {}
        for part in {part for state in moments.values() for part in state}:
            tensors = {name: state[part] for name, state in moments.items() if part in state}
            if part != "step":
                tensors = slice_state(self.student, plan, tensors)
            for name, tensor in tensors.items():
                sliced.setdefault(name, {})[part] = tensor
        index = self._adopt(cut(self.student, plan))
        for group, fresh in zip(optimiser.param_groups, self.parameter_groups(), strict=True):
            group["params"] = fresh["params"]
        for name, weight in self.student.named_parameters():
            if sliced.get(name):
                optimiser.state[weight] = sliced[name]
        if gate_moments:
            optimiser.state[self.gates.log_alpha] = {
                part: tensor if part == "step" else tensor[index]
                for part, tensor in gate_moments.items()
            }

    def _adopt(self, smaller: SslimModel) -> torch.Tensor:
        self.gates, index = self.gates.shrunk(smaller)
        self.student = smaller.requires_grad_(True)
        self._gated = [GatedModel(self.student, self.gates)]
        return index

    def decide(self) -> Decision:
        """Which units stay, within the budget."""
        return decide(self.gates, self.budget)
