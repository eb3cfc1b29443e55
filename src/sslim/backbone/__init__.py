"""The one place that knows the families: loading, hidden states, units, saving, foreign formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sslim.backbone.modeling_sslim import SslimPreTrainedModel


def load(source: str | Path) -> SslimPreTrainedModel:
    """A model from a folder, a hub id or a checkpoint file: float32, in evaluation mode.

    Returns a backbone, or a model with its head where the checkpoint has one. `model(waveforms,
    output_hidden_states=True)` takes (batch, samples) at 16 kHz.

    Raises:
        TeacherError: it does not exist, cannot be read, or is of an unknown family.
    """
    from sslim.backbone.loading import load_model

    return load_model(source).whole
