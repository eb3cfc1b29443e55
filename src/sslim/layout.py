"""One table of a model: its weights over named axes, and everything that follows from it.

An *axis* is a vector of units that can be removed: the channels of a convolution (`conv.3`), the heads or
the whole attention block of a layer (`head.7`, `attention_block.7`), its FFN units or block (`ffn.7`,
`ffn_block.7`), the taps of a positional convolution (`tap.0`). Each dimension of each weight says which
axis it follows. Parameters and multiply-accumulates (`cost`), plans and their floors (`plan`), slicing,
folding of gates and kept statistics (`prune`) are all read off this table. So a new kind of unit is a new
axis and the dimensions that follow it, and no count can differ from the model.

Units are those of DPHuBERT (Peng et al. 2023, section 2.2), and taps. The residual width never changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

SAMPLING_RATE = 16_000
"""Samples per second of every supported model."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense backbone: everything a table needs and nothing else."""

    family: str
    """"hubert", "wavlm", "wav2vec2" or "data2vec-audio"."""
    conv_channels: tuple[int, ...]
    conv_kernels: tuple[int, ...]
    conv_strides: tuple[int, ...]
    conv_bias: bool
    conv_norm: str
    """"group": one GroupNorm after the first convolution; "layer": a LayerNorm after each."""
    projection_norm: bool
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    position_kernel: int
    position_groups: int
    position_depth: int
    """0: one weight-normalised convolution; -1: one convolution behind a BatchNorm; n > 0: n plain ones."""
    position_buckets: int
    """Rows of WavLM's relative-position table, 0 for the other families."""
    output_scale: bool
    """Whether a scale vector follows the front-end (models converted from DPHuBERT files only)."""
    masked_embedding: bool
    """Whether there is a vector that SpecAugment writes into masked frames."""

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """Reads the shape from a transformers config (dense, or one of ours)."""
        family = str(config.model_type).removeprefix("sslim-")
        data2vec = family == "data2vec-audio"
        if data2vec:
            depth = int(config.num_conv_pos_embeddings)
        else:
            depth = -1 if getattr(config, "conv_pos_batch_norm", False) else 0
        return cls(
            family=family,
            conv_channels=tuple(config.conv_dim),
            conv_kernels=tuple(config.conv_kernel),
            conv_strides=tuple(config.conv_stride),
            conv_bias=bool(config.conv_bias),
            conv_norm="layer" if data2vec else str(config.feat_extract_norm),
            projection_norm=bool(getattr(config, "feat_proj_layer_norm", True)),
            hidden_size=int(config.hidden_size),
            layers=int(config.num_hidden_layers),
            heads=int(config.num_attention_heads),
            intermediate_size=int(config.intermediate_size),
            position_kernel=int(
                config.conv_pos_kernel_size if data2vec else config.num_conv_pos_embeddings
            ),
            position_groups=int(config.num_conv_pos_embedding_groups),
            position_depth=depth,
            position_buckets=int(config.num_buckets) if family == "wavlm" else 0,
            output_scale=bool(getattr(config, "conv_output_scale", False)),
            masked_embedding=config.mask_time_prob > 0.0 or config.mask_feature_prob > 0.0,
        )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    @property
    def hop(self) -> int:
        """Samples between two frames (320 for the usual front-end)."""
        return math.prod(self.conv_strides)

    def frames(self, samples: int) -> list[int]:
        """Number of frames after each convolution for `samples` input samples."""
        lengths = []
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            samples = max(0, (samples - kernel) // stride + 1)
            lengths.append(samples)
        return lengths

    @property
    def shortest_input(self) -> int:
        """Fewest samples that still give one frame (400 for the usual front-end)."""
        samples = 1
        for kernel, stride in zip(
            reversed(self.conv_kernels), reversed(self.conv_strides), strict=True
        ):
            samples = (samples - 1) * stride + kernel
        return samples


@dataclass(frozen=True)
class Axis:
    """A vector of units, and what may be done with it."""

    kind: str
    layer: int
    size: int
    """Units in the dense model."""
    at_least: int = 0
    """Units that must stay: a convolution without channels would cut the model in two."""
    inside: str | None = None
    """The axis without which this one is empty: the heads of a block that is gone."""
    rounded: bool = False
    """Whether hardware likes its width to be a multiple of something."""
    open_at_start: float = 0.99
    """Probability of each of its gates to be open when training begins."""
    index_of: str = "layer"
    """What `layer` counts: "layer" of the encoder, or "convolution"."""

    @property
    def name(self) -> str:
        return f"{self.kind}.{self.layer}"


@dataclass(frozen=True)
class Dim:
    """One dimension of a weight: `span` entries for each unit of `axis`, or `span` entries, always."""

    span: int
    axis: str | None = None


@dataclass(frozen=True)
class Weight:
    """One tensor of the model."""

    name: str
    part: str
    """front_end, projection, positional, attention, ffn, norms or other."""
    dims: tuple[Dim, ...]
    present: tuple[tuple[str, ...], ...] = ()
    """Alternatives of axes, all of which must have units for the weight to exist; (): it always does."""
    folds: tuple[str, ...] = ()
    """Axes whose gates scale this weight: along the dimension that follows the axis, or the whole of it."""
    frames: int | None = None
    """Index of the convolution at whose frame rate the weight multiplies; None: it is in no product."""
    layer_norm: bool = False
    """Whether it is the scale of a LayerNorm whose statistics are taken over an axis."""

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that its dimensions follow."""
        return tuple(dim.axis for dim in self.dims if dim.axis is not None)

    @property
    def entries(self) -> int:
        """Numbers in it for one unit of each of its axes."""
        return math.prod(dim.span for dim in self.dims)

    def along(self, axis: str) -> int | None:
        """The dimension that follows `axis`."""
        for number, dim in enumerate(self.dims):
            if dim.axis == axis:
                return number
        return None


@dataclass(frozen=True)
class Product:
    """Multiplications of activations with activations: attention's scores and their application."""

    part: str
    present: tuple[tuple[str, ...], ...]
    axes: tuple[str, ...]
    entries: int
    """Products per frame, per other frame and per unit."""


KINDS: Mapping[str, str] = {
    "conv": "conv channels",
    "head": "attention heads",
    "ffn": "FFN units",
    "attention_block": "attention blocks",
    "ffn_block": "FFN blocks",
    "tap": "positional taps",
}
"""Kinds of units as settings and logs name them, and as people do; the first three are the paper's recipe."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The table of one model."""

    shape: ModelShape
    axes: tuple[Axis, ...]
    """Front to back; gates are laid out in this order."""
    weights: tuple[Weight, ...]
    products: tuple[Product, ...]

    @cached_property
    def axis(self) -> dict[str, Axis]:
        """The axes by name."""
        return {axis.name: axis for axis in self.axes}

    def along(self, axis: str) -> Iterator[tuple[str, int, int]]:
        """(weight, dimension, span) of everything that belongs to the units of an axis."""
        for weight in self.weights:
            dim = weight.along(axis)
            if dim is not None:
                yield weight.name, dim, weight.dims[dim].span

    def folded(self, axis: str) -> Iterator[Weight]:
        """The weights that the gates of an axis scale."""
        return (weight for weight in self.weights if axis in weight.folds)

    def norms(self, axis: str) -> list[str]:
        """LayerNorm modules that take statistics over the units of an axis."""
        return [
            weight.name.rpartition(".")[0]
            for weight in self.weights
            if weight.layer_norm and weight.along(axis) is not None
        ]


# --- the table of the four families ----------------------------------------------------------------


@lru_cache(maxsize=64)
def layout_of(shape: ModelShape) -> Layout:
    """The table of a backbone as `backbone/modeling_sslim.py` builds it."""
    axes: list[Axis] = []
    weights: list[Weight] = []
    products: list[Product] = []
    for index, size in enumerate(shape.conv_channels):
        axes.append(Axis("conv", index, size, at_least=1, rounded=True, index_of="convolution"))
        weights += _convolution(shape, index)
    last = f"conv.{len(shape.conv_channels) - 1}"
    weights += _projection(shape, last)
    for index in range(max(1, shape.position_depth)):
        axes.append(Axis("tap", index, shape.position_kernel, at_least=1, index_of="convolution"))
        weights += _positional(shape, index)
    weights += _norm("encoder.layer_norm", Dim(shape.hidden_size))
    for index in range(shape.layers):
        attention, ffn = f"attention_block.{index}", f"ffn_block.{index}"
        axes += [
            Axis("head", index, shape.heads, inside=attention),
            Axis("attention_block", index, 1),
            Axis(
                "ffn",
                index,
                shape.intermediate_size,
                inside=ffn,
                rounded=True,
                open_at_start=0.5,
            ),
            Axis("ffn_block", index, 1),
        ]
        weights += _attention(shape, index)
        weights += _ffn(shape, index)
        for norm in ("layer_norm", "final_layer_norm"):
            weights += _norm(f"encoder.layers.{index}.{norm}", Dim(shape.hidden_size))
        products.append(
            Product("attention", ((attention,),), (f"head.{index}",), 2 * shape.head_size)
        )
    if shape.position_buckets:
        ways = tuple((f"head.{index}", f"attention_block.{index}") for index in range(shape.layers))
        table = (Dim(shape.position_buckets), Dim(shape.heads))
        weights.append(Weight("encoder.rel_attn_embed.weight", "attention", table, present=ways))
    if shape.masked_embedding:
        weights.append(Weight("masked_spec_embed", "other", (Dim(shape.hidden_size),)))
    return Layout(shape, tuple(axes), tuple(weights), tuple(products))


def _norm(
    name: str, dim: Dim, part: str = "norms", layer_norm: bool = False
) -> tuple[Weight, Weight]:
    return (
        Weight(f"{name}.weight", part, (dim,), layer_norm=layer_norm),
        Weight(f"{name}.bias", part, (dim,)),
    )


def _convolution(shape: ModelShape, index: int) -> Iterator[Weight]:
    prefix, own = f"feature_extractor.conv_layers.{index}", Dim(1, f"conv.{index}")
    before = f"conv.{index - 1}" if index else None
    dims = (own, Dim(1, before), Dim(shape.conv_kernels[index]))
    yield Weight(
        f"{prefix}.conv.weight",
        "front_end",
        dims,
        folds=(before,) if before else (),
        frames=index,
    )
    if shape.conv_bias:
        yield Weight(f"{prefix}.conv.bias", "front_end", (own,))
    if shape.conv_norm == "layer" or index == 0:
        # A GroupNorm has one group per channel: its statistics are each channel's own.
        yield from _norm(f"{prefix}.layer_norm", own, "front_end", shape.conv_norm == "layer")


def _projection(shape: ModelShape, last: str) -> Iterator[Weight]:
    frames = len(shape.conv_channels) - 1
    if shape.output_scale:
        yield Weight("feature_extractor.output_scale", "front_end", (Dim(1, last),))
    if shape.projection_norm:
        yield from _norm("feature_projection.layer_norm", Dim(1, last), "projection", True)
    name, width = "feature_projection.projection", Dim(shape.hidden_size)
    dims = (width, Dim(1, last))
    yield Weight(f"{name}.weight", "projection", dims, folds=(last,), frames=frames)
    yield Weight(f"{name}.bias", "projection", (width,))


def _positional(shape: ModelShape, index: int) -> Iterator[Weight]:
    prefix, width = "encoder.pos_conv_embed", Dim(shape.hidden_size)
    taps, frames = f"tap.{index}", len(shape.conv_channels) - 1
    dims = (width, Dim(shape.hidden_size // shape.position_groups), Dim(1, taps))
    name = f"{prefix}.layers.{index}.conv" if shape.position_depth > 0 else f"{prefix}.conv"
    if shape.position_depth == 0:
        # Weight normalisation has a gain for each tap, which its gate scales.
        gains = (Dim(1), Dim(1), Dim(1, taps))
        factors = f"{name}.parametrizations.weight.original"
        yield Weight(f"{factors}0", "positional", gains, folds=(taps,))
        yield Weight(f"{factors}1", "positional", dims, frames=frames)
    else:
        yield Weight(f"{name}.weight", "positional", dims, folds=(taps,), frames=frames)
    yield Weight(f"{name}.bias", "positional", (width,))
    if shape.position_depth < 0:
        yield from _norm(f"{prefix}.batch_norm", width, "positional")


def _attention(shape: ModelShape, index: int) -> Iterator[Weight]:
    prefix, block, head = (
        f"encoder.layers.{index}.attention",
        f"attention_block.{index}",
        f"head.{index}",
    )
    width, units, there = Dim(shape.hidden_size), Dim(shape.head_size, head), ((block,),)
    frames = len(shape.conv_channels) - 1
    for name in ("q_proj", "k_proj", "v_proj"):
        dims = (units, width)
        yield Weight(f"{prefix}.{name}.weight", "attention", dims, there, frames=frames)
        yield Weight(f"{prefix}.{name}.bias", "attention", (units,), there)
    folds = (head, block)
    yield Weight(
        f"{prefix}.out_proj.weight", "attention", (width, units), there, folds, frames=frames
    )
    yield Weight(f"{prefix}.out_proj.bias", "attention", (width,), there, (block,))
    if shape.position_buckets:
        constants = (Dim(1), Dim(1, head), Dim(1), Dim(1))
        yield Weight(f"{prefix}.gru_rel_pos_const", "attention", constants, there)
        name, any_head = f"{prefix}.gru_rel_pos_linear", ((head, block),)
        yield Weight(f"{name}.weight", "attention", (Dim(8), Dim(shape.head_size)), any_head)
        yield Weight(f"{name}.bias", "attention", (Dim(8),), any_head)


def _ffn(shape: ModelShape, index: int) -> Iterator[Weight]:
    prefix, block, unit = (
        f"encoder.layers.{index}.feed_forward",
        f"ffn_block.{index}",
        f"ffn.{index}",
    )
    width, units, there = Dim(shape.hidden_size), Dim(1, unit), ((block,),)
    frames = len(shape.conv_channels) - 1
    name = f"{prefix}.intermediate_dense"
    yield Weight(f"{name}.weight", "ffn", (units, width), there, frames=frames)
    yield Weight(f"{name}.bias", "ffn", (units,), there)
    name, folds = f"{prefix}.output_dense", (unit, block)
    yield Weight(f"{name}.weight", "ffn", (width, units), there, folds, frames=frames)
    yield Weight(f"{name}.bias", "ffn", (width,), there, (block,))
