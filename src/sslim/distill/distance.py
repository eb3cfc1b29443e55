"""How far a student is from its teacher: what its task trains, and its parts at every mapped layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sslim.backbone.reading import state_name
from sslim.distill.losses import distillation_loss
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
    """Mapped layer -> cosine similarity and L1 distance, through the projections of the objective `layers`
    (else of `unmasked`), or as the states are where none were trained."""
    loss: float
    """The weighted sum of the task's objectives."""


@torch.no_grad()
def measure_distance(
    task: Task, clips: Iterable[np.ndarray], *, layers: Sequence[int], device: torch.device
) -> Distance:
    """The distance on waveforms, (samples,) each at 16 kHz, one at a time, in evaluation mode.

    Both hear the audio as it is, whatever the task trained them on, and no cache is asked.

    Args:
        task: what was trained.
        clips: the waveforms.
        layers: at which it is measured besides the loss, whatever the objectives compare.
        device: where.
    """
    task.to(device).eval()
    projections = _projections(task)
    names = [state_name(layer) for layer in layers]
    sums = {layer: {"cosine": 0.0, "l1": 0.0} for layer in layers}
    loss, count, samples = 0.0, 0, 0
    for clip in clips:
        waveforms = torch.from_numpy(clip)[None].to(device)
        student = task.student.read(waveforms, _each_once(*task.student_reads, *names))
        teacher = task.teacher.compute(waveforms, _each_once(*task.teacher_reads, *names))
        loss += float(task.compare(student, teacher, View(waveforms, waveforms))["loss"])
        for layer, name in zip(layers, names, strict=True):
            state = projections.project(layer, student[name]) if projections else student[name]
            parts = distillation_loss([state], [teacher[name]])
            for part in ("cosine", "l1"):
                sums[layer][part] += float(parts[part])
        count += 1
        samples += len(clip)
    means = {
        layer: {name: value / max(1, count) for name, value in row.items()}
        for layer, row in sums.items()
    }
    return Distance(count, round(samples / SAMPLING_RATE, 3), means, loss / max(1, count))


def _projections(task: Task) -> Layers | None:
    named = [task.objectives[name] for name in ("layers", "unmasked") if name in task.objectives]
    return next((one for one in named if isinstance(one, Layers)), None)


def _each_once(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
