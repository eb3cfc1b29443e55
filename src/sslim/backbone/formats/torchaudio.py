"""torchaudio state dicts, and the files of DPHuBERT and DPWavLM, which use the same names.

A DPHuBERT file is `{"state_dict": ..., "config": ...}`; its config says how much is left of each
part. The reference drops the output bias of a block that lost all heads or units, so there the block is
simply gone; a WavLM that lost its first attention block lost its position bias for good, which a table of
zeros says exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sslim.backbone.families import FAMILIES
from sslim.backbone.formats.checkpoint import (
    Checkpoint,
    as_count,
    as_flag,
    as_list,
    heads_of_width,
    named,
    sizes_from_weights,
)
from sslim.backbone.settings import WHOLE_NUMBERS
from sslim.errors import ConversionError

MARK = "encoder.transformer."


def is_torchaudio(data: Any) -> bool:
    """Whether this is a state dict with torchaudio's names, or a DPHuBERT file."""
    return isinstance(data, dict) and any(
        isinstance(name, str) and name.startswith(MARK) for name in _state(data)
    )


def _state(data: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = data.get("state_dict")
    return inner if isinstance(inner, dict) else data


def dense_name(name: str) -> str:
    """Name in transformers' dense family, from torchaudio's."""
    for old, new in (("encoder.feature_projection.", "feature_projection."), (MARK, "encoder.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def from_torchaudio(data: Mapping[str, Any], path: Path, family: str | None) -> Checkpoint:
    """Translates; see the module's description.

    Raises:
        ConversionError: a size cannot be told, or the family asked for cannot be.
    """
    state = {dense_name(name): tensor for name, tensor in named(_state(data), path).items()}
    config = data.get("config")
    wavlm = any("rel_attn_embed" in name or "gru_rel_pos" in name for name in state)
    # One that has lost all heads is told by its settings.
    wavlm = wavlm or (isinstance(config, dict) and "encoder_remaining_heads" in config)
    found = (
        "wavlm"
        if wavlm
        else family or ("wav2vec2" if "wav2vec2" in path.name.lower() else "hubert")
    )
    if family not in (None, found) or found not in ("hubert", "wav2vec2", "wavlm"):
        raise ConversionError(
            f"{path} holds a {found} model, not {family!r}", "leave the family out"
        )
    notes = () if wavlm or family else (f"taken as {found}: the file does not say which family",)
    if isinstance(config, dict) and "extractor_conv_layer_config" in config:
        return _from_reference(state, config, found, path, notes)
    return _dense(state, found, path, notes)


def _dense(
    state: dict[str, torch.Tensor], family: str, path: Path, notes: tuple[str, ...]
) -> Checkpoint:
    """A plain state dict: everything is told by shapes."""
    head = {
        f"lm_head.{part}": state.pop(f"aux.{part}")
        for part in ("weight", "bias")
        if f"aux.{part}" in state
    }
    settings = sizes_from_weights(state, path)
    const = state.get("encoder.layers.0.attention.gru_rel_pos_const")
    table = state.get("encoder.layers.0.attention.rel_attn_embed.weight")
    ffn = state.get("encoder.layers.0.feed_forward.intermediate_dense.weight")
    if ffn is None:
        raise ConversionError(f"{path} lacks encoder.layers.0.feed_forward", "the file is damaged")
    large = settings["feat_extract_norm"] == "layer"
    settings |= {
        "num_attention_heads": heads_of_width(settings["hidden_size"], path)
        if const is None
        else const.shape[1],
        "intermediate_size": ffn.shape[0],
        "do_stable_layer_norm": large,
        "mask_time_prob": 0.0,
    }
    if table is not None:
        settings |= {"num_buckets": table.shape[0]}
    if head:
        settings |= {"vocab_size": head["lm_head.weight"].shape[0]}
    config = FAMILIES[family].dense_config_class(**settings)
    config.architectures = [FAMILIES[family].dense_class_name("ctc" if head else "")]
    prefix = f"{FAMILIES[family].prefix}." if head else ""
    return Checkpoint(
        config,
        {f"{prefix}{name}": tensor for name, tensor in state.items()} | head,
        large,
        "a torchaudio state dict",
        notes,
    )


def _from_reference(
    state: dict[str, torch.Tensor],
    config: Mapping[str, Any],
    family: str,
    path: Path,
    notes: tuple[str, ...],
) -> Checkpoint:
    """A file of the reference implementation, dense or pruned."""

    def rows(name: str) -> Sequence[Any]:
        return as_list(config[name], name, WHOLE_NUMBERS["num_hidden_layers"][1])

    wide, most = WHOLE_NUMBERS["hidden_size"][1], WHOLE_NUMBERS["num_attention_heads"][1]
    width = as_count(config["encoder_embed_dim"], "encoder_embed_dim", wide)
    depth = as_count(
        config["encoder_num_layers"], "encoder_num_layers", WHOLE_NUMBERS["num_hidden_layers"][1]
    )
    convolutions = [
        tuple(
            as_count(value, "extractor_conv_layer_config", wide)
            for value in as_list(row, "extractor_conv_layer_config", 3)
        )
        for row in rows("extractor_conv_layer_config")
    ]
    channels = [row[0] for row in convolutions]
    ffn = [
        as_count(size, "encoder_ff_interm_features", WHOLE_NUMBERS["intermediate_size"][1])
        for size in rows("encoder_ff_interm_features")
    ]
    if family == "wavlm":
        total = as_count(rows("encoder_total_num_heads")[0], "encoder_total_num_heads", most)
        heads = [
            [
                as_count(head, "encoder_remaining_heads", most)
                for head in as_list(kept, "encoder_remaining_heads", most)
            ]
            for kept in rows("encoder_remaining_heads")
        ]
    else:
        total = width // as_count(config["encoder_head_dim"], "encoder_head_dim", wide)
        heads = [
            list(range(as_count(count, "encoder_num_heads", most)))
            for count in rows("encoder_num_heads")
        ]
    keeps_attention = [
        bool(used and kept) for used, kept in zip(rows("encoder_use_attention"), heads, strict=True)
    ]
    keeps_ffn = [
        bool(used and size)
        for used, size in zip(rows("encoder_use_feed_forward"), ffn, strict=True)
    ]
    # The file does not say how wide the model was before pruning; published models have these sizes.
    dense_channels = 512 if width >= 512 and max(channels) <= 512 else max(channels)
    dense_ffn = max(4 * width, *ffn) if width >= 512 else max(ffn)
    dense = (
        len(set(channels)) == 1
        and all(len(kept) == total for kept in heads)
        and len(set(ffn)) == 1
        and all(keeps_attention)
        and all(keeps_ffn)
    )
    if dense:
        dense_channels, dense_ffn = channels[0], ffn[0]
    scale = state.pop("feature_extractor.dummy_weight", None)
    scaled = scale is not None and not bool((scale == 1).all())
    if scaled and scale is not None:
        state["feature_extractor.output_scale"] = scale
    mode = config["extractor_mode"]
    if mode not in ("group_norm", "layer_norm"):
        raise ValueError("extractor_mode is neither group_norm nor layer_norm")
    settings: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": total,
        "intermediate_size": dense_ffn,
        "conv_dim": [dense_channels] * len(channels),
        "conv_kernel": [row[1] for row in convolutions],
        "conv_stride": [row[2] for row in convolutions],
        "conv_bias": as_flag(config["extractor_conv_bias"], "extractor_conv_bias"),
        "feat_extract_norm": "layer" if mode == "layer_norm" else "group",
        "do_stable_layer_norm": as_flag(
            config["encoder_layer_norm_first"], "encoder_layer_norm_first"
        ),
        "num_conv_pos_embeddings": int(config["encoder_pos_conv_kernel"]),
        "num_conv_pos_embedding_groups": int(config["encoder_pos_conv_groups"]),
        "feat_proj_dropout": float(config["encoder_projection_dropout"]),
        "attention_dropout": float(config["encoder_attention_dropout"]),
        "activation_dropout": float(config["encoder_ff_interm_dropout"]),
        "hidden_dropout": float(config["encoder_dropout"]),
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,
    }
    if family == "wavlm":
        settings |= {
            "num_buckets": int(config["encoder_num_buckets"]),
            "max_bucket_distance": int(config["encoder_max_distance"]),
        }
        _fit_wavlm(state, heads, keeps_attention, settings)
    if any(name.startswith("aux.") for name in state):
        raise ConversionError(
            f"{path} has a head (aux.weight), which DPHuBERT files do not have",
            "remove it from the file",
        )
    if dense and not scaled:
        result = FAMILIES[family].dense_config_class(**settings)
        result.architectures = [FAMILIES[family].dense_class_name()]
    else:
        plan = {
            "conv": [list(range(size)) for size in channels],
            "layers": [
                {
                    "heads": kept if has_attention else None,
                    "ffn": list(range(size)) if has_ffn else None,
                }
                for kept, has_attention, size, has_ffn in zip(
                    heads, keeps_attention, ffn, keeps_ffn, strict=True
                )
            ],
        }
        settings |= {"plan": plan, "conv_output_scale": scaled}
        result = FAMILIES[family].config_class(**settings)
        result.architectures = [FAMILIES[family].model_class().__name__]
    return Checkpoint(
        result,
        state,
        as_flag(config["normalize_waveform"], "normalize_waveform"),
        "a DPHuBERT file",
        notes,
    )


def _fit_wavlm(
    state: dict[str, torch.Tensor],
    heads: list[list[int]],
    keeps_attention: list[bool],
    settings: Mapping[str, Any],
) -> None:
    """Gate constants of kept heads only; a table even where the reference lost it."""
    for layer, (kept, present) in enumerate(zip(heads, keeps_attention, strict=True)):
        name = f"encoder.layers.{layer}.attention.gru_rel_pos_const"
        if present and name in state and state[name].shape[1] != len(kept):
            state[name] = state[name][:, kept]
    table = "encoder.layers.0.attention.rel_attn_embed.weight"
    if any(keeps_attention) and table not in state:
        state[table] = torch.zeros(settings["num_buckets"], settings["num_attention_heads"])
