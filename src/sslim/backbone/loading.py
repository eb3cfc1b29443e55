"""Loading: whatever a user calls a model -> our float32 model, how to feed it, and what it is.

Files are read as data: a configuration and its weights become our own classes, and nothing that a folder
brings along is executed or asked about.
"""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from sslim.backbone.families import build, family_of, head_of, read_config, register
from sslim.backbone.heads import Head
from sslim.backbone.modeling_sslim import SslimModel, SslimPreTrainedModel
from sslim.backbone.places import Place, find
from sslim.backbone.processing import CLEANERS, normalises, read_tokenizer
from sslim.backbone.settings import settings_of
from sslim.backbone.weights import read_weights
from sslim.errors import TeacherError
from sslim.identity import digest


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
        return math.prod(self.model.config.conv_stride)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame reads, below which there is no frame."""
        config, samples = self.model.config, 1
        for kernel, stride in zip(
            reversed(config.conv_kernel), reversed(config.conv_stride), strict=True
        ):
            samples = (samples - 1) * stride + kernel
        return samples


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers draws progress bars and warns about what is checked strictly here anyway."""
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(logging.CRITICAL)  # it reports each retry of an unreachable hub
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.setLevel(hub_level)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


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


def load_model(source: str | Path, *, revision: str | None = None) -> LoadedModel:
    """Loads a hub id, a local folder, or a checkpoint file, as float32 in evaluation mode.

    Args:
        source: a folder, a file, or owner/name or owner/name@revision on the hub.
        revision: a branch, tag or commit of the hub.

    Raises:
        TeacherError: it does not exist, cannot be read, or is of an unknown family.
        ConversionError: a checkpoint file does not hold what its format promises.
    """
    place = find(source, revision)
    if place.path.is_file():
        return _from_file(place.path)
    config = _config_of(place)
    head = head_of(config)
    normalise = normalises(place, config)
    if head:
        place.bring(tuple(CLEANERS))
        read_tokenizer(place.path)  # found damaged now rather than when a result is written
    with quiet_transformers():
        ours = str(config.model_type).startswith("sslim-")
        whole = build(config, read_weights(place), head, place.name, strict=ours)
    return LoadedModel(whole, head, normalise, place.name, place.path, place.commit)


def load_config(source: str | Path, *, revision: str | None = None) -> Any:
    """The configuration alone of whatever `load_model` takes: of the dense family, or ours.

    Raises:
        TeacherError: as `load_model`.
    """
    place = find(source, revision)
    if place.path.is_file():
        from sslim.backbone.convert import read_checkpoint

        return read_checkpoint(place.path).config
    return _config_of(place)


def _config_of(place: Place) -> Any:
    register()
    path = place.path / "config.json"
    if not path.exists():
        raise TeacherError(
            f"the folder {place.name} has no config.json", "give a folder saved by save_pretrained"
        )
    with quiet_transformers():
        return read_config(path, place.name)


def _from_file(path: Path) -> LoadedModel:
    from sslim.backbone.convert import read_checkpoint

    register()
    checkpoint = read_checkpoint(path)
    head = head_of(checkpoint.config)
    with quiet_transformers():
        whole = build(checkpoint.config, checkpoint.state, head, str(path))
    normalise = bool(checkpoint.preprocessor["do_normalize"])
    return LoadedModel(whole, head, normalise, str(path), None)
