"""What an objective is: something to learn from a frozen teacher, with parameters of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from sslim.backbone.heads import Head
from sslim.backbone.reading import Reading
from sslim.distill.view import View
from sslim.errors import ConfigError


@dataclass(frozen=True)
class Sizes:
    """The teacher and the student that an objective is made for."""

    width: int
    """Of the states of teacher and student."""
    student_depth: int
    """Layers of the student."""
    layers: tuple[int, ...]
    """Mapped layers of the teacher, ascending; 0 is the front."""
    head: Head | None = None
    """What sits on the teacher; None: nothing."""
    seed: int = 0
    """Of whatever an objective draws."""


def layers_above_front(objective: str, sizes: Sizes) -> tuple[int, ...]:
    """The mapped layers without the front, for an objective to which the front says nothing.

    Raises:
        ConfigError: there are none.
    """
    layers = tuple(layer for layer in sizes.layers if layer)
    if not layers:
        raise ConfigError(
            f"the objective {objective} needs a mapped layer above 0, and layers=0 names none",
            "name others with --set layers=..., or leave them out for every third of the depth",
        )
    return layers


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


@runtime_checkable
class Prepared(Protocol):
    """An objective that must know the audio before the first update. What it learns is in its state."""

    teacher_reads: tuple[str, ...]

    def prepare(self, readings: Iterable[Reading]) -> None:
        """Called once, with what the teacher says of clips of the training audio, (1, frames, width) each.

        What it does follows from these and the seed alone.
        """
        ...
