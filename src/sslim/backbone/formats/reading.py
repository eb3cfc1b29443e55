"""Opening files that may hold anything: never unpickled without `weights_only=True`.

fairseq files carry their settings as objects of classes that are not installed here. Those classes are
allowed by name, each replaced by an inert stand-in; any other class is refused by name.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import typing
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file

from sslim.errors import ConversionError, first_line


class StandIn:
    """Takes the place of a class that is not installed: holds attributes, does nothing."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.__dict__.update(settings)
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


STAND_INS = (
    "fairseq.data.dictionary.Dictionary",
    "fairseq.dataclass.configs.FairseqConfig",
    "fairseq.tasks.audio_pretraining.AudioPretrainingConfig",
    "fairseq.tasks.hubert_pretraining.HubertPretrainingConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode",
)
"""Classes of fairseq's settings and dictionaries, replaced when met."""

PLAIN = (
    (argparse.Namespace, "argparse.Namespace"),
    (collections.defaultdict, "collections.defaultdict"),
    (typing.Any, "typing.Any"),
    (dict, "builtins.dict"),
    (list, "builtins.list"),
    (int, "builtins.int"),
    (float, "builtins.float"),
    (str, "builtins.str"),
    (bool, "builtins.bool"),
)
"""Harmless classes of Python that fairseq's files name."""


def read_file(path: Path) -> Any:
    """The contents of a checkpoint file, tensors on the CPU.

    Raises:
        ConversionError: it does not exist, is no checkpoint, is cut short, or names a class that is
            not allowed.
    """
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise ConversionError(f"{path} does not exist", "check the path")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # a damaged file can break the reader anywhere
            raise ConversionError(
                f"{path} is not a safetensors file: {first_line(error)}", "copy it again"
            ) from error
    _refuse_bombs(path)
    stand_ins = [(type(name.rpartition(".")[2], (StandIn,), {}), name) for name in STAND_INS]
    allowed: list[Any] = [*PLAIN, *stand_ins]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; whatever matters is an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise ConversionError(
                f"{path} wants to load {refused[1]}, which is not on the list of allowed names",
                "a checkpoint needs no such thing; do not trust this file",
            ) from error
        raise ConversionError(
            f"{path} is not a checkpoint that torch can read", _advice(path)
        ) from error
    except Exception as error:  # a damaged file can break the reader anywhere
        raise ConversionError(
            f"{path} is not a checkpoint that torch can read", _advice(path)
        ) from error


def _refuse_bombs(path: Path) -> None:
    """torch stores values as they are: whatever unpacks to more than the file holds is no checkpoint.

    Raises:
        ConversionError: the file would unpack to more than its own size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except Exception:  # no zip (torch's older format), or a damaged one: torch says so itself
        return
    if size > path.stat().st_size:
        raise ConversionError(
            f"{path} would unpack to {size:,} bytes, more than it has",
            "torch.save writes no such file",
        )


def _advice(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(64).lstrip()
    if start[:1] in (b"<", b"{") or start.startswith(b"version https://git-lfs"):
        return "it is a text or web page, not the file itself; download it again"
    return "it is damaged or cut short; download it again"
