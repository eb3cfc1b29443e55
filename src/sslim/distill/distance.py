"""How far a student is from its teacher: the loss that was trained, and its parts at every mapped layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.waveforms import normalise
from sslim.distill.losses import distillation_loss
from sslim.distill.task import Projections
from sslim.plan import SAMPLING_RATE


@dataclass(frozen=True)
class Distance:
    """Means over utterances, each counting alike."""

    utterances: int
    seconds: float
    layers: dict[int, dict[str, float]]
    """Mapped layer -> cosine similarity and L1 distance, through the projections."""
    loss: float


@torch.no_grad()
def measure_distance(
    teacher: SslimModel,
    student: SslimModel,
    projections: Projections,
    clips: Iterable[np.ndarray],
    *,
    layers: Sequence[int],
    normalise_waveform: bool,
    device: torch.device,
) -> Distance:
    """The distance on waveforms, (samples,) each at 16 kHz, one at a time, in evaluation mode."""
    for model in (teacher, student):
        torch.nn.Module.to(model, device).eval()
    projections = projections.to(device)
    sums = {layer: {"cosine": 0.0, "l1": 0.0} for layer in layers}
    loss, count, samples = 0.0, 0, 0
    for clip in clips:
        waveforms = torch.from_numpy(clip)[None].to(device)
        if normalise_waveform:
            waveforms = normalise(waveforms)
        theirs = teacher.distillation_features(waveforms, last_layer=layers[-1])
        mine = student.distillation_features(waveforms, last_layer=layers[-1])
        projected = projections([mine[layer] for layer in layers])
        wanted = [theirs[layer] for layer in layers]
        loss += float(distillation_loss(projected, wanted)["loss"])
        for layer, state, target in zip(layers, projected, wanted, strict=True):
            parts = distillation_loss([state], [target])
            for name in ("cosine", "l1"):
                sums[layer][name] += float(parts[name])
        count += 1
        samples += len(clip)
    means = {
        layer: {name: value / max(1, count) for name, value in row.items()}
        for layer, row in sums.items()
    }
    return Distance(count, round(samples / SAMPLING_RATE, 3), means, loss / max(1, count))
