"""A student under gates: it is pruned while it learns (DPHuBERT, Peng et al. 2023, section 2.2).

It knows the gates, the budget and when to shrink, and nothing of what it is taught.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.reading import Reader, Reading
from sslim.backbone.units import plan_of
from sslim.plan import MACS_SECONDS, PruningPlan
from sslim.prune.budget import Budget
from sslim.prune.decision import Decision, closed_for_good, decide
from sslim.prune.gates import GatedModel, Gates, open_probability
from sslim.prune.surgery import Exchanged, Slicer, cut

WORTH_SHRINKING = 0.05
"""A shrink must save at least this share of the student's MACs: each one costs a recompilation."""


class GatedStudent(nn.Module):
    """A model, its gates, and the constraint that closes them until the budget is met.

    The constraint is lambda1 (s - t) + lambda2 (s - t)^2 for each limit of the budget, with the expected
    sparsity s of the limited quantity and a target t that rises linearly from 0 over `sparsity_warmup`
    updates; descent on weights and gates, ascent on the multipliers.

    Args:
        model: in training mode from here on.
        budget: what the model may cost in the end.
        kinds: kinds of units that have gates.
        normalises: whether the model expects waveforms of zero mean and unit variance.
        gate_learning_rate: of gates and multipliers.
        sparsity_warmup: updates.
        seed: of the gates' starting values and their noise.
        shrink_every: updates between two chances to shrink; 0: none.
        shrink_multiple: sizes are rounded up to multiples of this.
    """

    def __init__(
        self,
        model: SslimModel,
        budget: Budget,
        kinds: Sequence[str],
        *,
        normalises: bool,
        gate_learning_rate: float,
        sparsity_warmup: int,
        seed: int,
        shrink_every: int = 0,
        shrink_multiple: int = 8,
    ) -> None:
        super().__init__()
        self.reader = Reader(model, normalises=normalises).train().requires_grad_(True)
        self.gates = Gates(model, kinds, seed=seed)
        self.gated = GatedModel(model, self.gates)
        self.multipliers = nn.Parameter(torch.zeros(2, len(budget.limits)))
        """lambda1 and lambda2 of each limit of the budget, (2, limits)."""
        self.budget = budget
        self.gate_learning_rate = gate_learning_rate
        self.sparsity_warmup = sparsity_warmup
        self.seed = seed
        self.shrink_every = shrink_every
        self.shrink_multiple = shrink_multiple
        self.shrinks: list[dict[str, int]] = []
        """When the student shrank, and to how many parameters and MACs (of one second)."""
        self.update = 0
        self._noise: torch.Tensor | None = None

    @property
    def model(self) -> SslimModel:
        return self.reader.model

    # --- learning ---

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of the gates and of the multipliers, the latter ascending."""
        rate = self.gate_learning_rate
        return [
            {"params": [self.gates.log_alpha], "lr": rate, "name": "gates"},
            {"params": [self.multipliers], "lr": rate, "name": "multipliers", "maximize": True},
        ]

    def begin_update(self, update: int) -> None:
        self.update = update
        self._noise = self.gates.noise(self.seed, update)

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

    def read(
        self,
        waveforms: torch.Tensor,
        names: Sequence[str],
        masked_frames: torch.Tensor | None = None,
    ) -> Reading:
        """The named states of waveforms, (batch, samples), under the gates of the update at hand."""
        changed = {
            f"model.{name}": tensor for name, tensor in self.gated.changed(self.sample()).items()
        }
        states: Reading = functional_call(self.reader, changed, (waveforms, names, masked_frames))
        return states

    # --- the budget ---

    @property
    def target_sparsities(self) -> list[float]:
        """The sparsity asked for at this update, for each limit of the budget."""
        share = 1.0 if self.sparsity_warmup <= 0 else min(1.0, self.update / self.sparsity_warmup)
        return [limit.target_sparsity * share for limit in self.budget.limits]

    def expected_sparsities(self) -> list[torch.Tensor]:
        """Expected share of each budgeted quantity that is gone, differentiable."""
        widths = self.gates.expected_widths()
        return [limit.sparsity(widths) for limit in self.budget.limits]

    def constraint(self) -> dict[str, torch.Tensor]:
        """The constraint's `loss` and the expected sparsities (DPHuBERT, equation 6)."""
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

    def decide(self) -> Decision:
        """Which units stay, within the budget."""
        return decide(self.gates, self.budget)

    def cut(self, decision: Decision) -> SslimModel:
        """The small model of a decision, the values of its gates folded into its weights."""
        return cut(self.model, decision.plan, self.gated.folded_state(decision.values))

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

    def _named(self, figure: str) -> list[str]:
        """A figure's name for each limit; the first one's, usually the only one's, is the plain name."""
        others = [f"{figure}.{limit.cost.name}" for limit in self.budget.limits[1:]]
        return [figure, *others]

    # --- shrinking ---

    def after_update(self, update: int) -> Sequence[Exchanged]:
        """Removes units that are practically closed for good, now and then, once the target is reached.

        The target sparsity is reached early in the stage; what is closed by then hardly ever opens again,
        so the rest of the stage can run on a model that is physically smaller.
        """
        step = update + 1
        if self.shrink_every <= 0 or step < self.sparsity_warmup or step % self.shrink_every:
            return ()
        with torch.no_grad():
            values = self.sample()
        plan = closed_for_good(self.gates, self.budget, self.shrink_multiple, values)
        shape = self.gates.layout.shape
        if plan.macs(shape) > (1.0 - WORTH_SHRINKING) * self.gates.plan.macs(shape):
            return ()
        exchanged = self.shrink(plan)
        self.shrinks.append(
            {
                "update": step,
                "parameters": plan.parameters(shape),
                "macs_per_second": round(plan.macs(shape) / MACS_SECONDS),
            }
        )
        return exchanged

    def shrink(self, plan: PruningPlan) -> Sequence[Exchanged]:
        """Cuts model and gates to `plan` in mid-training; what was exchanged, for whoever trains it."""
        before, slicer = dict(self.model.named_parameters()), Slicer(self.model, plan)
        gates = self.gates.log_alpha
        index = self._adopt(cut(self.model, plan))
        exchanged: list[Exchanged] = [
            (before[name], weight, partial(slicer, name))
            for name, weight in self.model.named_parameters()
        ]
        return [*exchanged, (gates, self.gates.log_alpha, lambda tensor: tensor[index])]

    def structure(self) -> dict[str, Any]:
        """The plan of the model at hand, and when it shrank."""
        plan = self.gates.plan.to_dict(self.gates.layout.shape)
        return {"plan": plan, "shrinks": self.shrinks}

    def restructure(self, structure: Mapping[str, Any]) -> None:
        """Cuts a fresh student to the `structure` of a saved one."""
        plan = PruningPlan.from_dict(structure["plan"], self.gates.layout.shape)
        if plan != plan_of(self.model):
            self._adopt(cut(self.model, plan))
        self.shrinks = list(structure["shrinks"])

    def _adopt(self, smaller: SslimModel) -> torch.Tensor:
        """Takes a smaller model; the positions of its units among the gates so far."""
        self.gates, index = self.gates.shrunk(smaller)
        self.reader = Reader(smaller, normalises=self.reader.normalises).requires_grad_(True)
        self.gated = GatedModel(smaller, self.gates)
        return index
