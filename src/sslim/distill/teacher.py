"""The frozen teacher of a task: asked for states by name, computed or read from a cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sslim.backbone.heads import Head
from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.reading import Reader, Reading
from sslim.distill.cache import TargetCache


class Teacher:
    """A frozen model. No torch module, so that a task that holds it neither trains, saves nor counts it.

    Args:
        model: in evaluation mode from here on, without gradients.
        normalises: whether it expects waveforms of zero mean and unit variance.
        cache: where its states are kept; None: they are computed every time.
        head: what sits on it, where objectives read its logits.
    """

    def __init__(
        self,
        model: SslimModel,
        *,
        normalises: bool,
        cache: TargetCache | None = None,
        head: Head | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        reader = Reader(model, normalises=normalises, head=head)
        self._reader = reader.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Teacher:
        """Moves the model."""
        self._reader.to(device)
        return self

    @torch.no_grad()
    def read(self, waveforms: torch.Tensor, names: Sequence[str]) -> Reading:
        """The named states for waveforms (batch, samples) on the teacher's device."""
        if self.cache is None:
            return self.compute(waveforms, names)
        return self.cache.targets(waveforms, names, lambda: self.compute(waveforms, names))

    @torch.no_grad()
    def compute(self, waveforms: torch.Tensor, names: Sequence[str]) -> Reading:
        """The same, whatever a cache holds."""
        states: Reading = self._reader(waveforms, names)
        return states
