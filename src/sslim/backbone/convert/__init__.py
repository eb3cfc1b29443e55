"""Foreign checkpoints -> Hugging Face folders, strictly: fairseq, torchaudio, DPHuBERT and DPWavLM.

What a file is, is told by what it holds. Dense models become folders of the dense family, pruned ones
folders of ours. A weight that is missing, left over or misshapen is an error that names it.
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
from sslim.backbone.convert.checkpoint import Checkpoint
from sslim.backbone.convert.fairseq import from_fairseq, is_fairseq
from sslim.backbone.convert.reading import read_file
from sslim.backbone.convert.torchaudio import from_torchaudio, is_torchaudio
from sslim.backbone.places import Place, exists
from sslim.errors import ConversionError, OutputError, SslimError, TeacherError, first_line

__all__ = ["Checkpoint", "Converted", "convert", "read_checkpoint"]

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


def read_checkpoint(file: str | Path, *, family: str | None = None) -> Checkpoint:
    """Reads a foreign file into a configuration and weights under Hugging Face names.

    Args:
        file: a `.pt`, `.pth` or `.safetensors` file.
        family: "hubert" or "wav2vec2", where the file does not say (torchaudio, DPHuBERT).

    Raises:
        ConversionError: the file is no checkpoint, or not of a format that is known.
    """
    path = Path(file)
    data = read_file(path)
    try:
        if is_fairseq(data):
            return _bounded(from_fairseq(data, path), path)
        if is_torchaudio(data):
            return _bounded(from_torchaudio(data, path, family), path)
    except SslimError:
        raise
    except Exception as error:  # what a file contradicts first cannot be foreseen
        raise ConversionError(
            f"{path} contradicts its own format ({type(error).__name__}: {first_line(error)})",
            "the file is damaged, or from a version that sslim does not know",
        ) from error
    names = list(data)[:5] if isinstance(data, dict) else [type(data).__name__]
    held = ", ".join(name[:60] if isinstance(name, str) else type(name).__name__ for name in names)
    raise ConversionError(
        f"{path} is not a checkpoint that sslim knows: it holds {held or 'nothing'}",
        "give a fairseq .pt, a torchaudio state dict or a DPHuBERT .pth",
    )


def _bounded(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """A checkpoint whose sizes are as believable as those of any other configuration.

    Raises:
        ConversionError: one is not; whoever asked for the configuration alone would believe it.
    """
    from sslim.backbone.settings import configuration

    found = checkpoint.config
    try:
        configuration(type(found), found.to_dict(), str(path))
    except TeacherError as error:
        problem = error.problem.replace(" in config.json", "").replace("config.json", "it")
        raise ConversionError(problem, "the file is damaged, or not what it seems") from error
    return checkpoint


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
        family: see `read_checkpoint`.
        revision: of a hub id.

    Raises:
        ConversionError: see `read_checkpoint`; or a weight is missing, left over or misshapen.
        TeacherError: a folder or hub id cannot be loaded.
        OutputError: `out` holds something else than an earlier conversion (or that, and `force` is not
            given), or cannot be written.
    """
    from sslim.backbone.places import find
    from sslim.backbone.saving import save_dense, save_folder

    out = Path(out)
    mine = _replaceable(out, force=force)
    # A path that is not there is the reader's to explain.
    if revision is None and (Path(file).suffix or exists(Path(file))) and not os.path.isdir(file):
        found = _of_file(Path(file), family)
    else:
        found = _of_model(find(file, revision))
    if exists(Path(file)) and _inside(Path(file), out) and Path(file).name in mine:
        raise OutputError(f"{file} lies in {out}, and would be replaced", "choose another name")
    facts = ConversionFacts(converted_from=found.described)
    if found.dense is not None:
        save_dense(
            out,
            found.dense,
            found.whole,
            normalise=found.normalise,
            files=found.files,
            facts=facts,
            mine=mine,
        )
    else:
        save_folder(
            out,
            found.whole,
            normalise=found.normalise,
            facts=facts,
            tokenizer_from=found.folder,
            mine=mine,
        )
    _drop_stale(out, mine)
    return Converted(
        out=out,
        family=str(found.whole.config.model_type).removeprefix("sslim-"),
        source_format=found.described.format,
        parameters=sum(parameter.numel() for parameter in found.whole.parameters()),
        notes=found.notes,
    )


@dataclass(frozen=True)
class _Found:
    """A model to write, wherever it came from."""

    whole: Any
    dense: Any
    """Its configuration in transformers, None where it has none (pruned)."""
    normalise: bool
    files: Mapping[str, str]
    folder: Path | None
    described: ConvertedFrom
    notes: tuple[str, ...] = ()


def _of_file(file: Path, family: str | None) -> _Found:
    from sslim.backbone.families import build, head_of

    checkpoint = read_checkpoint(file, family=family)
    try:
        whole = build(checkpoint.config, checkpoint.state, head_of(checkpoint.config), str(file))
    except TeacherError as error:
        raise ConversionError(error.problem, "the file is damaged, or not what it seems") from error
    return _Found(
        whole,
        checkpoint.config if _is_dense(whole) else None,
        bool(checkpoint.preprocessor["do_normalize"]),
        checkpoint.files,
        None,
        ConvertedFrom(file.name, checkpoint.source_format),
        checkpoint.notes,
    )


def _of_model(place: Place) -> _Found:
    from sslim.backbone.families import FAMILIES
    from sslim.backbone.loading import load_model
    from sslim.backbone.processing import read_tokenizer
    from sslim.backbone.settings import configuration, settings_of

    loaded = load_model(place.name)
    dense = None
    if _is_dense(loaded.whole):
        stem = FAMILIES[loaded.family].stem
        dense = configuration(
            FAMILIES[loaded.family].dense_config_class,
            settings_of(loaded.whole.config),
            place.name,
        )
        ending = type(loaded.whole).__name__.removeprefix(stem)
        dense.architectures = [stem.removeprefix("Sslim") + ending]
    described = ConvertedFrom(
        place.repository or place.path.name, "a folder of transformers", place.commit
    )
    return _Found(
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
