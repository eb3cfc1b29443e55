"""The budget: how large the model may be, as a constraint in training and as a decision at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from sslim.backbone.units import kept_by_group, plan_from_groups
from sslim.errors import BudgetError
from sslim.plan import COUNTERS, ModelShape, PruningPlan, Widths
from sslim.prune.gates import Gates, open_probability, soft_value

SLACK = 0.01
"""The result is never above the budget, and with channels or FFN units at most this share below it. Heads
alone and whole blocks are coarse: there it may be further below, by less than any closed unit would take."""
UNDECIDED = (0.05, 0.95)
"""A gate whose open probability lies between has not settled."""

CLOSED = 1e-2
"""A gate whose open probability is below counts as closed for good.

Short runs never get further: a gate that has closed sees no gradient but the constraint's.
"""


@dataclass(frozen=True)
class Budget:
    """An upper bound on parameters or MACs of the backbone.

    It is never exceeded. With conv channels or FFN units among what may go (the default), at most 1% of it is
    left unused; where whole blocks may go as well, or heads alone, more than that may be, but always less
    than any closed unit would take (`decide`).
    """

    quantity: str
    """"parameters" or "macs" (of one utterance of 10 s)."""
    limit: int
    dense: int
    """The same count for the teacher."""

    @property
    def target_sparsity(self) -> float:
        return 1.0 - self.limit / self.dense

    def expected(self, shape: ModelShape, widths: Widths) -> torch.Tensor:
        """The expected count, differentiable where the widths are."""
        total = sum(COUNTERS[self.quantity](shape, widths).values())
        return torch.as_tensor(total)

    def sparsity(self, shape: ModelShape, widths: Widths) -> torch.Tensor:
        """1 - expected / dense (DPHuBERT, section 2.2)."""
        return 1.0 - self.expected(shape, widths) / self.dense

    def check(self, plan: PruningPlan, shape: ModelShape, kinds: tuple[str, ...]) -> None:
        """Raises BudgetError, naming the smallest possible size, when pruning `kinds` cannot reach it."""
        floor = plan_floor(plan, shape, kinds).count(shape, self.quantity)
        if self.limit < floor:
            share = 100.0 * floor / self.dense
            raise BudgetError(
                f"a budget of {self.limit:,} {self.quantity} cannot be met by pruning "
                f"{', '.join(kinds)}: the smallest possible is {floor:,} ({share:.1f}% of the teacher)",
                "raise --params, or allow more unit kinds with --set units=conv,head,ffn,"
                "attention_block,ffn_block",
            )


def plan_floor(plan: PruningPlan, shape: ModelShape, kinds: tuple[str, ...]) -> PruningPlan:
    """The smallest plan within `plan` that pruning only `kinds` can reach."""
    smallest = PruningPlan.smallest(shape, kinds)
    kept: dict[str, tuple[int, ...]] = {}
    for index, channels in enumerate(plan.conv):
        kept[f"conv.{index}"] = channels[:1] if "conv" in kinds else channels
    for index, layer in enumerate(smallest.layers):
        for kind, units in (("head", layer.heads), ("ffn", layer.ffn)):
            block = f"{'attention' if kind == 'head' else 'ffn'}_block"
            if block in kinds:
                kept[f"{block}.{index}"] = ()
            elif kind in kinds:
                kept[f"{kind}.{index}"] = units or ()
    return plan_from_groups(plan, kept)


@dataclass(frozen=True)
class Decision:
    """What the gates decided: the plan, each unit's value, and how sure they were."""

    plan: PruningPlan
    values: torch.Tensor
    """(all units,): zero for closed units, the soft value for kept ones."""
    undecided: int
    """Units whose gate had not settled and whose fate the threshold decided."""
    shift: float
    """How far the threshold had to move, in units of log_alpha; 0 where the gates met the budget."""


def open_units(gates: Gates, shift: float = 0.0) -> dict[str, list[int]]:
    """Per group, the units left after closing the round(n - sum of open probabilities) smallest.

    With `shift` 0 this is the reference's decision; a shift moves every gate's logit by the same amount,
    so undecided groups give way first and settled ones hardly move.
    """
    opened: dict[str, list[int]] = {}
    for group, log_alpha in zip(
        gates.groups, gates.log_alpha.detach().cpu().split(gates.sizes), strict=True
    ):
        expected = float(open_probability(log_alpha.double() + shift).sum())
        closed = round(group.size - expected)
        if group.kind == "conv":  # a convolution without channels would cut the model in two
            closed = min(closed, group.size - 1)
        order = torch.argsort(soft_value(log_alpha), stable=True)
        opened[group.name] = sorted(order[closed:].tolist())
    return opened


