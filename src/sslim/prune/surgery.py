"""The cut: a model and a plan in, a physically smaller model out.

Surgery does not know gates: any criterion can write a plan. Whatever scale the kept units should
carry must already be folded into the weights; slicing then changes nothing (the exactness contract).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn

from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.units import plan_of, shape_of, table_of
from sslim.errors import BudgetError
from sslim.plan import PruningPlan

Exchanged = tuple[nn.Parameter, nn.Parameter, Callable[[torch.Tensor], torch.Tensor]]
"""A parameter, the smaller one that took its place, and what cuts anything of the old one's shape alike."""


def _rows(positions: torch.Tensor, span: int) -> torch.Tensor:
    if span == 1:
        return positions
    return (positions[:, None] * span + torch.arange(span, device=positions.device)).flatten()


def positions_in(now: PruningPlan, plan: PruningPlan) -> dict[str, list[int]]:
    """Axis -> positions, within the units kept by `now`, of those that `plan` keeps."""
    found: dict[str, list[int]] = {}
    for name, kept in now.kept.items():
        where = {index: position for position, index in enumerate(kept)}
        found[name] = [where[index] for index in plan.kept[name]]
    return found


class Slicer:
    """Cuts tensors of a model's shapes to a smaller plan: its weights, or an optimiser's moments of them."""

    def __init__(self, model: SslimModel, plan: PruningPlan) -> None:
        layout = table_of(model)
        self._rows: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for name, positions in positions_in(plan_of(model), plan).items():
            index = torch.tensor(positions, dtype=torch.long)
            for weight, dim, span in layout.along(name):
                self._rows.setdefault(weight, []).append((dim, _rows(index, span)))

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What is left of a tensor that has the name and the shape of one of the model's weights."""
        for dim, rows in self._rows.get(name, ()):
            tensor = tensor.index_select(dim, rows.to(tensor.device))
        return tensor


def cut(
    model: SslimModel, plan: PruningPlan, state: Mapping[str, torch.Tensor] | None = None
) -> SslimModel:
    """Returns a new model that holds only what `plan` keeps.

    Args:
        model: dense, or already cut by a plan that keeps at least as much.
        plan: kept indices in the numbering of the dense model.
        state: weights to cut instead of the model's own (gates folded, say).

    Raises:
        BudgetError: the plan does not fit, or asks for units the model no longer has.
    """
    shape = shape_of(model)
    plan.validate(shape)
    if not plan.within(plan_of(model)):
        raise BudgetError(
            "the plan keeps units that the model no longer has",
            "cut from the model it was made for",
        )
    config = copy.deepcopy(model.config)
    config.plan = plan.to_dict(shape)
    reference = next(model.parameters())
    with torch.random.fork_rng(devices=[]):  # building initialises weights; the run's noise stays
        smaller = type(model)(config)
    torch.nn.Module.to(smaller, device=reference.device, dtype=reference.dtype)
    wanted = smaller.state_dict()
    state, slicer = model.state_dict() if state is None else state, Slicer(model, plan)
    # Weights of removed blocks have no place in the smaller model; everything else must fit.
    smaller.load_state_dict({name: slicer(name, state[name]) for name in wanted}, strict=True)
    smaller.train(model.training)
    return smaller
