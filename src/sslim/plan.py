"""What is kept: the shape of a dense model, and the plan that says which of its units survive.

Pure Python (no torch), because four readers share it: gates write a plan, surgery obeys it, the saved
config carries it, the report draws it. The counting formulas are written once and work on integers
(an exact count) as well as on torch scalars (a differentiable expectation).

Units (DPHuBERT, Peng et al. 2023, section 2.2): conv channels, attention heads, FFN intermediate
units, and whole attention or FFN blocks. The residual width never changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sslim.errors import BudgetError

SAMPLING_RATE = 16_000
"""Samples per second of every supported model."""

MACS_SECONDS = 10.0
"""Length of the utterance that MACs are counted on (attention is quadratic, so a length is needed)."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense backbone: everything a count needs and nothing else."""

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
    extra_parameters: int
    """Parameters outside the rules below that are always kept (the SpecAugment vector)."""

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """Reads the shape from a transformers config (dense, or one of ours)."""
        family = str(config.model_type).removeprefix("sslim-")
        data2vec = family == "data2vec-audio"
        masked = config.mask_time_prob > 0.0 or config.mask_feature_prob > 0.0
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
            extra_parameters=int(config.hidden_size) if masked else 0,
        )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

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
class Widths:
    """How much of each kind is kept: integers for a plan, torch scalars for an expectation.

    `attention` and `ffn` are the (probability of the) presence of each layer's block.
    """

    conv: Sequence[Any]
    heads: Sequence[Any]
    ffn: Sequence[Any]
    attention_block: Sequence[Any]
    ffn_block: Sequence[Any]


