"""What teacher and student hear of a batch. The plain case is the same audio for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sslim.audio.batch import Batch


@dataclass(frozen=True)
class View:
    """One batch as each of the two hears it; waveforms are (batch, samples) as decoded, on the device."""

    teacher_waveforms: torch.Tensor
    student_waveforms: torch.Tensor
    identities: tuple[str, ...] = ()
    """The utterance of each row."""
    masked_frames: torch.Tensor | None = None
    """(batch, frames), True where the student's `masked.` states do not hear a frame; None: they hear all."""


Views = Callable[[Batch, int], View]
"""A batch on the device and its update -> the view; all that is random in it follows from these."""


def same(batch: Batch, update: int) -> View:
    """Both hear the batch as it is."""
    return View(batch.waveforms, batch.waveforms, batch.identities)
