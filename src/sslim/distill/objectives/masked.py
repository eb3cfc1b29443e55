"""Prediction of what the student does not hear (ARMHuBERT, Jang et al. 2023, masking distillation).

The student hears audio of which spans of frames are masked (`distill/masking.py`), the teacher hears all of
it. `masked` compares the frames that were masked, `unmasked` the others; with both, the encoder is run once
for the two. Other objectives of the same run go on hearing everything, by a second run of the encoder behind
the same front-end. Unlike here, the paper's teacher hears the masked audio as well for the unmasked frames.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from sslim.backbone.reading import MASKED, Reading, state_name
from sslim.distill.losses import distillation_loss
from sslim.distill.objectives.layers import Layers
from sslim.distill.objectives.objective import Sizes, layers_above_front
from sslim.distill.view import View


class Unmasked(Layers):
    """The frames that the student hears, among others that it does not."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.student_reads = tuple(MASKED + name for name in self.teacher_reads)

    def forward(self, student: Reading, teacher: Reading, view: View) -> dict[str, torch.Tensor]:
        return distillation_loss(
            [self.project(layer, student[MASKED + state_name(layer)]) for layer in self.layers],
            [teacher[name] for name in self.teacher_reads],
            self._counted(view),
        )

    def _counted(self, view: View) -> torch.Tensor | None:
        return None if view.masked_frames is None else ~view.masked_frames


class Masked(Unmasked):
    """The frames that the student does not hear; at the front, before the mask, there are none.

    Where nothing is masked, as when a result is measured, there is nothing to predict and the loss is 0.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(replace(sizes, layers=layers_above_front("masked", sizes)))

    def _counted(self, view: View) -> torch.Tensor | None:
        if view.masked_frames is None:
            return torch.zeros((), dtype=torch.bool, device=view.student_waveforms.device)
        return view.masked_frames
