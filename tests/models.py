"""Tiny random teachers of every family and size, for tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    HubertConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    WavLMConfig,
)

CONFIGS = {
    "hubert": HubertConfig,
    "wavlm": WavLMConfig,
    "wav2vec2": Wav2Vec2Config,
    "data2vec-audio": Data2VecAudioConfig,
}
SIZES = {
    "base": {},
    "large": {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True},
    "batch-norm": {"conv_pos_batch_norm": True, "num_conv_pos_embeddings": 7},
}
CASES = [
    (family, size)
    for family in CONFIGS
    for size in ("base", "large")
    if (family, size) != ("data2vec-audio", "large")
]
"""data2vec-audio has one layout at every size."""
POSITIONAL_CASES = [("hubert", "base"), ("hubert", "batch-norm"), ("data2vec-audio", "base")]
"""Each positional convolution that there is: weight-normalised, behind a batch norm, stacked."""
ALL_CASES = [*CASES, POSITIONAL_CASES[1]]


def tiny_config(family: str, size: str = "base", **changes: Any) -> Any:
    """A configuration of about 30,000 parameters."""
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "conv_dim": (24, 20, 22, 16, 18, 20, 24),
        "num_conv_pos_embedding_groups": 4,
        "num_conv_pos_embeddings": 3 if family == "data2vec-audio" else 8,
        "num_buckets": 16,
        "max_bucket_distance": 30,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "activation_dropout": 0.0,
        "feat_proj_dropout": 0.0,
        "final_dropout": 0.0,
        "layerdrop": 0.1,
    }
    if family != "wavlm":
        settings.pop("num_buckets"), settings.pop("max_bucket_distance")
    settings |= SIZES[size] | changes
    return CONFIGS[family](**settings)


def tiny_teacher(
    family: str, size: str = "base", *, auto: Any = AutoModel, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A random model of transformers whose every weight, norm and bias is random and non-trivial."""
    torch.manual_seed(seed)
    model: PreTrainedModel = auto.from_config(tiny_config(family, size, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("original0"):
                parameter.mul_(0.5 + torch.rand_like(parameter))
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1.0 + 0.2 * torch.randn_like(parameter))
            elif parameter.dim() == 1 or "const" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif parameter.dim() == 2:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    return model
