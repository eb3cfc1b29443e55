"""Slims self-supervised speech models: HuBERT, WavLM, wav2vec 2.0, data2vec-audio.

    import sslim

    result = sslim.compress("facebook/hubert-base-ls960", "my_audio/", "small/", params="25%")
    model = sslim.load("small/")

Importing the package is cheap: torch is imported when a function is first used. Once transformers
is imported beside it, `AutoModel.from_pretrained` reads our folders without `trust_remote_code`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sslim.auto_classes import register_when_imported
from sslim.errors import (
    AudioError,
    BudgetError,
    ConfigError,
    ConversionError,
    ExportError,
    OutputError,
    SslimError,
    TeacherError,
    TrainingError,
)
from sslim.version import __version__

if TYPE_CHECKING:
    from sslim.backbone import load as load
    from sslim.deploy.export import export as export
    from sslim.story import compress as compress

__all__ = [
    "compress",
    "export",
    "load",
    "SslimError",
    "ConfigError",
    "AudioError",
    "TeacherError",
    "ConversionError",
    "BudgetError",
    "ExportError",
    "OutputError",
    "TrainingError",
    "__version__",
]

_LAZY = {
    "compress": "sslim.story",
    "export": "sslim.deploy.export",
    "load": "sslim.backbone",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sslim' has no attribute '{name}'")
    value = getattr(import_module(_LAZY[name]), name)
    setattr(sys.modules[__name__], name, value)  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


register_when_imported()
