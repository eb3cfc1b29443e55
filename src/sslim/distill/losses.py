"""The distillation loss of DPHuBERT (Peng et al. 2023, equation 1; after DistilHuBERT)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def distillation_loss(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    counted: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Mean over mapped layers of L1 minus cosine similarity.

    Args:
        student: projected hidden states, each (batch, frames, width).
        teacher: hidden states of the same layers and shapes.
        counted: (batch, frames), True where a frame counts; 0 where none does. None: all count.

    Returns:
        `loss` (scalar), its parts `l1` and `cosine`, and `layer_l1` and `layer_cosine` (layers,), in float32.
    """
    l1, cosine = [], []
    for mine, theirs in zip(student, teacher, strict=True):
        mine, theirs = mine.float(), theirs.float()
        distance, similarity = (mine - theirs).abs(), F.cosine_similarity(mine, theirs, dim=-1)
        if counted is None:
            l1.append(distance.mean())
            cosine.append(similarity.mean())
        else:
            share = counted / counted.sum().clamp(min=1)
            l1.append((distance.mean(-1) * share).sum())
            cosine.append((similarity * share).sum())
    layer_l1, layer_cosine = torch.stack(l1), torch.stack(cosine)
    mean_l1, mean_cosine = layer_l1.mean(), layer_cosine.mean()
    return {
        "loss": mean_l1 - mean_cosine,
        "l1": mean_l1.detach(),
        "cosine": mean_cosine.detach(),
        "layer_l1": layer_l1.detach(),
        "layer_cosine": layer_cosine.detach(),
    }
