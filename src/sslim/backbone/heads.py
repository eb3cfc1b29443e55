"""A model's head alone: states in, logits out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import Wav2Vec2BaseModelOutput

from sslim.backbone.modeling_sslim import SslimPreTrainedModel
from sslim.backbone.reading import EMBEDDED, FINAL, state_name


class _Given(nn.Module):
    """Stands where the backbone was, and passes on states that were computed elsewhere."""

    def forward(self, states: Wav2Vec2BaseModelOutput, **_: Any) -> Wav2Vec2BaseModelOutput:
        return states


class Head(nn.Module):
    """A copy of what sits on a backbone, to be run on states of that backbone or of a smaller one.

    Args:
        whole: the backbone under its head, as loaded; nothing of the backbone is copied.
        kind: of the head (`families.HEADS`).
    """

    def __init__(self, whole: SslimPreTrainedModel, kind: str) -> None:
        super().__init__()
        self.kind = kind
        backbone = getattr(whole, whole.base_model_prefix)
        # What deepcopy finds in its memo it takes as copied already.
        self.head = copy.deepcopy(whole, {id(backbone): _Given()})
        layers = [state_name(layer + 1) for layer in range(len(backbone.encoder.layers))]
        weighs_layers = getattr(whole, "layer_weights", None) is not None
        self.reads: tuple[str, ...] = (EMBEDDED, *layers) if weighs_layers else (FINAL,)
        """Names of the states that it needs (`reading`)."""

    def forward(self, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits, (batch, classes) or (batch, frames, classes), for states (batch, frames, width) by name."""
        read = tuple(states[name] for name in self.reads)
        logits: torch.Tensor = self.head(
            Wav2Vec2BaseModelOutput(read[-1], hidden_states=read)
        ).logits
        return logits

    def weights(self) -> dict[str, torch.Tensor]:
        """Its weights under their names in the whole model."""
        return self.head.state_dict()
