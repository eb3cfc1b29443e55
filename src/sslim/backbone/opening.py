"""Opening whatever a user names as a frozen model."""

from __future__ import annotations

from pathlib import Path

from sslim.backbone.exported import ExportedModel
from sslim.backbone.frozen import Frozen


def open_frozen(
    source: str | Path, *, device: str = "cpu", precision: str = "float32", name: str = ""
) -> Frozen:
    """A frozen model from an exported `.onnx` file, or from what `load_model` takes.

    Args:
        source: the file; or a folder, hub id or checkpoint file.
        device: as in the settings of a run; an exported file runs on the processor.
        precision: `float32`, `bfloat16`, or `auto` for bfloat16 where the device is fast at it; an exported
            file has its own.
        name: in tables and messages, instead of the last part of `source`.

    Raises:
        TeacherError: there is no such model, or it is no speech model.
        ConfigError: the device does not exist here, or onnxruntime is not installed.
    """
    if str(source).endswith(".onnx"):
        return ExportedModel(source).frozen(name)
    # torch takes seconds to import, and an exported file runs without it.
    from sslim.backbone.loading import load_model
    from sslim.device import choose_device, choose_precision

    loaded = load_model(source)
    chosen = choose_device(device)
    return loaded.frozen(device=chosen, precision=choose_precision(precision, chosen), name=name)
