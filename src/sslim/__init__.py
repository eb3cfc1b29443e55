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
from types import ModuleType
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

if TYPE_CHECKING:
    from sslim.backbone import load as load
    from sslim.compress import compress as compress
    from sslim.deploy.export import export as export

__version__ = "0.1.0"

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
    "compress": "sslim.compress",
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


class _Package(ModuleType):
    """The package as a module whose public functions are not hidden by modules of the same name.

    Having imported `sslim/compress.py`, Python binds that module to `sslim.compress`, where the
    function of that name belongs. We refuse that binding, so `sslim.compress` is the function (with
    its own signature and help) whatever was imported before. The module is reached as ever by
    `from sslim.compress import ...`, or whole as `sys.modules["sslim.compress"]`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
register_when_imported()
