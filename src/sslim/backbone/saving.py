"""Saving: a folder that loads anywhere, and that says what its files were when they were written.

Files are written aside, synced and moved, `sslim.json` last: where it stands, everything it names stands.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sslim.backbone import modeling_sslim
from sslim.backbone.contents import (
    ASIDE,
    CARD,
    MODEL_CODE,
    PREPROCESSOR,
    RECORD,
    WEIGHTS,
    FolderFacts,
)
from sslim.backbone.families import family_of, register
from sslim.backbone.loaded import LoadedModel
from sslim.backbone.loading import load_model, quiet_transformers
from sslim.backbone.modeling_sslim import SslimModel, SslimPreTrainedModel
from sslim.backbone.places import exists
from sslim.backbone.processing import preprocessor, read_tokenizer
from sslim.errors import OutputError, first_line
from sslim.files import fsync_file, fsync_folder
from sslim.identity import sha256_of

NOTHING_MORE = FolderFacts()
"""A folder of which nothing is known but its files."""


def under_head(
    teacher: LoadedModel, student: SslimModel, weights: Mapping[str, torch.Tensor] | None = None
) -> SslimPreTrainedModel:
    """The student under the teacher's head; the residual width does not change, so it fits as it is.

    Args:
        weights: of a head that has learned on, under their names in the whole model; None: the teacher's.
    """
    if not teacher.head:
        return student
    config = copy.deepcopy(student.config)
    config.plan = student.config.plan
    family = family_of(config)
    config.architectures = [family.model_class(teacher.head).__name__]
    with torch.random.fork_rng(devices=[]):
        whole = family.model_class(teacher.head)(config)
    state = {f"{family.prefix}.{name}": value for name, value in student.state_dict().items()}
    for name, value in (teacher.whole.state_dict() if weights is None else weights).items():
        if not name.startswith(f"{family.prefix}."):
            state[name] = value
    whole.load_state_dict(state, strict=True)
    return whole.eval()


@contextmanager
def _written_last(out: Path, advice: str, mine: Collection[str] | None = None) -> Iterator[Path]:
    """Gives a folder to write to, whose files are moved into `out` when the block ends well, the record last.

    Args:
        out: made where it is not there. Files in it of other names stay.
        advice: what to do where the disk is full, for the message.
        mine: names that may be replaced in `out` (None: all).

    Raises:
        OutputError: the disk is full or the folder cannot be written, or a file in `out` is not ours. Nothing
            half-written is left.
    """
    out = Path(os.path.abspath(out))  # "." has no name
    made, aside = not exists(out), out / ASIDE
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        fresh = sorted(aside.iterdir(), key=lambda path: (path.name == RECORD, path.name))
        for path in fresh:
            if mine is not None and path.name not in mine and (out / path.name).exists():
                raise OutputError(
                    f"{out / path.name} is in the way and was not written by sslim",
                    "move it away, or choose another folder",
                )
        for path in fresh:
            fsync_file(path)
            path.chmod(0o644)  # safetensors writes for the owner alone; models are shared
        for path in fresh:
            path.replace(out / path.name)
            if path.name != RECORD:
                fsync_folder(out)
        aside.rmdir()
        fsync_folder(out)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # not there, or not empty
                out.rmdir()
        if isinstance(error, (OSError, SafetensorError)):  # safetensors wraps what the disk says
            raise OutputError(f"cannot write {out}: {first_line(error)}", advice) from error
        raise


def _record(aside: Path, facts: FolderFacts) -> None:
    """`sslim.json`: the facts with the identity of the model as it loads, and of each file."""
    files = {path.name: sha256_of(path) for path in sorted(aside.iterdir()) if path.name != CARD}
    loaded = load_model(aside)
    replace(facts, fingerprint=loaded.fingerprint, files=files).write(aside / RECORD)


def save_folder(
    out: Path,
    whole: SslimPreTrainedModel,
    *,
    normalise: bool,
    facts: FolderFacts = NOTHING_MORE,
    card: str = "",
    tokenizer_from: Path | None = None,
    finalise: Callable[[Path], tuple[FolderFacts, str]] | None = None,
    mine: Collection[str] | None = None,
) -> None:
    """Writes config, weights, model code, preprocessor, `sslim.json` and the model card into `out`.

    `sslim.json` is `facts`, with the model's fingerprint and the SHA-256 of weights, model code,
    configuration, preprocessor and tokenizer. Files already in `out` that are not ours (checkpoints, logs)
    stay. `finalise` is called with the folder once the weights are written, and returns `facts` and `card`
    with what is only known then. `mine`: names that may be replaced in `out` (None: all).

    Raises:
        OutputError: the disk is full or the folder cannot be written; nothing half-written is left.
        TeacherError: a tokenizer's file is damaged, or a weight is not finite.
    """
    register()
    again = "" if mine is not None else ", then run again with --resume"
    with _written_last(out, f"free space or choose another folder{again}", mine) as aside:
        whole.config.auto_map = family_of(whole.config).auto_map
        whole.config.architectures = [type(whole).__name__]
        with quiet_transformers():
            whole.save_pretrained(aside)
        shutil.copyfile(modeling_sslim.__file__, aside / MODEL_CODE)
        _json(aside / PREPROCESSOR, preprocessor(normalise))
        if tokenizer_from is not None:
            for name, text in read_tokenizer(tokenizer_from).items():
                (aside / name).write_text(text, encoding="utf-8")
        if finalise is not None:
            facts, card = finalise(aside)
        _record(aside, facts)
        if card:
            (aside / CARD).write_text(card, encoding="utf-8")


def _json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def save_dense(
    out: Path,
    config: Any,
    whole: SslimPreTrainedModel,
    *,
    normalise: bool,
    files: Mapping[str, str],
    facts: FolderFacts = NOTHING_MORE,
    mine: Collection[str] | None = None,
) -> None:
    """Writes a dense model as a folder of its family in transformers, weights under their names there.

    Args:
        out: the folder.
        config: of the dense family.
        whole: the model.
        normalise: whether waveforms are brought to zero mean and unit variance.
        files: further files: name -> text.
        facts: what `sslim.json` says besides fingerprint and files.
        mine: names that may be replaced in `out` (None: all).

    Raises:
        OutputError: the folder cannot be written; nothing half-written is left.
    """
    prefix = family_of(config).prefix
    own = dict(whole.state_dict())
    start = f"{prefix}." if type(whole).__name__ != family_of(config).model_class().__name__ else ""
    table = f"{start}encoder.rel_attn_embed.weight"
    if table in own:
        own[f"{start}encoder.layers.0.attention.rel_attn_embed.weight"] = own.pop(table)
    with _written_last(out, "free space or choose another folder", mine) as aside:
        config.save_pretrained(aside)
        weights = {name: tensor.contiguous() for name, tensor in own.items()}
        save_file(weights, aside / WEIGHTS, metadata={"format": "pt"})
        _json(aside / PREPROCESSOR, preprocessor(normalise))
        for name, text in files.items():
            (aside / name).write_text(text, encoding="utf-8")
        _record(aside, facts)
