"""fairseq's HuBERT, wav2vec 2.0 and data2vec-audio, and WavLM's own release, which uses the same names.

Pre-training parts (quantiser, prediction heads) have no place in a backbone; they are known by name and
left out. A fine-tuned file becomes a model with a CTC head.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sslim.backbone.families import FAMILIES
from sslim.backbone.formats.checkpoint import (
    Checkpoint,
    as_flag,
    heads_of_width,
    named,
    sizes_from_weights,
)
from sslim.backbone.formats.reading import StandIn
from sslim.errors import ConversionError

FINE_TUNED = "w2v_encoder.w2v_model."
PRETRAINING = re.compile(
    r"(quantizer|input_quantizer|project_q|project_inp|final_proj|target_glu|_ema|ema)\b.*|label_embs_concat"
)
"""Weights of heads that only pre-training uses."""

_CONV, _LAYER = r"feature_extractor\.conv_layers\.(\d+)", r"encoder\.layers\.(\d+)"
_PART = r"\.(weight|bias)"
RULES = (
    (_CONV + r"\.0" + _PART, r"feature_extractor.conv_layers.\1.conv.\2"),
    (_CONV + r"\.2(?:\.1)?" + _PART, r"feature_extractor.conv_layers.\1.layer_norm.\2"),
    (r"layer_norm" + _PART, r"feature_projection.layer_norm.\1"),
    (r"post_extract_proj" + _PART, r"feature_projection.projection.\1"),
    (r"mask_emb", "masked_spec_embed"),
    (r"encoder\.pos_conv\.0\.(weight_g|weight_v|bias)", r"encoder.pos_conv_embed.conv.\1"),
    (
        r"encoder\.pos_conv\.0\.parametrizations\.(.+)",
        r"encoder.pos_conv_embed.conv.parametrizations.\1",
    ),
    (r"encoder\.pos_conv\.(\d+)\.0" + _PART, r"encoder.pos_conv_embed.layers.\1.conv.\2"),
    (r"encoder\.layer_norm" + _PART, r"encoder.layer_norm.\1"),
    (_LAYER + r"\.self_attn\.([kvq]|out)_proj" + _PART, r"encoder.layers.\1.attention.\2_proj.\3"),
    (_LAYER + r"\.self_attn_layer_norm" + _PART, r"encoder.layers.\1.layer_norm.\2"),
    (_LAYER + r"\.fc1" + _PART, r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
    (_LAYER + r"\.fc2" + _PART, r"encoder.layers.\1.feed_forward.output_dense.\2"),
    (_LAYER + r"\.final_layer_norm" + _PART, r"encoder.layers.\1.final_layer_norm.\2"),
    # WavLM
    (
        _LAYER + r"\.self_attn\.grep_linear" + _PART,
        r"encoder.layers.\1.attention.gru_rel_pos_linear.\2",
    ),
    (_LAYER + r"\.self_attn\.grep_a", r"encoder.layers.\1.attention.gru_rel_pos_const"),
    (
        _LAYER + r"\.self_attn\.relative_attention_bias\.weight",
        r"encoder.layers.\1.attention.rel_attn_embed.weight",
    ),
)
"""fairseq's name -> the name in transformers."""


def is_fairseq(data: Any) -> bool:
    """Whether this is a fairseq checkpoint, or WavLM's release."""
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        return False
    return any(
        isinstance(name, str) and re.search(r"(^|\.)encoder\.layers\.\d+\.(self_attn|fc1)\.", name)
        for name in data["model"]
    )


def dense_name(name: str) -> str | None:
    """Name in transformers' dense family, or None where fairseq has no such weight."""
    for pattern, target in RULES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(target)
    return None


def from_fairseq(data: Mapping[str, Any], path: Path) -> Checkpoint:
    """Translates; see the module's description.

    Raises:
        ConversionError: a weight is of no kind that is known, or a size cannot be told.
    """
    model = named(data["model"], path)
    state: dict[str, torch.Tensor] = {}
    head: dict[str, torch.Tensor] = {}
    unknown, dropped = [], 0
    fine_tuned = any(name.startswith(FINE_TUNED) for name in model)
    for name, tensor in model.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        inner = name.removeprefix(FINE_TUNED)
        if fine_tuned and name.startswith("w2v_encoder.proj."):
            head["lm_head." + name.removeprefix("w2v_encoder.proj.")] = tensor
        elif (target := dense_name(inner)) is not None:
            state[target] = tensor
        elif PRETRAINING.fullmatch(inner):
            dropped += 1
        else:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ConversionError(
            f"{path} holds {len(unknown)} unexpected weight(s): {', '.join(sorted(unknown)[:3])}{more}",
            "sslim knows fairseq's HuBERT, wav2vec 2.0, data2vec-audio and WavLM",
        )
    settings = _Settings(data)
    told = _family(state, settings, model)
    family = told or "wav2vec2"
    sizes = sizes_from_weights(state, path)
    width = sizes["hidden_size"]
    ffn = state.get("encoder.layers.0.feed_forward.intermediate_dense.weight")
    if ffn is None:
        raise ConversionError(
            f"{path} lacks the weight encoder.layers.0.fc1.weight", "it is damaged"
        )
    layer_norm = sizes["feat_extract_norm"] == "layer"
    const = state.get("encoder.layers.0.attention.gru_rel_pos_const")
    heads = settings.get("encoder_attention_heads")
    if heads is None:
        heads = heads_of_width(width, path) if const is None else const.shape[1]
    stable = settings.flag("layer_norm_first", layer_norm and family != "data2vec-audio")
    sizes |= {
        "num_attention_heads": int(heads),
        "intermediate_size": ffn.shape[0],
        "do_stable_layer_norm": stable,
        "mask_time_prob": 0.05 if "masked_spec_embed" in state else 0.0,
    }
    if family == "data2vec-audio":
        sizes.pop("do_stable_layer_norm")
        sizes.pop("feat_extract_norm")
    if family == "wavlm":
        table = state.get("encoder.layers.0.attention.rel_attn_embed.weight")
        sizes |= {"num_buckets": 320 if table is None else table.shape[0]}
        sizes |= {"max_bucket_distance": int(settings.get("max_distance", 800))}
    if head:
        sizes |= {"vocab_size": head["lm_head.weight"].shape[0]}
    config = FAMILIES[family].dense_config_class(**sizes)
    config.architectures = [FAMILIES[family].dense_class_name("ctc" if head else "")]
    prefix = f"{FAMILIES[family].prefix}." if head else ""
    notes = (f"left out {dropped} weights that only pre-training uses",) if dropped else ()
    if not told:
        notes = (*notes, f"taken as {family}: the file does not say which family")
    return Checkpoint(
        config,
        {f"{prefix}{name}": tensor for name, tensor in state.items()} | head,
        settings.flag("normalize", layer_norm),
        "a fairseq checkpoint" if family != "wavlm" else "a WavLM release",
        notes,
        _vocabulary(data),
    )


