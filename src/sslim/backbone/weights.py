"""Weights of a folder in the layout of transformers: one file or shards, safetensors or torch's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sslim.backbone.formats.reading import read_file
from sslim.backbone.places import Place
from sslim.errors import ConversionError, TeacherError, first_line
from sslim.files import read_json

WHOLE = ("model.safetensors", "pytorch_model.bin")
MOST_SHARDS = 1000


def read_weights(place: Place) -> dict[str, torch.Tensor]:
    """The weights of a folder, by their names there. safetensors go before torch's format.

    Raises:
        TeacherError: there are none, or a file is damaged or asks to execute something.
    """
    for name in WHOLE:
        if place.bring([name]):
            return _read(place.path / name, place.name)
        index = f"{name}.index.json"
        if place.bring([index]):
            return _read_shards(place, index)
    raise TeacherError(
        f"{place.name} has no weights ({' or '.join(WHOLE)})",
        "check that the download or copy is complete",
    )


def _read_shards(place: Place, index: str) -> dict[str, torch.Tensor]:
    table = read_json(place.path / index, "an index of weights", TeacherError).get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    # A name with a folder in it could be any file of the disk.
    if not 1 <= len(names) <= MOST_SHARDS or any(
        Path(name).name != name or not name.endswith((".safetensors", ".bin")) for name in names
    ):
        raise TeacherError(
            f"{place.path / index} does not list the files of the weights", "download it again"
        )
    state: dict[str, torch.Tensor] = {}
    for name in names:
        if not place.bring([name]):
            raise TeacherError(
                f"{place.name} lacks {name}", "check that the download or copy is complete"
            )
        state |= _read(place.path / name, place.name)
    return state


def _read(path: Path, source: str) -> dict[str, torch.Tensor]:
    advice = "check that the download or copy is complete"
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # a damaged file can break the reader anywhere
            raise TeacherError(
                f"cannot load the weights of {source}: {path.name}: {first_line(error)}", advice
            ) from error
    try:
        state: Any = read_file(path)
    except ConversionError as error:
        raise TeacherError(
            f"cannot load the weights of {source}: {error.problem}", error.hint
        ) from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise TeacherError(f"{path} holds no weights by name", advice)
    return state
