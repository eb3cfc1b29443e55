"""Is the exported file the model it came from? Every layer, on audio, and in a padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sslim.backbone.exported import ExportedModel
from sslim.backbone.loading import LoadedModel
from sslim.distill.task import normalise


@dataclass(frozen=True)
class LayerCheck:
    """One hidden state (0: the input of the first layer) of the file against the model."""

    layer: int
    cosine: float
    """Mean over frames."""
    difference: float
    """Largest absolute difference, in units of the layer's standard deviation where that is above one."""


@dataclass(frozen=True)
class Check:
    """What was compared and what came out."""

    layers: tuple[LayerCheck, ...]
    output: float
    """Largest difference of what the file gives out (features or logits), in the same units."""
    batching: float
    """The same between utterances in one padded batch and alone, through the file."""
    utterances: int
    seconds: float

    @property
    def cosine(self) -> float:
        """Of the worst layer."""
        return min(layer.cosine for layer in self.layers)

    @property
    def difference(self) -> float:
        """Of the worst layer, or of the output."""
        return max(self.output, *(layer.difference for layer in self.layers))


def answers(loaded: LoadedModel, waveform: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """What the torch model says of one waveform: hidden states (L + 1, T, D), and its output."""
    audio = torch.from_numpy(waveform)[None]
    audio = normalise(audio) if loaded.normalise else audio
    with torch.inference_mode():
        found: Any = loaded.whole(audio, output_hidden_states=True)
    output = found.logits if loaded.head else found.last_hidden_state
    return torch.cat(found.hidden_states), output[0]


def check_export(
    loaded: LoadedModel,
    file: ExportedModel,
    layers: ExportedModel,
    waveforms: Sequence[np.ndarray],
) -> Check:
    """Compares.

    Args:
        loaded: the model.
        file: what was exported.
        layers: the same with all hidden states given out (it may be `file`).
        waveforms: (samples,) each.
    """
    similar: list[torch.Tensor] = []
    worst: list[torch.Tensor] = []
    frames = 0
    output = 0.0
    alone: list[np.ndarray] = []
    name = "logits" if loaded.head else "last_hidden_state"
    for waveform in waveforms:
        wanted, wanted_output = answers(loaded, waveform)
        got = torch.from_numpy(layers([waveform])["hidden_states"][:, 0])
        similar.append(torch.nn.functional.cosine_similarity(got, wanted, dim=-1).sum(1))
        unit = wanted.std((1, 2)).clamp(min=1.0)
        worst.append((got - wanted).abs().amax((1, 2)) / unit)
        frames += wanted.shape[1]
        given = file([waveform])[name][0]
        alone.append(given)
        output = max(output, _difference(given, wanted_output.numpy()))
    together = file(list(waveforms[:8]))[name]
    batching = max(
        _difference(row[: len(single)] if single.ndim > 1 else row, single)
        for row, single in zip(together, alone[:8], strict=True)
    )
    cosines = torch.stack(similar).sum(0) / frames
    differences = torch.stack(worst).amax(0)
    return Check(
        tuple(
            LayerCheck(index, float(cosine), float(difference))
            for index, (cosine, difference) in enumerate(zip(cosines, differences, strict=True))
        ),
        output,
        batching,
        len(waveforms),
        sum(len(waveform) for waveform in waveforms) / layers.sampling_rate,
    )


def _difference(got: np.ndarray, wanted: np.ndarray) -> float:
    unit = max(1.0, float(wanted.std()))
    return float(np.abs(got - wanted).max()) / unit
