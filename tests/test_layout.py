"""The table is the model: names, shapes, counts of every weight, for each family, size and random plan."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from sslim.backbone.families import family_of, our_config
from sslim.cost import macs, parameters
from sslim.layout import KINDS, Layout, ModelShape, layout_of
from sslim.plan import PruningPlan
from tests.models import ALL_CASES, CASES, POSITIONAL_CASES, tiny_config
from tests.test_plan import kept, plans


def shapes(layout: Layout, widths: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight that the table says there is."""
    found = {}
    for weight in layout.weights:
        there = not weight.present or any(
            all(widths[axis] for axis in way) for way in weight.present
        )
        shape = tuple(dim.span * (widths[dim.axis] if dim.axis else 1) for dim in weight.dims)
        if there and all(shape):
            found[weight.name] = shape
    return found


@pytest.mark.parametrize(("family", "size"), ALL_CASES)
@given(data=st.data())
def test_the_table_names_every_weight_of_the_model_built_from_a_plan(
    family: str, size: str, data: st.DataObject
) -> None:
    config = tiny_config(family, size)
    shape = ModelShape.from_config(config)
    plan = data.draw(plans(shape))
    with torch.device("meta"):
        model = family_of(config).model_class()(our_config(config, plan.to_dict(shape)))
    built = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    layout = layout_of(shape)
    assert shapes(layout, plan.widths) == built
    total = sum(weight.numel() for weight in model.parameters())
    assert parameters(layout).total(plan.widths) == total
    assert sum(parameters(layout).by_part(plan.widths).values()) == total


def test_the_list_of_kinds_is_the_table_s() -> None:
    layouts = [layout_of(ModelShape.from_config(tiny_config(*case))) for case in CASES]
    assert {axis.kind for layout in layouts for axis in layout.axes} == set(KINDS)


@pytest.mark.parametrize(("family", "size"), CASES)
def test_macs_are_products_times_frames(family: str, size: str) -> None:
    """Counted by hooks on a forward pass, attention's two products by hand."""
    config = tiny_config(family, size)
    model = family_of(config).model_class()(our_config(config)).eval()
    shape = ModelShape.from_config(config)
    counted = 0

    def count(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal counted
        weight = module.weight
        frames = output.numel() // weight.shape[0]
        counted += weight.numel() * frames

    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.Linear):
            # WavLM's position gates are no products that grow with the model: eight outputs per head.
            if module.weight.shape[0] == 8 and family == "wavlm":
                continue
            module.register_forward_hook(count)
    seconds = 0.5
    with torch.no_grad():
        model.distillation_features(torch.randn(1, 8000))
    frames = shape.frames(8000)[-1]
    counted += shape.layers * 2 * shape.hidden_size * frames**2
    assert macs(layout_of(shape), seconds).total(PruningPlan.dense(shape).widths) == counted


@pytest.mark.parametrize(("family", "size"), POSITIONAL_CASES)
@given(data=st.data())
def test_taps_that_are_gone_are_not_multiplied(family: str, size: str, data: st.DataObject) -> None:
    """What torch does, counted by its operators: an even kernel that is whole computes a frame too many."""
    config = tiny_config(family, size)
    shape = ModelShape.from_config(config)
    taps = [axis for axis in layout_of(shape).axes if axis.kind == "tap"]
    drawn = {axis.name: data.draw(kept(axis.size, axis.at_least)) for axis in taps}
    plan = PruningPlan.dense(shape).replaced(drawn, shape)
    with torch.device("meta"):
        model: Any = family_of(config).model_class()(our_config(config, plan.to_dict(shape)))
        with FlopCounterMode(display=False) as counter:
            model.eval().encoder.pos_conv_embed(torch.randn(1, 24, shape.hidden_size))
    extra = sum(
        shape.hidden_size * (shape.hidden_size // shape.position_groups) * axis.size
        for axis in taps
        if len(drawn[axis.name]) == axis.size and axis.size % 2 == 0
    )
    frames = shape.frames(16_000)[-1]
    counted = macs(layout_of(shape), 1.0).by_part(plan.widths)["positional"]
    assert counter.get_total_flops() == 2 * (counted // frames * 24 + extra)


@pytest.mark.parametrize(("family", "size"), CASES)
def test_an_expectation_between_plans_is_between_their_counts(family: str, size: str) -> None:
    """Widths may be any numbers: integers and torch scalars give the same, halves lie in between."""
    shape = ModelShape.from_config(tiny_config(family, size))
    layout = layout_of(shape)
    whole = PruningPlan.dense(shape).widths
    least = PruningPlan.dense(shape).floor(shape, ("conv", "head", "ffn")).widths
    for cost in (parameters(layout), macs(layout, 1.0)):
        as_tensors = {name: torch.tensor(float(width)) for name, width in whole.items()}
        assert float(cost.total(as_tensors)) == pytest.approx(cost.total(whole), rel=1e-6)
        middle = {name: torch.tensor((whole[name] + least[name]) / 2.0) for name in whole}
        assert cost.total(least) < float(cost.total(middle)) < cost.total(whole)


def test_counts_are_exact_far_beyond_floats() -> None:
    shape = ModelShape.from_config(tiny_config("hubert", "base"))
    cost = parameters(layout_of(shape))
    widths = {name: 10**12 for name in PruningPlan.dense(shape).widths}
    exact = cost.total(widths)
    assert isinstance(exact, int)
    assert exact == sum(
        Fraction(term.coefficient) * Fraction(10**12) ** len(term.axes) for term in cost.terms
    )
