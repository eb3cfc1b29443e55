"""A training task: a frozen teacher, a student, objectives with weights, and what each of the two hears.

The training loop runs a task and knows none of the four.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sslim.audio.batch import Batch
from sslim.backbone.reading import MASKED
from sslim.distill.masking import masked_frames
from sslim.distill.objectives.objective import Prepared
from sslim.distill.student import Student
from sslim.distill.teacher import Teacher
from sslim.distill.view import View, Views, same
from sslim.prune.surgery import Exchanged

CLIPS_TO_PREPARE = 64
"""Waveforms that objectives get to know the audio by."""


class Task(nn.Module):
    """The student learns what the objectives ask, from what the teacher says of the same batches.

    Args:
        teacher: frozen.
        student: trained, plain or under gates.
        objectives: name -> objective; modules, trained with the student.
        weights: name -> weight of its loss.
        learning_rate: of the student's weights and the objectives' parameters.
        views: what each of the two hears of a batch.
        seed: of the frames that are masked where an objective reads masked states.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: Student,
        objectives: nn.ModuleDict,
        *,
        weights: Mapping[str, float],
        learning_rate: float,
        views: Views = same,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.student = student
        self.objectives = objectives
        self.weights = {name: weights[name] for name in objectives}
        self.learning_rate = learning_rate
        self.views = views
        self.seed = seed
        self.update = 0
        readers: Sequence[Any] = [*objectives.values()]
        self.teacher_reads = _each_once(name for one in readers for name in one.teacher_reads)
        self.student_reads = _each_once(name for one in readers for name in one.student_reads)
        self.masks = any(name.startswith(MASKED) for name in self.student_reads)

    def to(self, *args: Any, **kwargs: Any) -> Task:
        """Moves everything, the teacher too."""
        self.teacher.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Loss of one batch on the task's device, and its parts."""
        view = self.views(batch, self.update)
        if self.masks:
            view = replace(view, masked_frames=self._masked(batch.waveforms))
        teacher = self.teacher.read(view.teacher_waveforms, self.teacher_reads)
        student = self.student.read(view.student_waveforms, self.student_reads, view.masked_frames)
        return self.compare(student, teacher, view)

    def _masked(self, waveforms: torch.Tensor) -> torch.Tensor:
        frames = int(self.student.model._get_feat_extract_output_lengths(waveforms.shape[1]))
        return masked_frames(waveforms, frames, seed=self.seed, update=self.update)

    @torch.no_grad()
    def prepare(self, clips: Iterable[np.ndarray]) -> None:
        """Lets the objectives learn from audio what they need to know before the first update.

        Args:
            clips: about `CLIPS_TO_PREPARE` waveforms of the audio to train on, (samples,) each at 16 kHz,
                always the same ones; not looked at where no objective asks for any.
        """
        asking = [one for one in self.objectives.values() if isinstance(one, Prepared)]
        if not asking:
            return
        heard = [torch.from_numpy(clip)[None] for clip in clips]
        device = next(self.student.parameters()).device
        for one in asking:
            one.prepare(self.teacher.compute(clip.to(device), one.teacher_reads) for clip in heard)

    def compare(
        self, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor], view: View
    ) -> dict[str, torch.Tensor]:
        """The weighted sum of the objectives under `loss`, and the parts of each.

        The first one's parts have plain names, those of others their objective's name before them.
        """
        figures: dict[str, torch.Tensor] = {}
        losses = []
        for number, (name, objective) in enumerate(self.objectives.items()):
            parts = objective(student, teacher, view)
            loss = parts.pop("loss")
            losses.append(self.weights[name] * loss)
            prefix = f"{name}." if number else ""
            figures |= {prefix + part: value for part, value in parts.items()}
            if len(self.objectives) > 1:
                figures[f"{name}.loss"] = loss.detach()
        return {"loss": sum(losses[1:], losses[0]), **figures}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser, each with its own peak learning rate."""
        weights = [*self.student.model.parameters(), *self.objectives.parameters()]
        group = {"params": weights, "lr": self.learning_rate, "name": "weights"}
        return [group, *self.student.parameter_groups()]

    def begin_update(self, update: int) -> None:
        """Called once before the batches of an update."""
        self.update = update
        self.student.begin_update(update)

    def after_update(self, update: int) -> Sequence[Exchanged]:
        """Called once after the optimiser's step; parameters that were exchanged for smaller ones."""
        return self.student.after_update(update)

    def constraint(self) -> dict[str, torch.Tensor]:
        """What is added to the loss once per update; empty: nothing."""
        return self.student.constraint()

    def report(self) -> dict[str, float]:
        """Figures for the log beyond the losses."""
        return self.student.report()

    def structure(self) -> dict[str, Any]:
        """What a saved state must say so that `restructure` can make the tensors it holds fit."""
        return self.student.structure()

    def restructure(self, structure: Mapping[str, Any]) -> None:
        """Brings a fresh task to the structure of a saved state, before its tensors are loaded."""
        self.student.restructure(structure)


def _each_once(names: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
