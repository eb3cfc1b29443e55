"""The budget: how large the model may be. One limit or several, each on a cost of its own.

Decision, filling and shrinking ask the budget whether a plan fits and how much room is left; training asks
for expected sparsities. None of them knows what is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from sslim.cost import COSTS, Cost, Widths
from sslim.errors import BudgetError
from sslim.layout import KINDS, Layout
from sslim.plan import PruningPlan


@dataclass(frozen=True)
class Limit:
    """An upper bound on one cost of the backbone."""

    cost: Cost
    limit: float
    dense: float
    """The same cost of the teacher."""

    @property
    def target_sparsity(self) -> float:
        """The share of the teacher's cost that has to go."""
        return 1.0 - self.limit / self.dense

    def expected(self, widths: Widths) -> torch.Tensor:
        """The expected cost, differentiable where the widths are."""
        return torch.as_tensor(self.cost.total(widths))

    def sparsity(self, widths: Widths) -> torch.Tensor:
        """1 - expected / dense (DPHuBERT, section 2.2)."""
        return 1.0 - self.expected(widths) / self.dense

    def unused(self, plan: PruningPlan) -> float:
        """The share of the limit that a plan leaves; negative where it is above the limit."""
        return float((self.limit - self.cost.total(plan.widths)) / self.limit)


@dataclass(frozen=True)
class Budget:
    """Upper bounds that all have to hold.

    None is ever exceeded. With conv channels or FFN units among what may go (the default), at most 1% of
    the tightest is left unused; where whole blocks may go as well, or heads alone, more than that may be, but
    always less than any closed unit would take (`decision.decide`).
    """

    limits: tuple[Limit, ...]

    @classmethod
    def of(cls, limits: Mapping[str, float], plan: PruningPlan, layout: Layout) -> Budget:
        """A budget from the names of counted costs (`cost.COSTS`) -> what is allowed of each.

        Args:
            limits: in the cost's own unit.
            plan: what the teacher keeps of its dense parent.
            layout: the table of the teacher.
        """
        costs = {name: COSTS[name](layout) for name in limits}
        return cls(
            tuple(
                Limit(cost, limits[name], cost.total(plan.widths)) for name, cost in costs.items()
            )
        )

    def unused(self, plan: PruningPlan) -> float:
        """The share of the tightest limit that a plan leaves; negative where one is exceeded."""
        return min(limit.unused(plan) for limit in self.limits)

    def with_room(self, factor: float) -> Budget:
        """The same budget, every limit `factor` times as high."""
        return Budget(
            tuple(replace(limit, limit=int(factor * limit.limit)) for limit in self.limits)
        )

    def check(self, plan: PruningPlan, layout: Layout, kinds: Sequence[str]) -> None:
        """Raises BudgetError, naming the smallest possible size, when pruning `kinds` cannot reach it."""
        smallest = plan.floor(layout.shape, kinds).widths
        for limit in self.limits:
            floor = limit.cost.total(smallest)
            if limit.limit < floor:
                share = 100.0 * floor / limit.dense
                raise BudgetError(
                    f"a budget of {limit.limit:,} {limit.cost.name} cannot be met by pruning "
                    f"{', '.join(kinds)}: the smallest possible is {floor:,} ({share:.1f}% of the "
                    "teacher)",
                    f"raise --params, or allow more unit kinds with --set units={','.join(KINDS)}",
                )

    def described(self) -> str:
        """In words, for people."""
        return " and ".join(f"{limit.limit:,} {limit.cost.name}" for limit in self.limits)
