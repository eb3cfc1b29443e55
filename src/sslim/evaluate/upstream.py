"""A frozen model as tasks see it: waveforms in, the hidden states of every layer out.

Shape legend: B clips of equal length, S samples, L layers (the input of the first one included), T frames,
D width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sslim import identity
from sslim.backbone.exported import ExportedModel
from sslim.backbone.loading import LoadedModel, load_model
from sslim.backbone.reading import normalise
from sslim.backbone.units import plan_of, shape_of
from sslim.device import choose_device, choose_precision
from sslim.errors import TeacherError
from sslim.evaluate.fbank import LOG_MEL, LogMel
from sslim.plan import MACS_SECONDS

FBANK = "fbank"


@dataclass(frozen=True)
class Upstream:
    """A feature extractor and what is known of it; "upstream" is SUPERB's word."""

    name: str
    layers: int
    width: int
    hop: int
    """Samples between two frames."""
    parameters: int
    macs_per_second: int
    """Multiply-accumulates per second of audio, measured on utterances of 10 s."""
    fingerprint: str
    """Of what is run: a torch model (weights and configuration), an exported file, the log-mel settings."""
    model_fingerprint: str
    """Of the torch model behind it: the same, unless an exported file is run."""
    numbers: str
    """What the arithmetic is done in and on, such as "bfloat16 on cpu"; empty where a file decides."""
    extract: Callable[[np.ndarray], np.ndarray]
    """Waveforms (B, S) float32 at 16 kHz -> (B, L, T, D) float32. Nothing is padded: a batch of equally
    long clips gives what each of them gives alone."""
    shortest: int = 400
    """Samples below which there is no frame."""

    @property
    def identity(self) -> str:
        """The same exactly when the features of any audio are the same."""
        return identity.digest("upstream", identity.COMPUTATION, self.fingerprint, self.numbers)

    def frames(self, samples: int) -> int:
        """About how many frames a clip has."""
        return max(1, samples // self.hop)


def open_upstream(
    model: str | Path, *, device: str = "auto", precision: str = "float32", name: str = ""
) -> Upstream:
    """The upstream that a user names: a folder or hub id, dense or compressed, or `fbank`.

    Args:
        model: what to load.
        device: as in the settings of a run.
        precision: `float32`, `bfloat16`, or `auto` for bfloat16 where the device is fast at it.
        name: in tables, instead of `model`.

    Raises:
        TeacherError: there is no such model, or it is no speech model.
        ConfigError: the device does not exist here.
    """
    if str(model) == FBANK:
        return log_mel_upstream(LOG_MEL, name or FBANK)
    if str(model).endswith(".onnx"):
        return _exported(str(model), name)
    loaded = load_model(model)
    place = choose_device(device)
    dtype = choose_precision(precision, place)
    shape, plan = shape_of(loaded.model), plan_of(loaded.model)
    return Upstream(
        name=name or Path(str(model)).name or str(model),
        layers=loaded.model.config.num_hidden_layers + 1,
        width=loaded.model.config.hidden_size,
        hop=loaded.hop,
        parameters=plan.parameters(shape),
        macs_per_second=round(plan.macs(shape) / MACS_SECONDS),
        fingerprint=loaded.fingerprint,
        model_fingerprint=loaded.fingerprint,
        numbers=f"{str(dtype).removeprefix('torch.')} on {place.type}",
        extract=_extractor(loaded, place, dtype),
        shortest=loaded.receptive_field,
    )


def _extractor(
    loaded: LoadedModel, device: torch.device, dtype: torch.dtype
) -> Callable[[np.ndarray], np.ndarray]:
    model: torch.nn.Module = loaded.model
    model = model.to(device).eval()

    @torch.inference_mode()
    def extract(waveforms: np.ndarray) -> np.ndarray:
        audio_BS = torch.from_numpy(np.ascontiguousarray(waveforms, dtype=np.float32)).to(device)
        if loaded.normalise:
            audio_BS = normalise(audio_BS)
        context = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
        with context:
            states = model(audio_BS, output_hidden_states=True).hidden_states
        features: np.ndarray = torch.stack(states, 1).float().cpu().numpy()
        return features

    return extract


def _exported(path: str, name: str) -> Upstream:
    """An exported file. Tasks read all layers, so it must give them out."""
    file = ExportedModel(path)
    if "hidden_states" not in file.outputs:
        raise TeacherError(
            f"{path} gives out its last layer only, and tasks weigh all layers",
            "export it again with --all-layers",
        )
    facts = file.facts

    def extract(waveforms: np.ndarray) -> np.ndarray:
        states = file(list(np.ascontiguousarray(waveforms, dtype=np.float32)))["hidden_states"]
        return np.ascontiguousarray(states.transpose(1, 0, 2, 3))

    return Upstream(
        name=name or Path(path).name,
        layers=facts["layers"],
        width=facts["width"],
        hop=file.hop,
        parameters=facts["parameters"],
        macs_per_second=facts["macs_per_second"],
        # The same model in other numbers gives other features.
        fingerprint=file.fingerprint,
        model_fingerprint=facts["fingerprint"],
        numbers="",
        extract=extract,
        shortest=file.shortest,
    )


def log_mel_upstream(settings: LogMel, name: str = FBANK) -> Upstream:
    """Log-mel features as a model without parameters."""

    def extract(waveforms: np.ndarray) -> np.ndarray:
        return np.stack([settings(waveform) for waveform in waveforms])

    return Upstream(
        name=name,
        layers=1,
        width=settings.bands,
        hop=settings.hop,
        parameters=0,
        macs_per_second=0,
        fingerprint=settings.fingerprint,
        model_fingerprint=settings.fingerprint,
        numbers="",
        extract=extract,
    )
