"""What a task needs of a student, and the plain one: all of its weights are trained, none is pruned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.reading import Reader, Reading
from sslim.prune.surgery import Exchanged


class Student(Protocol):
    """A torch module that learns. `prune.student.GatedStudent` is another than the plain one."""

    @property
    def model(self) -> SslimModel: ...
    def read(
        self,
        waveforms: torch.Tensor,
        names: Sequence[str],
        masked_frames: torch.Tensor | None = None,
    ) -> Reading:
        """The named states of waveforms, (batch, samples), with gradients.

        Args:
            masked_frames: (batch, frames), True where `masked.` states do not hear; None: they hear all.
        """
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What it trains besides the model's weights: optimiser groups with their own learning rates."""
        ...

    def begin_update(self, update: int) -> None:
        """Called once before the batches of an update."""
        ...

    def after_update(self, update: int) -> Sequence[Exchanged]:
        """Called once after the optimiser's step; parameters that were exchanged for smaller ones."""
        ...

    def constraint(self) -> dict[str, torch.Tensor]:
        """What is added to the loss once per update, under `loss`, and its figures; empty: nothing."""
        ...

    def report(self) -> dict[str, float]:
        """Figures for the log."""
        ...

    def structure(self) -> dict[str, Any]:
        """What a saved state must say so that `restructure` can make the tensors it holds fit."""
        ...

    def restructure(self, structure: Mapping[str, Any]) -> None:
        """Brings a fresh student to the structure of a saved state, before its tensors are loaded."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...


class PlainStudent(nn.Module):
    """A model whose weights are trained, and nothing else.

    Args:
        model: in training mode from here on.
        normalises: whether it expects waveforms of zero mean and unit variance.
    """

    def __init__(self, model: SslimModel, *, normalises: bool) -> None:
        super().__init__()
        self.reader = Reader(model, normalises=normalises).train().requires_grad_(True)

    @property
    def model(self) -> SslimModel:
        return self.reader.model

    def read(
        self,
        waveforms: torch.Tensor,
        names: Sequence[str],
        masked_frames: torch.Tensor | None = None,
    ) -> Reading:
        states: Reading = self.reader(waveforms, names, masked_frames)
        return states

    def parameter_groups(self) -> list[dict[str, Any]]:
        return []

    def begin_update(self, update: int) -> None:
        pass

    def after_update(self, update: int) -> Sequence[Exchanged]:
        return ()

    def constraint(self) -> dict[str, torch.Tensor]:
        return {}

    def report(self) -> dict[str, float]:
        return {}

    def structure(self) -> dict[str, Any]:
        return {}

    def restructure(self, structure: Mapping[str, Any]) -> None:
        pass
