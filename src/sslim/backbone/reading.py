"""What a model says of a batch, by name: `front`, the output of the feature projection, or `layer.4`.

The names are DPHuBERT's numbering in words: its layer 0 is the front. They are not the indices of
transformers' `hidden_states`, where 0 is the input of the first layer, positions added.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.waveforms import normalise

FRONT = "front"
"""The output of the feature projection, before any position is added."""

Reading = dict[str, torch.Tensor]
"""Name of a state -> its values, (batch, frames, width)."""


def state_name(layer: int) -> str:
    """The name of a layer's output; layer 0 is the front."""
    return f"layer.{layer}" if layer else FRONT


def layer_of(name: str) -> int:
    """Inverse of `state_name`."""
    return 0 if name == FRONT else int(name.removeprefix("layer."))


class Reader(nn.Module):
    """A model and how it is fed, as a module whose `forward` reads states by name.

    A module, because `torch.func.functional_call`, which runs a model under other weights, runs `forward`.
    """

    def __init__(self, model: SslimModel, *, normalises: bool) -> None:
        super().__init__()
        self.model = model
        self.normalises = normalises
        """Whether the model expects waveforms of zero mean and unit variance."""

    def forward(self, waveforms: torch.Tensor, names: Iterable[str]) -> Reading:
        """The named states of waveforms, (batch, samples) as decoded; nothing deeper is computed."""
        heard = normalise(waveforms) if self.normalises else waveforms
        layers = {name: layer_of(name) for name in names}
        states = self.model.distillation_features(heard, last_layer=max(layers.values()))
        return {name: states[layer] for name, layer in layers.items()}
