"""How far a student is from its teacher: what its task trains, and its parts at every mapped layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from sslim.distill.objectives.layers import Layers
from sslim.distill.task import Task
from sslim.distill.view import View
from sslim.layout import SAMPLING_RATE


@dataclass(frozen=True)
class Distance:
    """Means over utterances, each counting alike."""

    utterances: int
    seconds: float
    layers: dict[int, dict[str, float]]
    """Mapped layer -> cosine similarity and L1 distance, through the projections of the objective `layers`;
    empty where that was not trained."""
    loss: float
    """The weighted sum of the task's objectives."""


@torch.no_grad()
def measure_distance(task: Task, clips: Iterable[np.ndarray], *, device: torch.device) -> Distance:
    """The distance on waveforms, (samples,) each at 16 kHz, one at a time, in evaluation mode.

    Both hear the audio as it is, whatever the task trained them on, and no cache is asked.
    """
    task.to(device).eval()
    layers = next((one.layers for one in task.objectives.values() if isinstance(one, Layers)), ())
    sums = {layer: {"cosine": 0.0, "l1": 0.0} for layer in layers}
    loss, count, samples = 0.0, 0, 0
    for clip in clips:
        waveforms = torch.from_numpy(clip)[None].to(device)
        parts = task.compare(
            task.student.read(waveforms, task.student_reads),
            task.teacher.compute(waveforms, task.teacher_reads),
            View(waveforms, waveforms),
        )
        loss += float(parts["loss"])
        for number, layer in enumerate(layers):
            for name in ("cosine", "l1"):
                sums[layer][name] += float(parts[f"layer_{name}"][number])
        count += 1
        samples += len(clip)
    means = {
        layer: {name: value / max(1, count) for name, value in row.items()}
        for layer, row in sums.items()
    }
    return Distance(count, round(samples / SAMPLING_RATE, 3), means, loss / max(1, count))
