"""What every reader of a foreign format returns, and what the formats' models have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sslim.backbone.families import unusable
from sslim.errors import ConversionError

STRIDES = {10: 5, 3: 2, 2: 2}
"""Stride of a convolution of the usual front-end by its kernel; weights do not show strides."""
HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}
"""Heads by width of the published models; weights do not show heads."""


@dataclass(frozen=True)
class Checkpoint:
    """A foreign checkpoint, translated."""

    config: Any
    """A configuration of transformers (dense) or of ours (pruned)."""
    state: dict[str, torch.Tensor]
    """Weights under the names of the dense family."""
    normalise: bool
    """Whether waveforms must be brought to zero mean and unit variance."""
    source_format: str
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    """Further files of the folder (a vocabulary): name -> text."""


def as_flag(value: Any, name: str) -> bool:
    """A value that must be true or false (or 1 or 0); the text "false" would count as true.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, (bool, int)) and value in (0, 1):
        return bool(value)
    raise ValueError(f"{name} is {_shown(value)}, neither true nor false")


def as_count(value: Any, name: str, most: int) -> int:
    """A size that a file states, before anything of that size is made.

    Raises:
        ValueError: it is no whole number from 0 to `most`.
    """
    if isinstance(value, (int, float)) and 0 <= value <= most and int(value) == value:
        return int(value)
    raise ValueError(f"{name} is {_shown(value)}, not a whole number up to {most}")


def as_list(value: Any, name: str, most: int) -> Sequence[Any]:
    """A list that a file states, of bounded length: a pickle can name one list a million times.

    Raises:
        ValueError: it is no list, or longer.
    """
    if isinstance(value, (list, tuple)) and len(value) <= most:
        return value
    raise ValueError(f"{name} is {_shown(value)}, not a list of up to {most}")


def _shown(value: Any) -> str:
    """A value in a message; of what holds others, the kind: a pickle's lists can be endless."""
    plain = isinstance(value, (str, int, float)) or value is None
    return repr(value)[:40] if plain else f"a {type(value).__name__}"


def named(weights: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """Weights by name.

    Raises:
        ConversionError: one has no name.
    """
    nameless = [name for name in weights if not isinstance(name, str)]
    if nameless:
        raise ConversionError(
            f"{path} holds a weight whose name is {_shown(nameless[0])}",
            "the file is damaged, or not what it seems",
        )
    return dict(weights)


def sizes_from_weights(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """Settings of a transformers configuration that the shapes of the weights tell.

    Args:
        state: weights under the names of the dense family in transformers, without a head's prefix.

    Raises:
        ConversionError: a weight that tells a size is missing, or a weight is none.
    """
    for name, tensor in state.items():
        problem = unusable(tensor)
        if problem:
            raise ConversionError(
                f"{path}: the weight {name} {problem}", "the file is damaged; download it again"
            )

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise ConversionError(
                f"{path} lacks the weight {name}", "the file is damaged or incomplete"
            )
        return state[name].shape

    pattern = re.compile(r"feature_extractor\.conv_layers\.(\d+)\.conv\.weight")
    count = 1 + max((int(m[1]) for name in state if (m := pattern.fullmatch(name))), default=-1)
    convolutions = [
        shape(f"feature_extractor.conv_layers.{index}.conv.weight") for index in range(count)
    ]
    if not convolutions:
        raise ConversionError(
            f"{path} has no convolutional front-end", "give a checkpoint of a whole model"
        )
    width = shape("feature_projection.projection.weight")[0]
    layers = {int(name.split(".")[2]) for name in state if name.startswith("encoder.layers.")}
    kernels = [size[2] for size in convolutions]
    unknown = [kernel for kernel in kernels if kernel not in STRIDES]
    if unknown:
        raise ConversionError(
            f"{path} has a convolution of kernel {unknown[0]}, whose stride is not known",
            "sslim knows the front-end with kernels 10, 3 and 2",
        )
    settings: dict[str, Any] = {
        "conv_dim": [size[0] for size in convolutions],
        "conv_kernel": kernels,
        "conv_stride": [STRIDES[kernel] for kernel in kernels],
        "conv_bias": "feature_extractor.conv_layers.0.conv.bias" in state,
        "hidden_size": width,
        "num_hidden_layers": 1 + max(layers, default=-1),
    }
    if "feature_extractor.conv_layers.1.layer_norm.weight" in state:
        settings["feat_extract_norm"] = "layer"
    else:
        settings["feat_extract_norm"] = "group"
    stacked = "encoder.pos_conv_embed.layers.0.conv.weight"
    if stacked in state:
        depth = sum(
            re.fullmatch(r"encoder\.pos_conv_embed\.layers\.\d+\.conv\.weight", n) is not None
            for n in state
        )
        settings |= {
            "num_conv_pos_embeddings": depth,
            "conv_pos_kernel_size": shape(stacked)[2],
            "num_conv_pos_embedding_groups": width // shape(stacked)[1],
        }
    else:
        direction = next(
            (
                name
                for name in (
                    "encoder.pos_conv_embed.conv.weight_v",
                    "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
                )
                if name in state
            ),
            "encoder.pos_conv_embed.conv.weight_v",
        )
        settings |= {
            "num_conv_pos_embeddings": shape(direction)[2],
            "num_conv_pos_embedding_groups": width // shape(direction)[1],
        }
    return settings


def heads_of_width(width: int, path: Path) -> int:
    """Heads of a published model of this width.

    Raises:
        ConversionError: the width is not that of a published model, nor a multiple of 64.
    """
    if width in HEADS:
        return HEADS[width]
    if width % 64:
        raise ConversionError(
            f"{path} does not say how many attention heads it has (width {width})",
            "convert it from a format that carries its configuration",
        )
    return width // 64
