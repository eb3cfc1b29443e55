"""A frozen model as a feature extractor: the choice of one layer, or of all.

Shape legend: F frames, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslim.backbone.frozen import ALL, LAST, Frozen, Layer
from sslim.backbone.opening import open_frozen
from sslim.errors import ConfigError


@dataclass(frozen=True)
class Extractor:
    """A model that is asked for one layer, or for all."""

    model: Frozen
    layer: Layer

    def extract(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Waveforms of equal length, (samples,) each -> features (F, D) each; (F, L, D) for all layers."""
        states = self.model.hidden_states(np.stack(waveforms), self.layer)
        if self.layer == ALL:
            return [np.ascontiguousarray(layers.swapaxes(0, 1)) for layers in states]
        return list(states)


def open_extractor(model: str | Path, layer: str = LAST) -> Extractor:
    """A folder, hub id or exported file, giving out one layer ("last", a number) or "all".

    Raises:
        ConfigError: there is no such layer, or the file does not give it out.
        TeacherError: the model cannot be opened.
    """
    frozen = open_frozen(model)
    wanted = parse_layer(layer, frozen.layers)
    output = "last_hidden_state" if wanted == LAST else "hidden_states"
    if output not in frozen.outputs:
        raise ConfigError(
            f"{frozen.name} gives out {', '.join(frozen.outputs)}, not {output}",
            "export the model again with --all-layers, or without its head",
        )
    return Extractor(frozen, wanted)


def parse_layer(layer: str, count: int) -> Layer:
    """`last`, `all`, or the index of one of `count` hidden states (0: input of the first layer).

    Raises:
        ConfigError: it is none of them.
    """
    if layer in (LAST, ALL):
        return layer
    # Digits of other scripts are digits for Python, too; and so are five thousand of them.
    if layer.isascii() and layer.isdigit() and len(layer) < 6 and int(layer) < count:
        return int(layer)
    raise ConfigError(
        f"there is no layer {layer[:20]!r}", f"give last, all, or a number from 0 to {count - 1}"
    )
