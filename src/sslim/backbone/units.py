"""What a model is, in the words of its table: the shape of its dense parent, and what it keeps of it."""

from __future__ import annotations

from sslim.backbone.modeling_sslim import SslimModel
from sslim.layout import Layout, ModelShape, layout_of
from sslim.plan import PruningPlan


def shape_of(model: SslimModel) -> ModelShape:
    """Sizes of the dense model that `model` is, or was cut from."""
    return ModelShape.from_config(model.config)


def table_of(model: SslimModel) -> Layout:
    """The table of the dense model that `model` is, or was cut from."""
    return layout_of(shape_of(model))


def plan_of(model: SslimModel) -> PruningPlan:
    """What `model` keeps of its dense parent."""
    plan, shape = model.config.plan, shape_of(model)
    return PruningPlan.dense(shape) if plan is None else PruningPlan.from_dict(plan, shape)
