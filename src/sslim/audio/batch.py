"""A batch: equally long waveforms that pass through the models together, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

SHORTEST = 400
"""Samples at 16 kHz that give one frame."""


@dataclass(frozen=True)
class Batch:
    """Equally long crops."""

    waveforms: torch.Tensor
    """(batch, samples) float32 at 16 kHz."""
    identities: tuple[str, ...]
    """For messages: the utterance of each row."""

    @classmethod
    def silence(cls, samples: int = SHORTEST) -> Batch:
        """One row of zeros, (1, samples), for a process that has no audio of an update."""
        return cls(torch.zeros(1, samples), ("silence",))

    @property
    def samples(self) -> int:
        """Samples of all rows together."""
        return self.waveforms.numel()

    def split(self, rows: int) -> list[Batch]:
        """The same audio in batches of at most `rows` rows, in order; waveforms are views.

        Raises:
            ValueError: `rows` is below 1.
        """
        if rows < 1:
            raise ValueError(f"a batch has at least one row, got {rows}")
        return [
            Batch(piece, self.identities[number * rows : (number + 1) * rows])
            for number, piece in enumerate(self.waveforms.split(rows))
        ]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on a device.

        Args:
            non_blocking: the copy of pinned memory need not be done when this returns.
        """
        return replace(self, waveforms=self.waveforms.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Called by the loader where the batch goes to a GPU."""
        return replace(self, waveforms=self.waveforms.pin_memory())
