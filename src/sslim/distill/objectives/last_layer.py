"""Plain distillation: the last layer predicts layers of the teacher (DistilHuBERT, Chang et al. 2022)."""

from __future__ import annotations

import torch
from torch import nn

from sslim.backbone.reading import Reading, state_name
from sslim.distill.losses import distillation_loss
from sslim.distill.objectives.objective import Sizes, layers_above_front
from sslim.distill.view import View


class LastLayer(nn.Module):
    """One head for each mapped layer of the teacher (the front excepted) on the student's last layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = layers_above_front("last_layer", sizes)
        self.teacher_reads = tuple(state_name(layer) for layer in self.layers)
        self.student_reads = (state_name(sizes.student_depth),)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(sizes.width, sizes.width),
                nn.GELU(),
                nn.Linear(sizes.width, sizes.width),
            )
            for _ in self.teacher_reads
        )

    def forward(self, student: Reading, teacher: Reading, view: View) -> dict[str, torch.Tensor]:
        (last,) = (student[name] for name in self.student_reads)
        return distillation_loss(
            [head(last) for head in self.heads], [teacher[name] for name in self.teacher_reads]
        )
