"""The reference implementation's own file, for programs that carry its model code.

`{"state_dict": ..., "config": ...}` under torchaudio's names, as `sslim convert` reads it. Its classes
cannot say everything that ours can: they drop the output bias of a block whose heads or units are all gone,
and WavLM's position bias with the first attention block. Such a block is written with one head or unit of
zeros, which computes the same. What cannot be said at all is refused with the reason.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from sslim.backbone.families import build
from sslim.backbone.formats import read_checkpoint
from sslim.backbone.formats.torchaudio import MARK
from sslim.backbone.loaded import LoadedModel
from sslim.backbone.units import plan_of, table_of
from sslim.errors import ExportError
from sslim.layout import KINDS

GATES = (
    "extractor_prune_conv_channels",
    "encoder_prune_attention_heads",
    "encoder_prune_attention_layer",
    "encoder_prune_feed_forward_intermediate",
    "encoder_prune_feed_forward_layer",
)
"""Switches of the reference that are off in a finished model."""


def save_dphubert(loaded: LoadedModel, out: Path) -> None:
    """Writes the backbone of `loaded` as the reference saves its final model, then reads it back.

    Raises:
        ExportError: the reference's classes cannot hold this model, or the file reads back differently.
        OSError: `out` cannot be written; what is left of it there is the caller's to remove.
    """
    _refuse_what_does_not_fit(loaded)
    state = {_reference_name(name): tensor for name, tensor in _weights(loaded).items()}
    # The format is torch.save's; plain tensors, numbers and lists, so it opens with weights_only=True.
    # Through memory, because torch's own writer does not tell a full disk from a defect.
    held = io.BytesIO()
    torch.save({"state_dict": state, "config": _settings(loaded)}, held)
    out.write_bytes(held.getbuffer())
    _read_back(loaded, out)


def _refuse_what_does_not_fit(loaded: LoadedModel) -> None:
    config, axes = loaded.model.config, table_of(loaded.model).axis
    fewer = [
        name for name, kept in plan_of(loaded.model).others.items() if len(kept) < axes[name].size
    ]
    reason = ""
    if loaded.family == "data2vec-audio":
        reason = "it knows no data2vec-audio"
    elif getattr(config, "conv_pos_batch_norm", False):
        reason = "it has no batch norm in the positional convolution"
    elif not getattr(config, "feat_proj_layer_norm", True):
        reason = "its feature projection always has a norm"
    elif {config.hidden_act, config.feat_extract_activation} != {"gelu"}:
        reason = "its activation is always gelu"
    elif config.layer_norm_eps != 1e-5:
        reason = f"its norms have an epsilon of 1e-5, not {config.layer_norm_eps:g}"
    elif fewer:
        reason = f"it always has all {KINDS[axes[fewer[0]].kind]}"
    if reason:
        raise ExportError(
            f"{loaded.source} cannot become a DPHuBERT file exactly: {reason}",
            "export it as onnx",
        )


def _weights(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Weights under the names of the dense family, as the reference has them."""
    model: Any = loaded.model
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    state.pop("masked_spec_embed", None)
    weight = "encoder.pos_conv_embed.conv.parametrizations.weight.original"
    for number, letter in enumerate("gv"):
        state[f"encoder.pos_conv_embed.conv.weight_{letter}"] = state.pop(f"{weight}{number}")
    table = state.pop("encoder.rel_attn_embed.weight", None)
    if table is None and loaded.family == "wavlm" and _heads(loaded, 0):
        table = torch.zeros(model.config.num_buckets, model.config.num_attention_heads)
    if table is not None:
        state["encoder.layers.0.attention.rel_attn_embed.weight"] = table
    scale = state.pop("feature_extractor.output_scale", None)
    width = model.feature_projection.layer_norm.weight.numel()
    state["feature_extractor.dummy_weight"] = torch.ones(width) if scale is None else scale
    for index, layer in enumerate(model.encoder.layers):
        prefix = f"encoder.layers.{index}"
        heads, units = _heads(loaded, index), _units(layer)
        if heads and (layer.attention is None or not layer.attention.heads):
            state |= _no_attention(model.config, f"{prefix}.attention", loaded.family, state)
        if units and not layer.feed_forward.units:
            width = model.config.hidden_size
            state |= _zeros(f"{prefix}.feed_forward.intermediate_dense", 1, width)
            state[f"{prefix}.feed_forward.output_dense.weight"] = torch.zeros(width, 1)
        name = f"{prefix}.attention.gru_rel_pos_const"
        if name in state:  # the reference keeps a constant for heads that are gone
            whole = torch.ones(1, model.config.num_attention_heads, 1, 1)
            whole[:, heads] = state[name]
            state[name] = whole
    return state