def plan_with(gates: Gates, opened: Mapping[str, Sequence[int]]) -> PruningPlan:
    """The plan that keeps these units of each gated group, and all that no gate stands before."""
    now = kept_by_group(gates.plan)
    kept = {name: tuple(now[name][unit] for unit in units) for name, units in opened.items()}
    return plan_from_groups(gates.plan, kept)


def decide(gates: Gates, budget: Budget) -> Decision:
    """Which units stay (DPHuBERT, section 2.2; Louizos et al. 2018, equation 13 for the values).

    The gates' own decision stands where it meets the budget (never above, at most 1% below). Otherwise
    one global threshold moves: the largest shift of all logits that fits is found by bisection, and the
    room that is left is filled with the most open of the closed units until 99.9% is used or no closed unit
    fits. Units are never traded for others that fill the room better: what the gates learned decides, so
    where units are coarse (heads or blocks alone) more than 1% may stay unused.
    """

    def size(opened: dict[str, list[int]]) -> int:
        return plan_with(gates, opened).count(gates.shape, budget.quantity)

    opened, shift = open_units(gates), 0.0
    if not budget.limit * (1.0 - SLACK) <= size(opened) <= budget.limit:
        low, high = -40.0, 40.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            fits = size(open_units(gates, middle)) <= budget.limit
            low, high = (middle, high) if fits else (low, middle)
        shift = low
        opened = _fill(gates, open_units(gates, low), budget)
    values = torch.zeros_like(gates.log_alpha.detach())
    parts = gates.split(values)
    soft = gates.split(soft_value(gates.log_alpha.detach()))
    for name, units in opened.items():
        parts[name][units] = soft[name][units]
    probability = open_probability(gates.log_alpha.detach())
    undecided = int(((probability > UNDECIDED[0]) & (probability < UNDECIDED[1])).sum())
    return Decision(plan_with(gates, opened), values, undecided, shift)


ROOM = 1.05
"""A shrunk student keeps at least this multiple of the budget, so that the decision can still fill it."""


def closed_for_good(
    gates: Gates, budget: Budget, multiple: int, values: torch.Tensor
) -> PruningPlan:
    """The plan without the units whose open probability is practically zero.

    A unit that is open by the gate `values` (all units,) of the update at hand stays, so that the cut changes
    nothing about this update's loss.
    Kept sizes are rounded up to `multiple` (heads and blocks excepted) with the most open of the closed
    units: products of such sizes are faster on most hardware, and nothing is lost by keeping them. Where the
    expected sparsity has overshot, the most open of the closed units stay as well: the budget is the
    user's, and what is removed cannot come back.
    """
    opened: dict[str, list[int]] = {}
    probabilities = open_probability(gates.log_alpha.detach())
    probabilities = torch.where(values > 0, torch.ones_like(probabilities), probabilities)
    parts = gates.split(probabilities.cpu())
    for group in gates.groups:
        probability = parts[group.name]
        keep = int((probability > CLOSED).sum())
        if group.kind in ("conv", "ffn") and (keep or group.kind == "conv"):
            keep = min(group.size, max(1, -(-keep // multiple)) * multiple)
        order = torch.argsort(probability, descending=True, stable=True)
        opened[group.name] = sorted(order[:keep].tolist())
    room = Budget(budget.quantity, int(ROOM * budget.limit), budget.dense)
    return plan_with(gates, _fill(gates, opened, room))


def _fill(gates: Gates, opened: Mapping[str, list[int]], budget: Budget) -> dict[str, list[int]]:
    """Opens closed units, the most open ones first, while they fit and the slack is not yet reached."""

    def size(opened: dict[str, list[int]]) -> int:
        return plan_with(gates, opened).count(gates.shape, budget.quantity)

    closed: list[tuple[float, str, int]] = []
    logits = gates.split(gates.log_alpha.detach())
    for name, units in opened.items():
        rest = set(range(len(logits[name]))) - set(units)
        closed += [(-float(logits[name][unit]), name, unit) for unit in rest]
    filled = {name: list(units) for name, units in opened.items()}
    current = size(filled)
    refused: set[str] = set()
    for _, name, unit in sorted(closed):
        if current >= budget.limit * (1.0 - SLACK / 10):
            break
        if name in refused:  # every unit of a group costs the same, and never less than before
            continue
        filled[name] = sorted([*filled[name], unit])
        larger = size(filled)
        if larger <= budget.limit:
            current = larger
        else:
            filled[name].remove(unit)
            refused.add(name)
    return filled
