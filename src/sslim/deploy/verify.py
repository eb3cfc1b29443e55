"""Is the exported file the model it came from? Every layer, on audio, and in a padded batch.

Comparisons keep NaN: a largest difference is taken with numpy, whose maximum is NaN where one value is, and
values that are not finite are refused before anything is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sslim.backbone.exported import ExportedModel
from sslim.backbone.loaded import LoadedModel
from sslim.errors import ExportError
from sslim.measurements import Check, LayerCheck

BATCHED = 4
"""Utterances of the padded batch."""
SHARES = (1.0, 0.62, 0.83, 0.41)
"""What of each of them is heard in it, so that their lengths differ whatever was given."""


def answers(loaded: LoadedModel, waveform: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """What the torch model says of one waveform: hidden states (L + 1, T, D), and its output."""
    whole: Any = loaded.whole
    with torch.inference_mode():
        outputs = whole(loaded.prepare(torch.from_numpy(waveform)[None]), output_hidden_states=True)
    output = outputs.logits if loaded.head else outputs.last_hidden_state
    return torch.cat(outputs.hidden_states), output[0]


def check_export(
    loaded: LoadedModel,
    file: ExportedModel,
    layers: ExportedModel,
    waveforms: Sequence[np.ndarray],
    long: np.ndarray,
) -> Check:
    """Compares.

    Args:
        loaded: the model.
        file: what was exported.
        layers: the same with all hidden states given out (it may be `file`).
        waveforms: (samples,) each.
        long: one more, longer than the others.

    Raises:
        ExportError: the model or the file gives values that are not finite; the message names the output.
    """
    similar: list[torch.Tensor] = []
    worst: list[torch.Tensor] = []
    outputs: list[float] = []
    frames = 0
    name = "logits" if loaded.head else "last_hidden_state"
    shortest = shortest_of(loaded)
    waveforms = [waveform for waveform in waveforms if len(waveform) >= shortest]
    for waveform in (*waveforms, long):
        wanted, wanted_output = answers(loaded, waveform)
        for index, states in enumerate(wanted):
            _finite(states.numpy(), loaded.source, f"hidden state {index}")
        _finite(wanted_output.numpy(), loaded.source, name)
        got = torch.from_numpy(layers([waveform])["hidden_states"][:, 0])
        for index, states in enumerate(got):
            _finite(states.numpy(), "the exported file", f"hidden state {index}")
        similar.append(_cosines(got, wanted).sum(1))
        # In double precision: an infinite unit would make every difference zero.
        unit = wanted.double().std((1, 2)).clamp(min=1.0)
        worst.append((got.double() - wanted.double()).abs().amax((1, 2)) / unit)
        frames += wanted.shape[1]
        given = file([waveform])[name][0]
        _finite(given, "the exported file", name)
        outputs.append(_difference(given, wanted_output.numpy()))
    cosines = torch.stack(similar).sum(0) / frames
    differences = torch.stack(worst).amax(0)  # NaN stays NaN
    return Check(
        tuple(
            LayerCheck(index, float(cosine), float(difference))
            for index, (cosine, difference) in enumerate(zip(cosines, differences, strict=True))
        ),
        float(np.max(outputs)),
        _batching(
            file, name, [*(waveforms[: BATCHED - 1] or [long[: len(long) // 2]]), long], shortest
        ),
        len(waveforms),
        sum(len(waveform) for waveform in waveforms) / layers.sampling_rate,
        max(len(waveform) for waveform in (*waveforms, long)) / layers.sampling_rate,
    )


def shortest_of(loaded: LoadedModel) -> int:
    """Samples below which the model says nothing: an x-vector's head reads several frames at once, and a
    deviation needs two."""
    whole: Any = loaded.whole
    frames = 1
    if loaded.head == "x-vector":
        frames = 2 + sum((layer.kernel_size - 1) * layer.dilation for layer in whole.tdnn)
    return loaded.receptive_field + (frames - 1) * loaded.hop


def _batching(
    file: ExportedModel, name: str, waveforms: Sequence[np.ndarray], shortest: int
) -> float:
    """What a padded batch of different lengths changes against each utterance alone."""
    rows = []
    for share, waveform in zip(SHARES[-len(waveforms) :], waveforms, strict=True):
        short = round(share * len(waveform))
        rows.append(waveform[: max(short, shortest)])
    together = file(rows)[name]
    _finite(together, "the exported file", f"{name} of a padded batch")
    found = []
    for row, waveform in zip(together, rows, strict=True):
        alone = file([waveform])[name][0]
        found.append(_difference(row[: len(alone)] if alone.ndim > 1 else row, alone))
    return float(np.max(found))


def _finite(values: np.ndarray, whose: str, what: str) -> None:
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise ExportError(
            f"{whose} gives NaN or infinity in {what} ({bad:,} of {values.size:,} values)",
            "check the model's weights; such a file cannot be used",
        )


def _cosines(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(L, T, D) each -> (L, T); two frames of zeros are alike."""
    cosine = torch.nn.functional.cosine_similarity(got, wanted, dim=-1)
    both_zero = (got == 0).all(-1) & (wanted == 0).all(-1)
    return torch.where(both_zero, 1.0, cosine)


def _difference(got: np.ndarray, wanted: np.ndarray) -> float:
    unit = float(np.max([1.0, wanted.std(dtype=np.float64)]))
    return float(np.abs(got.astype(np.float64) - wanted).max()) / unit