def _heads(loaded: LoadedModel, index: int) -> list[int]:
    """Heads that the file has in a layer: those kept, or one of zeros where something hangs on the block."""
    encoder: Any = loaded.model.encoder
    attention = encoder.layers[index].attention
    if attention is None:
        holds_table = index == 0 and encoder.rel_attn_embed is not None
        return [0] if holds_table else []
    return list(attention.heads) or [0]


def _units(layer: Any) -> int:
    """FFN units that the file has in a layer, as `_heads`."""
    return 0 if layer.feed_forward is None else layer.feed_forward.units or 1


def _zeros(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.zeros(rows, columns), f"{name}.bias": torch.zeros(rows)}


def _no_attention(
    config: Any, prefix: str, family: str, state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """One head of zeros, under the output bias that the block has."""
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    made: dict[str, torch.Tensor] = {}
    for name in ("k_proj", "v_proj", "q_proj"):
        made |= _zeros(f"{prefix}.{name}", size, width)
    made |= _zeros(f"{prefix}.out_proj", width, size)
    made[f"{prefix}.out_proj.bias"] = state.get(f"{prefix}.out_proj.bias", torch.zeros(width))
    if family == "wavlm":
        made |= _zeros(f"{prefix}.gru_rel_pos_linear", 8, size)
        made[f"{prefix}.gru_rel_pos_const"] = torch.ones(1, 1, 1, 1)
    return made


def _reference_name(name: str) -> str:
    if name.startswith("feature_projection."):
        return f"encoder.{name}"
    if name.startswith("encoder."):
        return MARK + name.removeprefix("encoder.")
    return name


def _settings(loaded: LoadedModel) -> dict[str, Any]:
    """The arguments of the reference's `wav2vec2_model` or `wavlm_model`."""
    model: Any = loaded.model
    config = model.config
    layers = list(model.encoder.layers)
    heads = [_heads(loaded, index) for index in range(len(layers))]
    units = [_units(layer) for layer in layers]
    settings: dict[str, Any] = {
        "extractor_mode": "layer_norm" if config.feat_extract_norm == "layer" else "group_norm",
        "extractor_conv_layer_config": [
            [layer.conv.out_channels, layer.conv.kernel_size[0], layer.conv.stride[0]]
            for layer in model.feature_extractor.conv_layers
        ],
        "extractor_conv_bias": bool(config.conv_bias),
        "encoder_embed_dim": config.hidden_size,
        "encoder_projection_dropout": float(config.feat_proj_dropout),
        "encoder_pos_conv_kernel": config.num_conv_pos_embeddings,
        "encoder_pos_conv_groups": config.num_conv_pos_embedding_groups,
        "encoder_num_layers": len(layers),
        "encoder_use_attention": [bool(kept) for kept in heads],
        "encoder_use_feed_forward": [bool(size) for size in units],
        "encoder_attention_dropout": float(config.attention_dropout),
        "encoder_ff_interm_features": units,
        "encoder_ff_interm_dropout": float(config.activation_dropout),
        "encoder_dropout": float(config.hidden_dropout),
        "encoder_layer_norm_first": bool(getattr(config, "do_stable_layer_norm", False)),
        "encoder_layer_drop": 0.0,
        "aux_num_out": None,
        "normalize_waveform": loaded.normalise,
    }
    if loaded.family == "wavlm":
        settings |= {
            "encoder_total_num_heads": [config.num_attention_heads] * len(layers),
            "encoder_remaining_heads": heads,
            "encoder_num_buckets": config.num_buckets,
            "encoder_max_distance": config.max_bucket_distance,
        }
    else:
        settings |= {
            "encoder_num_heads": [len(kept) for kept in heads],
            "encoder_head_dim": config.hidden_size // config.num_attention_heads,
        }
    return settings | dict.fromkeys(GATES, False)


@torch.no_grad()
def _read_back(loaded: LoadedModel, file: Path) -> None:
    """The written file, through the reader of `sslim convert`, computes what the model computes."""
    waveform = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    ours = loaded.model.distillation_features(waveform)
    if not all(states.isfinite().all() for states in ours):
        raise ExportError(
            f"{loaded.source} gives NaN or infinity", "check its weights; it cannot be exported"
        )
    family = loaded.family if loaded.family != "wavlm" else None
    checkpoint = read_checkpoint(file, family=family)
    again: Any = build(checkpoint.config, checkpoint.state, "", str(file))
    theirs = again.distillation_features(waveform)
    # A tensor's maximum is NaN where one value is; Python's max() would drop it.
    differences = [(x - y).abs().max() for x, y in zip(ours, theirs, strict=True)]
    worst = float(torch.stack(differences).max())
    if not worst < 1e-4:
        raise ExportError(
            f"the DPHuBERT file of {loaded.source} reads back with a difference of {worst:.1e}",
            "export it as onnx, and report this",
        )
