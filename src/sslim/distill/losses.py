"""The distillation loss of DPHuBERT (Peng et al. 2023, equation 1; after DistilHuBERT)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def distillation_loss(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Mean over mapped layers of L1 minus cosine similarity.

    Args:
        student: projected hidden states, each (batch, frames, width).
        teacher: hidden states of the same layers and shapes.

    Returns:
        `loss` (scalar), its parts `l1` and `cosine`, and `layer_l1` and `layer_cosine` (layers,), in float32.
    """
    l1, cosine = [], []
    for mine, theirs in zip(student, teacher, strict=True):
        mine, theirs = mine.float(), theirs.float()
        l1.append((mine - theirs).abs().mean())
        cosine.append(F.cosine_similarity(mine, theirs, dim=-1).mean())
    layer_l1, layer_cosine = torch.stack(l1), torch.stack(cosine)
    distance, similarity = layer_l1.mean(), layer_cosine.mean()
    return {
        "loss": distance - similarity,
        "l1": distance.detach(),
        "cosine": similarity.detach(),
        "layer_l1": layer_l1.detach(),
        "layer_cosine": layer_cosine.detach(),
    }
