"""Which units stay: at the end of the joint stage, and while the student shrinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from sslim.plan import PruningPlan
from sslim.prune.budget import Budget
from sslim.prune.gates import Gates, open_probability, soft_value

SLACK = 0.01
"""The share of the budget that may stay unused before the threshold moves."""

UNDECIDED = (0.05, 0.95)
"""A gate whose open probability lies between has not settled."""

CLOSED = 1e-2
"""A gate whose open probability is below counts as closed for good.

Short runs never get further: a gate that has closed sees no gradient but the constraint's.
"""

ROOM = 1.05
"""A shrunk student keeps at least this multiple of the budget, so that the decision can still fill it."""


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
    """Per axis, the units left after closing the round(n - sum of open probabilities) smallest.

    With `shift` 0 this is the reference's decision; a shift moves every gate's logit by the same amount,
    so undecided axes give way first and settled ones hardly move.
    """
    opened: dict[str, list[int]] = {}
    for axis, log_alpha in zip(
        gates.axes, gates.log_alpha.detach().cpu().split(gates.sizes), strict=True
    ):
        size = len(log_alpha)
        expected = float(open_probability(log_alpha.double() + shift).sum())
        closed = min(round(size - expected), size - axis.at_least)
        order = torch.argsort(soft_value(log_alpha), stable=True)
        opened[axis.name] = sorted(order[closed:].tolist())
    return opened


def plan_with(gates: Gates, opened: Mapping[str, Sequence[int]]) -> PruningPlan:
    """The plan that keeps these units of each gated axis, and all that no gate stands before."""
    now = gates.plan.kept
    kept = {name: tuple(now[name][unit] for unit in units) for name, units in opened.items()}
    return gates.plan.replaced(kept, gates.layout.shape)


def decide(gates: Gates, budget: Budget) -> Decision:
    """Which units stay (DPHuBERT, section 2.2; Louizos et al. 2018, equation 13 for the values).

    The gates' own decision stands where it meets the budget (never above, at most 1% below). Otherwise
    one global threshold moves: the largest shift of all logits that fits is found by bisection, and the
    room that is left is filled with the most open of the closed units until 99.9% is used or no closed unit
    fits. Units are never traded for others that fill the room better: what the gates learned decides, so
    where units are coarse (heads or blocks alone) more than 1% may stay unused.
    """
    opened, shift = open_units(gates), 0.0
    if not 0.0 <= budget.unused(plan_with(gates, opened)) <= SLACK:
        low, high = -40.0, 40.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            fits = budget.unused(plan_with(gates, open_units(gates, middle))) >= 0.0
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
    for axis in gates.axes:
        probability = parts[axis.name]
        keep = max(int((probability > CLOSED).sum()), axis.at_least)
        if axis.rounded:
            keep = min(len(probability), -(-keep // multiple) * multiple)
        order = torch.argsort(probability, descending=True, stable=True)
        opened[axis.name] = sorted(order[:keep].tolist())
    return plan_with(gates, _fill(gates, opened, budget.with_room(ROOM)))


def _fill(gates: Gates, opened: Mapping[str, list[int]], budget: Budget) -> dict[str, list[int]]:
    """Opens closed units, the most open ones first, while they fit and the slack is not yet reached."""
    closed: list[tuple[float, str, int]] = []
    logits = gates.split(gates.log_alpha.detach())
    for name, units in opened.items():
        rest = set(range(len(logits[name]))) - set(units)
        closed += [(-float(logits[name][unit]), name, unit) for unit in rest]
    filled = {name: list(units) for name, units in opened.items()}
    unused = budget.unused(plan_with(gates, filled))
    refused: set[str] = set()
    for _, name, unit in sorted(closed):
        if unused <= SLACK / 10:
            break
        if name in refused:  # every unit of an axis costs the same, and never less than before
            continue
        filled[name] = sorted([*filled[name], unit])
        left = budget.unused(plan_with(gates, filled))
        if left >= 0.0:
            unused = left
        else:
            filled[name].remove(unit)
            refused.add(name)
    return filled
