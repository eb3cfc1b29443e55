"""A model as a feature extractor: one layer, or all, from torch or from an exported file.

Shape legend: F frames, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslim.backbone.exported import ExportedModel
from sslim.errors import ConfigError

Extract = Callable[[list[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class Extractor:
    """A model that turns waveforms into features of one layer, or of all."""

    extract: Extract
    """Waveforms of equal length -> features (F, D) each; (F, L, D) for all layers."""
    hop: int
    """Samples between two frames."""
    receptive_field: int
    """Samples that one frame reads."""
    fingerprint: str
    """Identity of what is run: of a torch model, or of an exported file."""
    model_fingerprint: str
    """Identity of the torch model behind it; the same for a torch model."""


def open_extractor(model: str | Path, layer: str = "last") -> Extractor:
    """A folder, hub id or exported file, giving out one layer ("last", a number) or "all".

    Raises:
        ConfigError: there is no such layer, or the file does not give it out.
        TeacherError: the model cannot be opened.
    """
    if str(model).endswith(".onnx"):
        return _exported(ExportedModel(model), layer)
    return _in_torch(str(model), layer)


def _exported(file: ExportedModel, layer: str) -> Extractor:
    wanted = parse_layer(layer, file.facts["layers"])
    output = "last_hidden_state" if wanted == "last" else "hidden_states"
    if output not in file.outputs:
        raise ConfigError(
            f"{file.path.name} gives out {', '.join(file.outputs)}, not {output}",
            "export the model again with --all-layers, or without its head",
        )

    def extract(waveforms: list[np.ndarray]) -> list[np.ndarray]:
        found = file(waveforms)[output]
        if wanted == "last":
            return list(found)
        if wanted == "all":
            return [np.ascontiguousarray(states) for states in found.transpose(1, 2, 0, 3)]
        return list(found[wanted])

    # The file's own identity: float32 and int8 of one model give other features.
    identity = file.fingerprint
    return Extractor(extract, file.hop, file.shortest, identity, str(file.facts["fingerprint"]))


def _in_torch(model: str, layer: str) -> Extractor:
    """A model in torch on the processor.

    Raises:
        ConfigError: there is no such layer.
        TeacherError: the model cannot be loaded.
    """
    import torch

    from sslim.backbone.loading import load_model
    from sslim.backbone.reading import normalise

    loaded = load_model(model)
    wanted = parse_layer(layer, loaded.model.config.num_hidden_layers + 1)

    @torch.inference_mode()
    def extract(waveforms: list[np.ndarray]) -> list[np.ndarray]:
        audio = torch.from_numpy(np.stack(waveforms))
        audio = normalise(audio) if loaded.normalise else audio
        found: Any = loaded.model(audio, output_hidden_states=wanted != "last")
        if wanted == "last":
            states = found.last_hidden_state
        elif wanted == "all":
            states = torch.stack(found.hidden_states, 2)
        else:
            states = found.hidden_states[wanted]
        return list(states.numpy())

    identity = loaded.fingerprint
    return Extractor(extract, loaded.hop, loaded.receptive_field, identity, identity)


def parse_layer(layer: str, count: int) -> str | int:
    """`last`, `all`, or the index of one of `count` hidden states (0: input of the first layer).

    Raises:
        ConfigError: it is none of them.
    """
    if layer in ("last", "all"):
        return layer
    # Digits of other scripts are digits for Python, too; and so are five thousand of them.
    if layer.isascii() and layer.isdigit() and len(layer) < 6 and int(layer) < count:
        return int(layer)
    raise ConfigError(
        f"there is no layer {layer[:20]!r}", f"give last, all, or a number from 0 to {count - 1}"
    )
