"""An exported ONNX file as a model: opened once, fed with waveforms, refusing what would give garbage.

Needs onnxruntime (`pip install 'sslim[deploy]'`), not torch. `examples/onnx_only.py` does the same without
sslim.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sslim.backbone.frozen import ALL, LAST, Frozen, Layer
from sslim.errors import AudioError, ConfigError, TeacherError, first_line
from sslim.identity import content_of
from sslim.plan import SAMPLING_RATE

LARGEST = 2**31
"""Bytes of an ONNX file: more does not fit the format, and `sslim export` writes one file."""
INPUTS = {"waveform", "lengths"}
LONGEST_FRAME = 160_000
"""Samples that one frame of a model may read; see backbone.settings."""


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
            what = "is not a file" if self.path.exists() else "does not exist"
            raise TeacherError(f"the file {path} {what}", "make it with sslim export")
        if self.path.stat().st_size > LARGEST:
            raise TeacherError(
                f"{path} is larger than an ONNX file can be", "make it with sslim export"
            )
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
            self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
            outputs = self.session.get_outputs()
            self.outputs = [output.name for output in outputs]
            inputs = {entry.name for entry in self.session.get_inputs()}
        except Exception as error:  # onnxruntime's own kinds have no common base but this
            raise TeacherError(
                f"{path} cannot be opened by onnxruntime: {first_line(error)}",
                "export the model again, or update onnxruntime (1.22 or newer)",
            ) from error
        if "sslim" not in self.metadata:
            raise TeacherError(
                f"{path} was not written by sslim export", "export the model with sslim export"
            )
        states = {"last_hidden_state", "hidden_states", "logits"} & set(self.outputs)
        if inputs != INPUTS or "frame_lengths" not in self.outputs or not states:
            raise self._odd("its inputs or outputs are others")
        self.facts: dict[str, Any] = self._facts()
        """What the file knows of its model: family, counts, layers, width, the torch model's fingerprint."""
        for output in outputs:
            wide = output.shape[-1] if output.shape else 0
            if "hidden_state" in output.name and wide != self.facts["width"]:
                raise self._odd(f"{output.name} is not {self.facts['width']} wide")
        self.sampling_rate = self._count("sampling_rate", SAMPLING_RATE, SAMPLING_RATE)
        self.hop = self._count("hop", 1, LONGEST_FRAME)
        """Samples between two frames."""
        self.shortest = self._count("receptive_field", 1, LONGEST_FRAME)
        """Samples below which there is no frame."""

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the file: the same model in other numbers gives other features."""
        return content_of(self.path)

    def frozen(self, name: str = "") -> Frozen:
        """The file as a frozen model.

        Args:
            name: instead of the file's.
        """

        def hidden_states(waveforms: np.ndarray, layer: Layer = ALL) -> np.ndarray:
            outputs = self(list(np.ascontiguousarray(waveforms, dtype=np.float32)))
            if layer == LAST:
                return outputs["last_hidden_state"]
            states = outputs["hidden_states"]  # (L, B, T, D)
            if layer == ALL:
                return np.ascontiguousarray(states.swapaxes(0, 1))
            return states[layer]

        return Frozen(
            name=name or self.path.name,
            layers=self.facts["layers"],
            width=self.facts["width"],
            hop=self.hop,
            shortest=self.shortest,
            parameters=self.facts["parameters"],
            macs_per_second=self.facts["macs_per_second"],
            fingerprint=self.fingerprint,
            model_fingerprint=self.facts["fingerprint"],
            numbers="",
            hidden_states=hidden_states,
            outputs=tuple(self.outputs),
        )

    def _odd(self, what: str) -> TeacherError:
        return TeacherError(
            f"{self.path} is not as sslim export writes files: {what}", "export the model again"
        )

    def _facts(self) -> dict[str, Any]:
        """The facts in the metadata.

        Raises:
            TeacherError: one is missing or of the wrong kind.
        """
        try:
            facts = json.loads(self.metadata["sslim"])
            counts = [facts[name] for name in ("layers", "width", "parameters", "macs_per_second")]
            texts = [facts[name] for name in ("family", "fingerprint", "head", "source")]
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise self._odd("the facts of its model are damaged") from error
        if not all(type(count) is int and 0 < count < 10**15 for count in counts):
            raise self._odd("the counts of its model are no whole numbers")
        if not all(isinstance(text, str) for text in texts):
            raise self._odd("the names of its model are no text")
        whole: dict[str, Any] = facts
        return whole

    def _count(self, name: str, low: int, high: int) -> int:
        text = self.metadata.get(name, "")
        if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
            raise self._odd(f"{name} is {text[:40]!r}")
        return int(text)

    def __call__(self, waveforms: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Runs waveforms of any lengths as one padded batch.

        Args:
            waveforms: float32 at `sampling_rate`, (samples,) each, amplitude as decoded (-1 to 1).

        Returns:
            output name -> array, zero where an utterance has no frame; `frame_lengths` (B,) says where.

        Raises:
            AudioError: a waveform has the wrong type or shape, is too short, or holds NaN or infinity.
        """
        if not len(waveforms):
            raise AudioError("there is no waveform to run", "give at least one")
        for number, waveform in enumerate(waveforms):
            check_waveform(waveform, f"waveform {number}", self.shortest)
        lengths = np.array([len(waveform) for waveform in waveforms], np.int64)
        batch = np.zeros((len(waveforms), lengths.max()), np.float32)
        for row, waveform in zip(batch, waveforms, strict=True):
            row[: len(waveform)] = waveform
        try:
            found = self.session.run(None, {"waveform": batch, "lengths": lengths})
        except Exception as error:  # a graph that is another's, or no memory for a batch this long
            raise TeacherError(
                f"{self.path} cannot be run on {len(lengths)} waveforms of up to {batch.shape[1]} samples: "
                f"{first_line(error)}",
                "give shorter audio, or export the model again",
            ) from error
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
