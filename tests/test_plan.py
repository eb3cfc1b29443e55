"""Plans and counts: round trips, exact sizes of published shapes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Data2VecAudioConfig, HubertConfig, Wav2Vec2Config, WavLMConfig

from sslim.backbone.families import family_of, our_config
from sslim.cost import macs
from sslim.errors import BudgetError
from sslim.layout import ModelShape, layout_of
from sslim.plan import PruningPlan
from tests.models import CASES, tiny_config

LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}
XLARGE = LARGE | {
    "hidden_size": 1280,
    "num_hidden_layers": 48,
    "intermediate_size": 5120,
}
DATA2VEC_LARGE = {
    name: value
    for name, value in LARGE.items()
    if name not in ("feat_extract_norm", "do_stable_layer_norm", "conv_bias")
}
PUBLISHED = {
    "hubert-base": (HubertConfig(), 94_371_712),
    "hubert-large": (HubertConfig(**LARGE), None),
    "hubert-xlarge": (HubertConfig(**XLARGE), None),
    "wavlm-base": (WavLMConfig(), None),
    "wavlm-large": (WavLMConfig(**LARGE), None),
    "wav2vec2-base": (Wav2Vec2Config(), None),
    "wav2vec2-xlarge": (Wav2Vec2Config(**XLARGE), None),
    "data2vec-base": (Data2VecAudioConfig(), None),
    "data2vec-large": (Data2VecAudioConfig(**DATA2VEC_LARGE), None),
}


def kept(size: int, at_least: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(0, size - 1), min_size=at_least).map(lambda s: tuple(sorted(s)))


@st.composite
def plans(draw: st.DrawFn, shape: ModelShape) -> PruningPlan:
    drawn = {axis.name: draw(kept(axis.size, axis.at_least)) for axis in layout_of(shape).axes}
    return PruningPlan.dense(shape).replaced(drawn, shape)


TINY = ModelShape.from_config(tiny_config("wavlm"))


@given(plans(TINY))
def test_a_plan_survives_json(plan: PruningPlan) -> None:
    import json

    plan.validate(TINY)
    assert PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict(TINY))), TINY) == plan
    assert plan.within(PruningPlan.dense(TINY))


@pytest.mark.parametrize(("family", "size"), CASES)
@given(data=st.data())
def test_the_count_is_the_model_built_from_the_plan(
    family: str, size: str, data: st.DataObject
) -> None:
    config = tiny_config(family, size)
    shape = ModelShape.from_config(config)
    plan = data.draw(plans(shape))
    with torch.device("meta"):
        model = family_of(config).model_class()(our_config(config, plan.to_dict(shape)))
    assert plan.parameters(shape) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_are_counted_exactly(name: str) -> None:
    config, known = PUBLISHED[name]
    shape = ModelShape.from_config(config)
    with torch.device("meta"):
        model = family_of(config).model_class()(our_config(config))
    count = sum(weight.numel() for weight in model.parameters())
    assert PruningPlan.dense(shape).parameters(shape) == count
    assert known is None or count == known
    assert shape.shortest_input == 400


def test_macs_of_hubert_base_are_where_the_field_sees_them() -> None:
    """Ten seconds: a third in the front-end, most of the rest in attention and FFN."""
    shape = ModelShape.from_config(HubertConfig())
    parts = macs(layout_of(shape)).by_part(PruningPlan.dense(shape).widths)
    total = sum(parts.values())
    shares = {name: part / total for name, part in parts.items()}
    assert shares["front_end"] == pytest.approx(0.33, abs=0.01)
    assert shares["attention"] == pytest.approx(0.25, abs=0.01)
    assert shares["ffn"] == pytest.approx(0.38, abs=0.01)
    assert shares["positional"] == pytest.approx(0.03, abs=0.005)


def test_the_first_form_is_what_is_written_where_it_says_all() -> None:
    """Folders travel: what version 0.1 reads is written as it wrote it."""
    plan = PruningPlan.dense(TINY).replaced({"ffn_block.1": (), "head.2": ()}, TINY)
    every = list(range(TINY.heads)), list(range(TINY.intermediate_size))
    assert plan.to_dict(TINY) == {
        "conv": [list(range(size)) for size in TINY.conv_channels],
        "layers": [
            {"heads": every[0], "ffn": every[1]},
            {"heads": every[0], "ffn": None},
            {"heads": [], "ffn": every[1]},
        ],
    }


def test_other_axes_are_written_where_they_are_not_whole() -> None:
    dense = PruningPlan.dense(TINY)
    plan = dense.replaced({"tap.0": (1, 2, 7)}, TINY)
    assert plan.to_dict(TINY) == dense.to_dict(TINY) | {"axes": {"tap.0": [1, 2, 7]}}
    assert PruningPlan.from_dict(plan.to_dict(TINY), TINY) == plan
    assert PruningPlan.from_dict(dense.to_dict(TINY), TINY).kept["tap.0"] == tuple(range(8))


def test_an_axis_is_said_once() -> None:
    data = PruningPlan.dense(TINY).to_dict(TINY) | {"axes": {"conv.0": [1, 2]}}
    with pytest.raises(ValueError, match="twice"):
        PruningPlan.from_dict(data, TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: {**plan, "conv": plan["conv"][:-1]}, "6 convolutions"),
        (lambda plan: {**plan, "conv": [[], *plan["conv"][1:]]}, "keeps 0 units of conv.0"),
        (lambda plan: {**plan, "conv": [[1, 0], *plan["conv"][1:]]}, "ascending"),
        (
            lambda plan: {**plan, "layers": [{"heads": [99], "ffn": []}, *plan["layers"][1:]]},
            "head.0",
        ),
        (lambda plan: {**plan, "axes": {"wing.0": [1]}}, "same axes: wing.0"),
        (lambda plan: {**plan, "axes": {"tap.1": [1]}}, "same axes: tap.1"),
        (lambda plan: {**plan, "axes": {"tap.0": []}}, "keeps 0 units of tap.0"),
        (lambda plan: {**plan, "axes": {"tap.0": [0, 8]}}, "below 8"),
    ],
)
def test_plans_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        PruningPlan.from_dict(change(PruningPlan.dense(TINY).to_dict(TINY)), TINY).validate(TINY)
