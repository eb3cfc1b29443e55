"""What a model says of a batch, by name: `front`, the output of the feature projection, or `layer.4`.

The names are DPHuBERT's numbering in words: its layer 0 is the front. They are not the indices of
transformers' `hidden_states`, where 0 is the input of the first layer, positions added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.waveforms import normalise

FRONT = "front"
"""The output of the feature projection, before any frame is masked or position added."""
EMBEDDED = "embedded"
"""The input of the first layer: `hidden_states[0]` of transformers."""
FINAL = "final"
"""The output of the last layer, behind the final norm where there is one: `last_hidden_state`."""
LOGITS = "logits"
"""What the model's head makes of its states, (batch, classes) or (batch, frames, classes)."""
MASKED = "masked."
"""Before a name: the same state where some frames of the input are masked."""

Reading = dict[str, torch.Tensor]
"""Name of a state -> its values, (batch, frames, width)."""


def state_name(layer: int) -> str:
    """The name of a layer's output; layer 0 is the front."""
    return f"layer.{layer}" if layer else FRONT


def deepest_layer(names: Iterable[str], depth: int) -> int:
    """The last layer that has to be computed to read states by name, of a model of `depth` layers."""
    return max(_layer_of(name.removeprefix(MASKED), depth) for name in names)


def _layer_of(name: str, depth: int) -> int:
    if name in (FRONT, EMBEDDED):
        return 0
    return depth if name in (FINAL, LOGITS) else int(name.removeprefix("layer."))


class Reader(nn.Module):
    """A model and how it is fed, as a module whose `forward` reads states by name.

    A module, because `torch.func.functional_call`, which runs a model under other weights, runs `forward`.

    Args:
        model: the backbone.
        normalises: whether it expects waveforms of zero mean and unit variance.
        head: what gives `logits` (`heads.Head`); None: they cannot be read.
    """

    def __init__(
        self, model: SslimModel, *, normalises: bool, head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.normalises = normalises
        self.head = head

    def forward(
        self,
        waveforms: torch.Tensor,
        names: Iterable[str],
        masked_frames: torch.Tensor | None = None,
    ) -> Reading:
        """The named states of waveforms, (batch, samples) as decoded; nothing deeper is computed.

        Args:
            masked_frames: (batch, frames), True where `masked.` states are not to hear a frame; None: they
                hear all. The front is computed once, whatever is masked behind it.
        """
        projected, _, _ = self.model.project(normalise(waveforms) if self.normalises else waveforms)
        names = tuple(names)
        clear = [name for name in names if not name.startswith(MASKED)]
        hidden = [name.removeprefix(MASKED) for name in names if name.startswith(MASKED)]
        states = self._states(projected, clear, None)
        for name, state in self._states(projected, hidden, masked_frames).items():
            states[MASKED + name] = state
        return states

    def _states(
        self, projected: torch.Tensor, names: Sequence[str], masked_frames: torch.Tensor | None
    ) -> Reading:
        if not names:
            return {}
        encoder = self.model.encoder
        last = deepest_layer(names, len(encoder.layers))
        outputs = self.model.layer_states(projected, last_layer=last, masked_BT=masked_frames)
        states = {FRONT: projected, EMBEDDED: outputs[0]}
        states |= {state_name(layer): outputs[layer] for layer in range(1, last + 1)}
        if last == len(encoder.layers):
            states[FINAL] = encoder.layer_norm(outputs[-1]) if encoder.norm_first else outputs[-1]
        if self.head is not None and LOGITS in names:
            states[LOGITS] = self.head(states)
        return {name: states[name] for name in names}
