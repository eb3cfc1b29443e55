"""What an objective is: something to learn from a frozen teacher, with parameters of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from sslim.backbone.reading import Reading
from sslim.distill.view import View


@dataclass(frozen=True)
class Sizes:
    """What an objective is made for."""

    width: int
    """Of the states of teacher and student."""
    student_depth: int
    """Layers of the student."""
    layers: tuple[int, ...]
    """Mapped layers of the teacher, ascending; 0 is the front."""


class Objective(Protocol):
    """A torch module that compares what the two say of a batch. Its parameters are trained with the student
    and thrown away with it unless a later stage goes on from them."""

    teacher_reads: tuple[str, ...]
    """Names of the teacher's states it needs (`backbone.reading`)."""
    student_reads: tuple[str, ...]
    """Names of the student's states it needs."""

    def __call__(self, student: Reading, teacher: Reading, view: View) -> dict[str, torch.Tensor]:
        """The `loss` (scalar, with gradients) and its parts; scalars among them are logged."""
        ...