def _family(
    state: Mapping[str, torch.Tensor], settings: _Settings, model: Mapping[str, Any]
) -> str:
    """The family, "" where nothing tells it."""
    if any("gru_rel_pos" in name for name in state):
        return "wavlm"
    if "encoder.pos_conv_embed.layers.0.conv.weight" in state:
        return "data2vec-audio"
    told = f"{settings.get('_name', '')} {settings.get('arch', '')} {settings.get('w2v_path', '')}".lower()
    if "hubert" in told:
        return "hubert"
    if "wav2vec" in told:
        return "wav2vec2"
    return "hubert" if any("label_embs" in name for name in model) else ""


class _Settings:
    """Looks a setting up wherever this generation of fairseq kept it."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.sources = [_plain(data.get(part)) for part in ("cfg", "args")]

    def get(self, name: str, default: Any = None) -> Any:
        for source in self.sources:
            found = _find(source, name)
            if found is not None:
                return found
        return default

    def flag(self, name: str, default: bool) -> bool:
        """A setting that is true or false.

        Raises:
            ValueError: it is neither.
        """
        return as_flag(self.get(name, default), name)


DEEPEST = 50
"""Levels of nested settings; fairseq's have five."""


def _plain(value: Any, seen: dict[int, Any] | None = None, depth: int = 0) -> Any:
    """Namespaces and stand-ins of omegaconf as plain dictionaries and values.

    Each object is translated once: a file of a few bytes can name one a billion times, or hold itself.

    Raises:
        ValueError: settings are nested too deeply.
    """
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen[id(value)]
    if depth > DEEPEST:
        raise ValueError(f"settings are nested more than {DEEPEST} levels deep")
    if isinstance(value, StandIn):
        content = value.__dict__.get("_content", value.__dict__.get("_val", value.__dict__))
        return _plain(content, seen, depth + 1)
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        names: dict[str, Any] = {}
        seen[id(value)] = names
        for name, item in value.items():
            if isinstance(name, str) and name != "_parent":
                names[name] = _plain(item, seen, depth + 1)
        return names
    if isinstance(value, (list, tuple)):
        items: list[Any] = []
        seen[id(value)] = items
        items.extend(_plain(item, seen, depth + 1) for item in value)
        return items
    return value


def _find(source: Any, name: str, seen: set[int] | None = None) -> Any:
    """The first value of that name: the model's own settings go before those of anything nested."""
    seen = set() if seen is None else seen
    if not isinstance(source, dict) or id(source) in seen:
        return None
    seen.add(id(source))
    value = source.get(name)
    # "${task.normalize}" is a reference that was never resolved: the value stands elsewhere.
    unresolved = isinstance(value, str) and value.startswith("${")
    if value is not None and not isinstance(value, (dict, list)) and not unresolved:
        return value
    for part in ("model", "w2v_args", "task", *source):
        found = _find(source.get(part), name, seen)
        if found is not None:
            return found
    return None


def _vocabulary(data: Mapping[str, Any]) -> dict[str, str]:
    """`vocab.json` from the dictionary of a fine-tuned file."""
    state = data.get("task_state")
    dictionary = state.get("target_dictionary") if isinstance(state, dict) else None
    symbols = getattr(dictionary, "symbols", None)
    if not symbols:
        return {}
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        raise ValueError("the dictionary holds something else than symbols")
    numbers = {symbol: index for index, symbol in enumerate(symbols)}
    # fairseq's blank is <s> (0); tokenizers of transformers take <pad> for it.
    if "<s>" in numbers and "<pad>" in numbers:
        numbers["<s>"], numbers["<pad>"] = numbers["<pad>"], numbers["<s>"]
    return {"vocab.json": json.dumps(numbers)}
