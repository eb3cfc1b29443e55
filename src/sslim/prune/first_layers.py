"""A student made of the teacher's first layers, as in DistilHuBERT (Chang et al. 2022).

Nothing is learned about what to keep: it is the student that joint pruning is compared with.
"""

from __future__ import annotations

import bisect
import copy
from dataclasses import replace

from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.units import plan_of, shape_of
from sslim.errors import BudgetError
from sslim.layout import ModelShape, layout_of
from sslim.plan import PruningPlan
from sslim.prune.surgery import cut

SMALLEST_FFN = 0.25
"""A layer keeps at least this share of its FFN; below, one layer less is the better student."""


def first_layers(teacher: SslimModel, limit: int) -> SslimModel:
    """The teacher's first layers, as many as fit `limit` parameters, with the FFN width that fills it.

    Raises:
        BudgetError: not even one layer fits.
    """
    for depth in range(teacher.config.num_hidden_layers, 0, -1):
        model = _cut_off(teacher, depth)
        shape, whole = shape_of(model), plan_of(model)
        widest = max(len(layer.ffn or ()) for layer in whole.layers)
        # Sizes grow with the units, so the first that is too large lies behind all that fit.
        units = bisect.bisect_right(
            range(widest + 1),
            limit,
            key=lambda units: _narrowed(whole, shape, units).parameters(shape),
        )
        if units - 1 >= SMALLEST_FFN * widest:
            return cut(model, _narrowed(whole, shape, units - 1)).eval()
    raise BudgetError(
        f"not even one layer of the teacher fits {limit:,} parameters", "ask for a larger student"
    )


def _cut_off(teacher: SslimModel, depth: int) -> SslimModel:
    """The teacher's first `depth` layers, whatever has been pruned from them already."""
    kept = plan_of(teacher).kept
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = depth
    shape = replace(shape_of(teacher), layers=depth)
    plan = PruningPlan({name: kept[name] for name in layout_of(shape).axis})
    config.plan = plan.to_dict(shape)
    model = type(teacher)(config)
    state = teacher.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()}, strict=True)
    return model


def _narrowed(plan: PruningPlan, shape: ModelShape, units: int) -> PruningPlan:
    """The plan with at most `units` FFN units in each layer, the first of those that are left."""
    ffn = [axis.name for axis in layout_of(shape).axes if axis.kind == "ffn"]
    return plan.replaced({name: plan.kept[name][:units] for name in ffn}, shape)
