"""Foreign checkpoints (see `formats`), folders and hub ids -> folders that transformers loads.

Dense models become folders of the dense family, pruned ones folders of ours. A weight that is missing, left
over or misshapen is an error that names it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslim.backbone.contents import (
    ASIDE,
    CONFIG,
    MODEL_CODE,
    PREPROCESSOR,
    RECORD,
    WEIGHTS,
    ConversionFacts,
    ConvertedFrom,
)
from sslim.backbone.families import FAMILIES, build, head_of
from sslim.backbone.formats import read_checkpoint
from sslim.backbone.loading import load_model
from sslim.backbone.places import Place, exists, find
from sslim.backbone.processing import read_tokenizer
from sslim.backbone.saving import save_dense, save_folder
from sslim.backbone.settings import configuration, settings_of
from sslim.errors import ConversionError, OutputError, TeacherError

ONCE_WRITTEN = (CONFIG, WEIGHTS, MODEL_CODE, PREPROCESSOR)
"""What `convert` wrote when its record did not name files yet."""


@dataclass(frozen=True)
class Converted:
    """What was found in a file and where it went."""

    out: Path
    family: str
    source_format: str
    parameters: int
    notes: tuple[str, ...]

    def summary_line(self) -> str:
        """One line for the user."""
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        return f"{self.out}: {self.family}, {self.parameters:,} parameters, from {self.source_format}{notes}"


def convert(
    file: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    family: str | None = None,
    revision: str | None = None,
) -> Converted:
    """Writes a foreign checkpoint, or the model of a folder or hub id, as a folder that transformers loads.

    Args:
        file: a checkpoint; or a folder or hub id, whose weights become safetensors and whose code, if any,
            stays behind.
        out: the folder to write.
        force: replace what an earlier conversion wrote in `out`; other files stay.
        family: see `formats.read_checkpoint`.
        revision: of a hub id.

    Raises:
        ConversionError: see `formats.read_checkpoint`; or a weight is missing, left over or misshapen.
        TeacherError: a folder or hub id cannot be loaded.
        OutputError: `out` holds something else than an earlier conversion (or that, and `force` is not
            given), or cannot be written.
    """
    out = Path(out)
    mine = _replaceable(out, force=force)
    # A path that is not there is the reader's to explain.
    if revision is None and (Path(file).suffix or exists(Path(file))) and not os.path.isdir(file):
        model = _of_file(Path(file), family)
    else:
        model = _of_model(find(file, revision))
    if exists(Path(file)) and _inside(Path(file), out) and Path(file).name in mine:
        raise OutputError(f"{file} lies in {out}, and would be replaced", "choose another name")
    facts = ConversionFacts(converted_from=model.described)
    if model.dense is not None:
        save_dense(
            out,
            model.dense,
            model.whole,
            normalise=model.normalise,
            files=model.files,
            facts=facts,
            mine=mine,
        )
    else:
        save_folder(
            out,
            model.whole,
            normalise=model.normalise,
            facts=facts,
            tokenizer_from=model.folder,
            mine=mine,
        )
    _drop_stale(out, mine)
    return Converted(
        out=out,
        family=str(model.whole.config.model_type).removeprefix("sslim-"),
        source_format=model.described.format,
        parameters=sum(parameter.numel() for parameter in model.whole.parameters()),
        notes=model.notes,
    )


@dataclass(frozen=True)
class _ModelToWrite:
    """A model to write, wherever it comes from."""

    whole: Any
    dense: Any
    """Its configuration in transformers, None where it has none (pruned)."""
    normalise: bool
    files: Mapping[str, str]
    folder: Path | None
    described: ConvertedFrom
    notes: tuple[str, ...] = ()


def _of_file(file: Path, family: str | None) -> _ModelToWrite:
    checkpoint = read_checkpoint(file, family=family)
    try:
        whole = build(checkpoint.config, checkpoint.state, head_of(checkpoint.config), str(file))
    except TeacherError as error:
        raise ConversionError(error.problem, "the file is damaged, or not what it seems") from error
    return _ModelToWrite(
        whole,
        checkpoint.config if _is_dense(whole) else None,
        checkpoint.normalise,
        checkpoint.files,
        None,
        ConvertedFrom(file.name, checkpoint.source_format),
        checkpoint.notes,
    )


def _of_model(place: Place) -> _ModelToWrite:
    loaded = load_model(place.name)
    dense = None
    if _is_dense(loaded.whole):
        family = FAMILIES[loaded.family]
        dense = configuration(
            family.dense_config_class, settings_of(loaded.whole.config), place.name
        )
        dense.architectures = [family.dense_class_name(loaded.head)]
    described = ConvertedFrom(
        place.repository or place.path.name, "a folder of transformers", place.commit
    )
    return _ModelToWrite(
        loaded.whole,
        dense,
        loaded.normalise,
        read_tokenizer(place.path) if loaded.head else {},
        loaded.folder if loaded.head else None,
        described,
    )


def _is_dense(whole: Any) -> bool:
    return whole.config.plan is None and not whole.config.conv_output_scale


def _inside(path: Path, folder: Path) -> bool:
    # Path.resolve raises where a link leads to itself.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _replaceable(out: Path, *, force: bool) -> frozenset[str]:
    """The names in `out` that may be replaced: those that an earlier conversion's record proves to be ours.

    Raises:
        OutputError: `out` is no folder, or holds anything (and `force` is not given), or no record of ours.
    """
    if not exists(out):
        return frozenset()
    if not out.is_dir():
        raise OutputError(f"{out} is a file", "choose another name")
    if not any(path.name != ASIDE for path in out.iterdir()):
        return frozenset()
    if not force:
        raise OutputError(f"{out} exists", "use --force to replace it, or another name")
    advice = "choose another name, or empty the folder yourself"
    if not (out / RECORD).is_file():
        raise OutputError(
            f"{out} holds files and no {RECORD} of sslim convert, so they may be another's", advice
        )
    try:
        names = ConversionFacts.read(out / RECORD).files or ONCE_WRITTEN
    except OutputError as error:
        raise OutputError(
            f"{out} was not written by sslim convert ({error.problem})", advice
        ) from error
    return frozenset({name for name in names if Path(name).name == name} | {RECORD})


def _drop_stale(out: Path, before: frozenset[str]) -> None:
    """Removes what the earlier conversion wrote and this one did not."""
    now = ConversionFacts.read(out / RECORD).files
    for name in before - set(now) - {RECORD}:
        with contextlib.suppress(OSError):
            (out / name).unlink(missing_ok=True)
