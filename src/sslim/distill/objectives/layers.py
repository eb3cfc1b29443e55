"""The paper's objective: projected states of mapped layers against the teacher's (DPHuBERT, equation 1)."""

from __future__ import annotations

import torch
from torch import nn

from sslim.backbone.reading import Reading, state_name
from sslim.distill.losses import distillation_loss
from sslim.distill.objectives.objective import Sizes
from sslim.distill.view import View


class Layers(nn.Module):
    """Student states to teacher states by one map for the front and one for all deeper layers.

    Both start at identity, because the student starts as a copy of its teacher.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = sizes.layers
        self.teacher_reads = self.student_reads = tuple(map(state_name, sizes.layers))
        self.front = _identity(sizes.width) if 0 in sizes.layers else None
        self.deep = _identity(sizes.width)

    def forward(self, student: Reading, teacher: Reading, view: View) -> dict[str, torch.Tensor]:
        """The loss; `layer_l1` and `layer_cosine` are in the order of `layers`."""
        return distillation_loss(
            [self.project(layer, student[state_name(layer)]) for layer in self.layers],
            [teacher[state_name(layer)] for layer in self.layers],
        )

    def project(self, layer: int, state: torch.Tensor) -> torch.Tensor:
        """A student's state (batch, frames, width), mapped to its teacher's."""
        projection = self.front if layer == 0 and self.front is not None else self.deep
        projected: torch.Tensor = projection(state)
        return projected


def _identity(width: int) -> nn.Linear:
    linear = nn.Linear(width, width)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
