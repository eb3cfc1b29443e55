"""A model in torch with its head, how to feed it, and what it is."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from sslim.backbone.families import family_of
from sslim.backbone.frozen import ALL, LAST, Frozen, Layer
from sslim.backbone.heads import Head
from sslim.backbone.modeling_sslim import SslimModel, SslimPreTrainedModel
from sslim.backbone.settings import settings_of
from sslim.backbone.units import plan_of, shape_of
from sslim.backbone.waveforms import normalise
from sslim.identity import digest
from sslim.plan import MACS_SECONDS

CPU = torch.device("cpu")


@dataclass(frozen=True)
class LoadedModel:
    """A model, its head if it has one, and what is needed to feed and to name it."""

    whole: SslimPreTrainedModel
    """The model as it was found: a backbone, or a backbone under a head."""
    head: str
    """Head kind (see families.HEADS), "" for a bare backbone."""
    normalise: bool
    """Whether waveforms must be brought to zero mean and unit variance."""
    source: str
    """What finds it again: what the user called it, with the revision where one was given."""
    folder: Path | None
    """Where tokenizer and processor files lie, if it came from a folder or the hub."""
    commit: str | None = None
    """The commit on the hub that it came from."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over weights, configuration and normalisation; see `fingerprint`."""
        return fingerprint(self.whole, self.normalise)

    @property
    def model(self) -> SslimModel:
        """The backbone."""
        if isinstance(self.whole, SslimModel):
            return self.whole
        backbone: SslimModel = getattr(self.whole, self.whole.base_model_prefix)
        return backbone

    def head_alone(self) -> Head | None:
        """A copy of what sits on the backbone; None for a bare one."""
        return Head(self.whole, self.head) if self.head else None

    @property
    def family(self) -> str:
        return family_of(self.whole.config).name

    @property
    def hop(self) -> int:
        """Samples between two frames."""
        return shape_of(self.model).hop

    @property
    def receptive_field(self) -> int:
        """Samples that one frame reads, below which there is no frame."""
        return shape_of(self.model).shortest_input

    def prepare(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Waveforms (batch, samples), amplitude as decoded, as the model expects to hear them."""
        return normalise(waveforms) if self.normalise else waveforms

    def frozen(
        self,
        *,
        device: torch.device = CPU,
        precision: torch.dtype = torch.float32,
        name: str = "",
    ) -> Frozen:
        """The backbone as a frozen model; it is moved to `device`.

        Args:
            device: where it computes.
            precision: float32, or what autocast computes in.
            name: instead of the last part of `source`.
        """
        model: torch.nn.Module = self.model
        model = model.to(device).eval()

        @torch.inference_mode()
        def hidden_states(waveforms: np.ndarray, layer: Layer = ALL) -> np.ndarray:
            audio = torch.from_numpy(np.ascontiguousarray(waveforms, dtype=np.float32))
            audio = self.prepare(audio.to(device))
            lower = precision != torch.float32
            with torch.autocast(device.type, precision) if lower else nullcontext():
                output = model(audio, output_hidden_states=layer != LAST)
            if layer == LAST:
                states = output.last_hidden_state
            elif layer == ALL:
                states = torch.stack(output.hidden_states, 1)
            else:
                states = output.hidden_states[layer]
            features: np.ndarray = states.float().cpu().numpy()
            return features

        shape, plan = shape_of(self.model), plan_of(self.model)
        return Frozen(
            name=name or Path(self.source).name or self.source,
            layers=shape.layers + 1,
            width=shape.hidden_size,
            hop=self.hop,
            shortest=self.receptive_field,
            parameters=plan.parameters(shape),
            macs_per_second=round(plan.macs(shape) / MACS_SECONDS),
            fingerprint=self.fingerprint,
            model_fingerprint=self.fingerprint,
            numbers=f"{str(precision).removeprefix('torch.')} on {device.type}",
            hidden_states=hidden_states,
        )


def fingerprint(model: SslimPreTrainedModel, normalise: bool) -> str:
    """The identity of a model: what it computes from a waveform follows from what is hashed here.

    Names, shapes and float32 values of all weights; the class; every declared key of the configuration (the
    plan among them); whether waveforms are normalised.
    """
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(f"{name}{tuple(tensor.shape)}".encode())
        weights.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    settings = settings_of(model.config)
    settings.pop("architectures", None)  # the class says it
    return digest(type(model).__name__, settings, bool(normalise), weights.hexdigest())
