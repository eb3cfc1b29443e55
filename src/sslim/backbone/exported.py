"""An exported ONNX file as a model: opened once, fed with waveforms, refusing what would give garbage.

Needs onnxruntime (`pip install 'sslim[deploy]'`), not torch. `examples/onnx_only.py` does the same without
sslim.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslim.errors import AudioError, ConfigError, TeacherError


class ExportedModel:
    """A file that `sslim export` wrote.

    Args:
        path: the file.
        threads: threads for one product; 0 lets the runtime choose.

    Raises:
        TeacherError: the file is not there, is damaged, or was not written by `sslim export`.
        ConfigError: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise TeacherError(f"the file {path} does not exist", "make it with sslim export")
        runtime = onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Plans of memory are per shape, and audio has many: they cost memory and save no time here.
        options.enable_mem_pattern = False
        try:
            self.session = runtime.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own kinds have no common base but this
            raise TeacherError(
                f"{path} cannot be opened by onnxruntime: {_first(error)}",
                "export the model again, or update onnxruntime (1.22 or newer)",
            ) from error
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        if "sslim" not in self.metadata:
            raise TeacherError(
                f"{path} was not written by sslim export", "export the model with sslim export"
            )
        self.outputs = [output.name for output in self.session.get_outputs()]

    @property
    def sampling_rate(self) -> int:
        return int(self.metadata["sampling_rate"])

    @property
    def hop(self) -> int:
        """Samples between two frames."""
        return int(self.metadata["hop"])

    @property
    def shortest(self) -> int:
        """Samples below which there is no frame."""
        return int(self.metadata["receptive_field"])

    @property
    def facts(self) -> dict[str, Any]:
        """What the file knows of its model: family, counts, layers, width, fingerprint."""
        facts: dict[str, Any] = json.loads(self.metadata["sslim"])
        return facts

    def __call__(self, waveforms: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Runs waveforms of any lengths as one padded batch.

        Args:
            waveforms: float32 at `sampling_rate`, (samples,) each, amplitude as decoded (-1 to 1).

        Returns:
            output name -> array, zero where an utterance has no frame; `frame_lengths` (B,) says where.

        Raises:
            AudioError: a waveform has the wrong type or shape, is too short, or holds NaN or infinity.
        """
        for number, waveform in enumerate(waveforms):
            check_waveform(waveform, f"waveform {number}", self.shortest)
        lengths = np.array([len(waveform) for waveform in waveforms], np.int64)
        batch = np.zeros((len(waveforms), lengths.max()), np.float32)
        for row, waveform in zip(batch, waveforms, strict=True):
            row[: len(waveform)] = waveform
        found = self.session.run(None, {"waveform": batch, "lengths": lengths})
        return dict(zip(self.outputs, found, strict=True))


def check_waveform(waveform: Any, name: str, shortest: int) -> None:
    """Refuses what a model would turn into garbage.

    Raises:
        AudioError: see `ExportedModel.__call__`.
    """
    if not isinstance(waveform, np.ndarray) or waveform.ndim != 1:
        shape = getattr(waveform, "shape", type(waveform).__name__)
        raise AudioError(f"{name} has shape {shape}, not (samples,)", "give mono audio as a vector")
    if waveform.dtype != np.float32:
        raise AudioError(
            f"{name} is {waveform.dtype}, not float32",
            "convert it: integers divided by their largest value, then astype(numpy.float32)",
        )
    if len(waveform) < shortest:
        raise AudioError(
            f"{name} has {len(waveform)} samples, which is too short for one frame",
            f"give at least {shortest} samples",
        )
    if not np.isfinite(waveform).all():
        raise AudioError(f"{name} holds NaN or infinity", "repair or drop it")


def onnxruntime() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import onnxruntime as runtime
    except ImportError as error:
        raise ConfigError(
            "ONNX files need the package onnxruntime, which is not installed",
            "run: pip install 'sslim[deploy]'",
        ) from error
    return runtime


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
