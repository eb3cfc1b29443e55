"""The models that tasks compare ("upstream" is SUPERB's word): frozen ones, and log-mel features."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sslim.backbone.frozen import ALL, LAST, Frozen, Layer
from sslim.backbone.opening import open_frozen
from sslim.errors import TeacherError
from sslim.evaluate.fbank import LOG_MEL, LogMel

FBANK = "fbank"


def open_upstream(
    model: str | Path, *, device: str = "auto", precision: str = "float32", name: str = ""
) -> Frozen:
    """What a user names: a folder or hub id, dense or compressed, an exported file, or `fbank`.

    Args:
        model: what to load.
        device: as in the settings of a run.
        precision: `float32`, `bfloat16`, or `auto` for bfloat16 where the device is fast at it.
        name: in tables, instead of `model`.

    Raises:
        TeacherError: there is no such model, it is no speech model, or it does not give out all layers.
        ConfigError: the device does not exist here.
    """
    if str(model) == FBANK:
        return log_mel_upstream(LOG_MEL, name or FBANK)
    frozen = open_frozen(model, device=device, precision=precision, name=name)
    if "hidden_states" not in frozen.outputs:
        raise TeacherError(
            f"{model} gives out its last layer only, and tasks weigh all layers",
            "export it again with --all-layers",
        )
    return frozen


def log_mel_upstream(settings: LogMel, name: str = FBANK) -> Frozen:
    """Log-mel features as a model of one layer, without parameters."""

    def hidden_states(waveforms: np.ndarray, layer: Layer = ALL) -> np.ndarray:
        states = np.stack([settings(waveform) for waveform in waveforms])
        if layer == ALL:
            return states
        return states[:, -1 if layer == LAST else int(layer)]

    return Frozen(
        name=name,
        layers=1,
        width=settings.bands,
        hop=settings.hop,
        shortest=settings.window,
        parameters=0,
        macs_per_second=0,
        fingerprint=settings.fingerprint,
        model_fingerprint=settings.fingerprint,
        numbers="",
        hidden_states=hidden_states,
    )