def count_parameters(shape: ModelShape, widths: Widths) -> dict[str, Any]:
    """Parameters by part: front_end, projection, positional, attention, ffn, norms, other.

    The sum over the parts equals `sum(p.numel() for p in model.parameters())` of the backbone for
    integer widths, and its expectation for expected widths (independent gates).
    """
    front_end: Any = 0
    incoming: Any = 1
    for index, (channels, kernel) in enumerate(zip(widths.conv, shape.conv_kernels, strict=True)):
        front_end = front_end + incoming * channels * kernel
        if shape.conv_bias:
            front_end = front_end + channels
        if shape.conv_norm == "layer" or index == 0:
            front_end = front_end + 2 * channels
        incoming = channels
    if shape.output_scale:
        front_end = front_end + incoming
    width, head = shape.hidden_size, shape.head_size
    projection = incoming * width + width + (2 * incoming if shape.projection_norm else 0)
    convolution = width * (width // shape.position_groups) * shape.position_kernel + width
    if shape.position_depth > 0:
        positional = shape.position_depth * convolution
    elif shape.position_depth == 0:
        positional = convolution + shape.position_kernel
    else:
        positional = convolution + 2 * width

    attention: Any = 0
    ffn: Any = 0
    wavlm = shape.position_buckets > 0
    per_head = 4 * width * head + 3 * head + (1 if wavlm else 0)
    any_head = False
    for heads, block in zip(widths.heads, widths.attention_block, strict=True):
        present = not (isinstance(heads, int) and (heads == 0 or not block))
        any_head = any_head or present
        shared = width + (8 * head + 8 if wavlm and present else 0)
        attention = attention + (heads * per_head + shared) * block
    for units, block in zip(widths.ffn, widths.ffn_block, strict=True):
        ffn = ffn + (units * (2 * width + 1) + width) * block
    if wavlm and any_head:
        attention = attention + shape.position_buckets * shape.heads
    return {
        "front_end": front_end,
        "projection": projection,
        "positional": positional,
        "attention": attention,
        "ffn": ffn,
        "norms": 2 * width * (2 * shape.layers + 1),
        "other": shape.extra_parameters,
    }


def count_macs(shape: ModelShape, widths: Widths, seconds: float = MACS_SECONDS) -> dict[str, Any]:
    """Multiply-accumulates by part for one utterance of `seconds` (products only, no norms)."""
    frames = shape.frames(round(seconds * SAMPLING_RATE))
    front_end: Any = 0
    incoming: Any = 1
    for channels, kernel, length in zip(widths.conv, shape.conv_kernels, frames, strict=True):
        front_end = front_end + incoming * channels * kernel * length
        incoming = channels
    time, width, head = frames[-1], shape.hidden_size, shape.head_size
    attention: Any = 0
    ffn: Any = 0
    for heads, block in zip(widths.heads, widths.attention_block, strict=True):
        attention = attention + heads * block * (4 * width * head * time + 2 * head * time * time)
    for units, block in zip(widths.ffn, widths.ffn_block, strict=True):
        ffn = ffn + units * block * (2 * width * time)
    return {
        "front_end": front_end,
        "projection": incoming * width * time,
        "positional": max(1, shape.position_depth)
        * width
        * (width // shape.position_groups)
        * shape.position_kernel
        * time,
        "attention": attention,
        "ffn": ffn,
    }


COUNTERS = {"parameters": count_parameters, "macs": count_macs}
"""The quantities a budget can be put on."""


@dataclass(frozen=True)
class LayerPlan:
    """What one encoder layer keeps. `None`: the whole block is gone; `()`: only its output bias is left."""

    heads: tuple[int, ...] | None
    ffn: tuple[int, ...] | None


@dataclass(frozen=True)
class PruningPlan:
    """The kept indices of every layer, in the numbering of the dense model, ascending."""

    conv: tuple[tuple[int, ...], ...]
    layers: tuple[LayerPlan, ...]

    @classmethod
    def dense(cls, shape: ModelShape) -> PruningPlan:
        """The plan that keeps everything."""
        layer = LayerPlan(tuple(range(shape.heads)), tuple(range(shape.intermediate_size)))
        return cls(
            conv=tuple(tuple(range(channels)) for channels in shape.conv_channels),
            layers=(layer,) * shape.layers,
        )

    @classmethod
    def smallest(cls, shape: ModelShape, units: Iterable[str]) -> PruningPlan:
        """The smallest plan that pruning only these unit kinds can reach."""
        kinds = set(units)
        dense = cls.dense(shape)
        layer = dense.layers[0]
        heads = None if "attention_block" in kinds else (() if "head" in kinds else layer.heads)
        ffn = None if "ffn_block" in kinds else (() if "ffn" in kinds else layer.ffn)
        return cls(
            conv=tuple((0,) for _ in dense.conv) if "conv" in kinds else dense.conv,
            layers=(LayerPlan(heads, ffn),) * shape.layers,
        )

    def widths(self) -> Widths:
        """Integer widths for the counting formulas."""
        return Widths(
            conv=[len(kept) for kept in self.conv],
            heads=[len(layer.heads or ()) for layer in self.layers],
            ffn=[len(layer.ffn or ()) for layer in self.layers],
            attention_block=[int(layer.heads is not None) for layer in self.layers],
            ffn_block=[int(layer.ffn is not None) for layer in self.layers],
        )

    def parameters(self, shape: ModelShape) -> int:
        """Exact number of parameters of the backbone that this plan describes."""
        return int(sum(count_parameters(shape, self.widths()).values()))

    def macs(self, shape: ModelShape, seconds: float = MACS_SECONDS) -> int:
        """Multiply-accumulates of one utterance of `seconds`."""
        return int(sum(count_macs(shape, self.widths(), seconds).values()))

    def count(self, shape: ModelShape, quantity: str) -> int:
        """`parameters` or `macs`, whichever the budget is put on."""
        return self.parameters(shape) if quantity == "parameters" else self.macs(shape)

    def validate(self, shape: ModelShape) -> None:
        """Raises BudgetError unless the plan fits the shape and leaves a working front-end."""

        def check(what: str, kept: tuple[int, ...], size: int) -> None:
            ascending = all(a < b for a, b in pairwise(kept))
            if not ascending or (kept and not (0 <= kept[0] and kept[-1] < size)):
                raise BudgetError(
                    f"the plan's {what} must be ascending indices below {size}, got {list(kept)[:8]}",
                    "write the plan again from the model it belongs to",
                )

        if len(self.conv) != len(shape.conv_channels) or len(self.layers) != shape.layers:
            raise BudgetError(
                f"the plan has {len(self.conv)} convolutions and {len(self.layers)} layers, "
                f"the model {len(shape.conv_channels)} and {shape.layers}",
                "use the plan with the model it was made for",
            )
        for index, (kept, size) in enumerate(zip(self.conv, shape.conv_channels, strict=True)):
            check(f"channels of convolution {index}", kept, size)
            if not kept:
                raise BudgetError(
                    f"the plan leaves convolution {index} without any channel",
                    "keep at least one channel in every convolution",
                )
        for index, layer in enumerate(self.layers):
            check(f"heads of layer {index}", layer.heads or (), shape.heads)
            check(f"FFN units of layer {index}", layer.ffn or (), shape.intermediate_size)

    def within(self, other: PruningPlan) -> bool:
        """Whether everything this plan keeps is also kept by `other`."""

        def inside(mine: tuple[int, ...] | None, theirs: tuple[int, ...] | None) -> bool:
            return mine is None or (theirs is not None and set(mine) <= set(theirs))

        return all(inside(a, b) for a, b in zip(self.conv, other.conv, strict=True)) and all(
            inside(a.heads, b.heads) and inside(a.ffn, b.ffn)
            for a, b in zip(self.layers, other.layers, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form: `{"conv": [[...]], "layers": [{"heads": [...] or null, "ffn": [...] or null}]}`."""

        def plain(kept: tuple[int, ...] | None) -> list[int] | None:
            return None if kept is None else list(kept)

        return {
            "conv": [list(kept) for kept in self.conv],
            "layers": [
                {"heads": plain(layer.heads), "ffn": plain(layer.ffn)} for layer in self.layers
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruningPlan:
        """Inverse of `to_dict`."""

        def kept(values: Sequence[int] | None) -> tuple[int, ...] | None:
            return None if values is None else tuple(int(value) for value in values)

        return cls(
            conv=tuple(tuple(int(value) for value in values) for values in data["conv"]),
            layers=tuple(
                LayerPlan(kept(layer["heads"]), kept(layer["ffn"])) for layer in data["layers"]
            ),
        )
