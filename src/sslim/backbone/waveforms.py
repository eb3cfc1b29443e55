"""What is done to waveforms before a model hears them."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def normalise(waveforms: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance per row, (batch, samples), as the feature extractors of large models do."""
    return F.layer_norm(waveforms, waveforms.shape[-1:], eps=1e-7)
