"""What range each quantised input has on real audio."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from sslim.backbone.loaded import LoadedModel
from sslim.errors import ExportError


@torch.no_grad()
def input_ranges(
    loaded: LoadedModel, waveforms: Iterable[np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Smallest and largest input of every product that int8 arithmetic covers.

    Args:
        loaded: the model.
        waveforms: (samples,) each, at 16 kHz, as a user would give them.

    Returns:
        name of the module in the model -> its range.

    Raises:
        ExportError: a product reads values that are not finite.
    """
    model: Any = loaded.model
    found: dict[str, tuple[float, float]] = {}
    handles = []

    def observe(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            low, high = (float(value) for value in torch.aminmax(inputs[0]))
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ExportError(
                    f"{loaded.source} computes NaN or infinity: {name} reads {low:g} to {high:g} on the "
                    "audio it is calibrated with",
                    "check the model's weights; such a model cannot be exported",
                )
            if name in found:
                low, high = min(low, found[name][0]), max(high, found[name][1])
            found[name] = (low, high)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d):
            handles.append(module.register_forward_pre_hook(observe(name)))
    try:
        for waveform in waveforms:
            audio = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))[None]
            model(loaded.prepare(audio))
    finally:
        for handle in handles:
            handle.remove()
    return found
