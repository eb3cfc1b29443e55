"""A frozen model that hears waveforms, whatever runs it: torch, onnxruntime, or numpy.

`LoadedModel.frozen` and `ExportedModel.frozen` make one. Nothing here imports torch.

Shape legend: B waveforms of equal length, S samples, L hidden states (the input of the first layer included),
T frames, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sslim import identity

Layer = int | str
"""The index of a hidden state (0: the input of the first layer), `LAST` or `ALL`."""
LAST = "last"
"""The model's output: the last hidden state, behind one more norm in families that end with one."""
ALL = "all"


class HiddenStates(Protocol):
    """Waveforms -> what a model makes of them."""

    def __call__(self, waveforms: np.ndarray, layer: Layer = ALL) -> np.ndarray:
        """Hidden states of a batch; nothing is padded, so each row is what it would be alone.

        Args:
            waveforms: (B, S) float32 at 16 kHz, amplitude as decoded (-1 to 1).
            layer: which of them.

        Returns:
            (B, L, T, D) float32 for all layers, (B, T, D) for one.
        """
        ...


@dataclass(frozen=True)
class Frozen:
    """A model that is not trained here, and what is known of it."""

    name: str
    """In tables and messages."""
    layers: int
    """Hidden states, the input of the first layer included."""
    width: int
    hop: int
    """Samples between two frames."""
    shortest: int
    """Samples that one frame reads, below which there is no frame."""
    parameters: int
    macs_per_second: int
    """Multiply-accumulates per second of audio, measured on utterances of 10 s."""
    fingerprint: str
    """Of what is run: a torch model (weights and configuration), an exported file, settings of features."""
    model_fingerprint: str
    """Of the torch model behind it: the same, unless an exported file is run."""
    numbers: str
    """What the arithmetic is done in and on, such as "bfloat16 on cpu"; empty where a file decides."""
    hidden_states: HiddenStates
    outputs: tuple[str, ...] = ("last_hidden_state", "hidden_states")
    """What it can be asked for; an exported file may lack one of them or both."""

    @property
    def identity(self) -> str:
        """The same exactly when the features of any audio are the same."""
        # "upstream" is what this was called when the first caches were written.
        return identity.digest("upstream", identity.COMPUTATION, self.fingerprint, self.numbers)

    def frames(self, samples: int) -> int:
        """About how many frames a clip has."""
        return max(1, samples // self.hop)
