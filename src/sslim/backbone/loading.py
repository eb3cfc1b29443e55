"""Loading: whatever a user calls a model -> our float32 model, how to feed it, and what it is.

Files are read as data: a configuration and its weights become our own classes, and nothing that a folder
brings along is executed or asked about.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from sslim.backbone.families import build, head_of, read_config, register
from sslim.backbone.formats import read_checkpoint
from sslim.backbone.loaded import LoadedModel
from sslim.backbone.places import Place, find
from sslim.backbone.processing import CLEANERS, normalises, read_tokenizer
from sslim.backbone.weights import read_weights
from sslim.errors import TeacherError


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
    register()
    checkpoint = read_checkpoint(path)
    head = head_of(checkpoint.config)
    with quiet_transformers():
        whole = build(checkpoint.config, checkpoint.state, head, str(path))
    return LoadedModel(whole, head, checkpoint.normalise, str(path), None)
