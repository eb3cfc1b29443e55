"""The table of units: what can be removed from a backbone, who computes it and who reads it.

One `UnitGroup` per vector of units. Its *producers* are the rows that compute a unit, its *consumers*
the columns that read it. Gates scale consumers; surgery slices both; neither knows a family.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sslim.backbone.modeling_sslim import Attention, FeedForward, SslimModel
from sslim.plan import LayerPlan, ModelShape, PruningPlan

KINDS = ("conv", "head", "ffn", "attention_block", "ffn_block")
"""Unit kinds; the first three are the paper's recipe."""


@dataclass(frozen=True)
class Slice:
    """Part of one weight that belongs to a unit: `span` consecutive entries along `dim`.

    `dim` is None where the whole tensor belongs to the (only) unit of a block.
    """

    weight: str
    dim: int | None
    span: int = 1


@dataclass(frozen=True)
class UnitGroup:
    """Units of one kind in one place, and the weights that are theirs."""

    kind: str
    layer: int
    size: int
    """Units in the model as it is now (all of them in a dense model)."""
    producers: tuple[Slice, ...]
    consumers: tuple[Slice, ...]
    norms: tuple[str, ...] = ()
    """LayerNorm modules that take statistics over these channels."""

    @property
    def name(self) -> str:
        return f"{self.kind}.{self.layer}"


def shape_of(model: SslimModel) -> ModelShape:
    """Sizes of the dense model that `model` is, or was cut from."""
    return ModelShape.from_config(model.config)


def plan_of(model: SslimModel) -> PruningPlan:
    """What `model` keeps of its dense parent."""
    plan = model.config.plan
    return PruningPlan.dense(shape_of(model)) if plan is None else PruningPlan.from_dict(plan)


def unit_groups(model: SslimModel, kinds: Iterable[str] = KINDS) -> list[UnitGroup]:
    """All groups of the given kinds that still have units, front to back."""
    wanted = set(kinds)
    groups: list[UnitGroup] = []
    convolutions: list[Any] = list(model.feature_extractor.conv_layers)
    for index, layer in enumerate(convolutions):
        prefix = f"feature_extractor.conv_layers.{index}"
        last = index == len(convolutions) - 1
        producers = [Slice(f"{prefix}.conv.weight", 0)]
        norms = []
        if layer.conv.bias is not None:
            producers.append(Slice(f"{prefix}.conv.bias", 0))
        if layer.norm != "none":
            producers += [Slice(f"{prefix}.layer_norm.{part}", 0) for part in ("weight", "bias")]
        if layer.norm == "layer":
            norms.append(f"{prefix}.layer_norm")
        if last:
            if model.feature_extractor.output_scale is not None:
                producers.append(Slice("feature_extractor.output_scale", 0))
            if model.feature_projection.layer_norm is not None:
                norm = "feature_projection.layer_norm"
                producers += [Slice(f"{norm}.{part}", 0) for part in ("weight", "bias")]
                norms.append(norm)
            consumer = "feature_projection.projection.weight"
        else:
            consumer = f"feature_extractor.conv_layers.{index + 1}.conv.weight"
        groups.append(
            UnitGroup(
                "conv",
                index,
                layer.conv.out_channels,
                tuple(producers),
                (Slice(consumer, 1),),
                tuple(norms),
            )
        )
    encoder_layers: list[Any] = list(model.encoder.layers)
    for index, layer in enumerate(encoder_layers):
        groups += _attention_groups(f"encoder.layers.{index}.attention", index, layer.attention)
        groups += _ffn_groups(f"encoder.layers.{index}.feed_forward", index, layer.feed_forward)
    return [group for group in groups if group.kind in wanted and group.size > 0]


def _block(kind: str, index: int, output: str, constant: bool) -> UnitGroup:
    weights = [f"{output}.bias"] if constant else [f"{output}.weight", f"{output}.bias"]
    return UnitGroup(kind, index, 1, (), tuple(Slice(weight, None) for weight in weights))


def _attention_groups(prefix: str, index: int, attention: Attention | None) -> list[UnitGroup]:
    if attention is None:
        return []
    heads, head_size = len(attention.heads), attention.head_size
    producers = [
        Slice(f"{prefix}.{name}_proj.{part}", 0, head_size)
        for name in ("q", "k", "v")
        for part in ("weight", "bias")
    ]
    if attention.gated_position:
        producers.append(Slice(f"{prefix}.gru_rel_pos_const", 1))
    consumers = (Slice(f"{prefix}.out_proj.weight", 1, head_size),)
    return [
        UnitGroup("head", index, heads, tuple(producers), consumers),
        _block("attention_block", index, f"{prefix}.out_proj", heads == 0),
    ]


def _ffn_groups(prefix: str, index: int, ffn: FeedForward | None) -> list[UnitGroup]:
    if ffn is None:
        return []
    producers = tuple(
        Slice(f"{prefix}.intermediate_dense.{part}", 0) for part in ("weight", "bias")
    )
    consumers = (Slice(f"{prefix}.output_dense.weight", 1),)
    return [
        UnitGroup("ffn", index, ffn.units, producers, consumers),
        _block("ffn_block", index, f"{prefix}.output_dense", ffn.units == 0),
    ]


def kept_by_group(plan: PruningPlan) -> dict[str, tuple[int, ...]]:
    """The plan as group name -> kept indices; a removed block keeps `()` of its one unit."""
    kept: dict[str, tuple[int, ...]] = {}
    for index, channels in enumerate(plan.conv):
        kept[f"conv.{index}"] = channels
    for index, layer in enumerate(plan.layers):
        kept[f"head.{index}"] = layer.heads or ()
        kept[f"ffn.{index}"] = layer.ffn or ()
        kept[f"attention_block.{index}"] = () if layer.heads is None else (0,)
        kept[f"ffn_block.{index}"] = () if layer.ffn is None else (0,)
    return kept


def plan_from_groups(base: PruningPlan, kept: dict[str, tuple[int, ...]]) -> PruningPlan:
    """`base` with the groups in `kept` replaced; indices in `kept` are those of the dense model."""

    def block(
        index: int, block_kind: str, unit_kind: str, now: tuple[int, ...] | None
    ) -> tuple[int, ...] | None:
        if now is None or not kept.get(f"{block_kind}.{index}", (0,)):
            return None
        return kept.get(f"{unit_kind}.{index}", now)

    return PruningPlan(
        conv=tuple(kept.get(f"conv.{index}", now) for index, now in enumerate(base.conv)),
        layers=tuple(
            LayerPlan(
                block(index, "attention_block", "head", layer.heads),
                block(index, "ffn_block", "ffn", layer.ffn),
            )
            for index, layer in enumerate(base.layers)
        ),
    )
