"""The folder of a demo: what may be written where, and what `--force` may take away.

A record is written into an empty folder before anything else; only where it says that a demo worked there
does anything go, and then only the files that a demo writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sslim.backbone.contents import MODEL_FILES, FolderFacts
from sslim.demo import speech
from sslim.errors import OutputError, first_line
from sslim.files import read_json
from sslim.records import Record
from sslim.version import __version__

RECORD = "demo.json"
RESULTS = "results.json"
FOLDERS = ("speech", "student", "distilled")
MADE_BY = "sslim demo"


@dataclass(frozen=True)
class DemoRecord(Record):
    """`demo.json`: that a demo works in a folder."""

    KIND: ClassVar[str] = "demo"
    TITLE: ClassVar[str] = "the record of a demo"

    made_by: str
    sslim: str = ""
    """The version of the program."""


@dataclass(frozen=True, kw_only=True)
class BaselineFacts(FolderFacts):
    """`sslim.json` of the student that was distilled without pruning."""

    KIND: ClassVar[str] = "baseline"
    READS: ClassVar[tuple[str, ...]] = ()

    method: str
    updates: int


def prepare(out: Path, *, force: bool) -> None:
    """Makes room for a demo.

    The compressed student is a run of `compress`, which replaces it by its own rules.

    Raises:
        OutputError: `out` holds what no demo wrote, or an earlier demo (and `force` is not given), or cannot
            be written.
    """
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out} is a file", "give a folder")
        names = {path.name for path in out.iterdir()} if out.is_dir() else set()
        foreign = sorted(names - {*FOLDERS, RECORD, RESULTS})
        if foreign:
            raise OutputError(f"{out} holds {foreign[0]}, which is not ours", "name another folder")
        links = [name for name in sorted(names) if (out / name).is_symlink()]
        if links:
            raise OutputError(f"{out / links[0]} is a link", "name another folder")
        if names and not _is_ours(out):
            raise OutputError(
                f"{out} holds {sorted(names)[0]}, and no record that a demo made it",
                "name another folder",
            )
        if names and not force:
            raise OutputError(f"{out} holds an earlier demo", "use --force to replace it")
        for path in _written(out) if names else ():
            _remove(path, out)
        left = out / "distilled" / "run" / "checkpoints"
        if left.exists():  # training would go on from it
            raise OutputError(f"{left} holds what is not ours", "move it away")
        out.mkdir(parents=True, exist_ok=True)
        DemoRecord(made_by=MADE_BY, sslim=__version__).write(out / RECORD)
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {first_line(error)}", "name another folder"
        ) from error


def _is_ours(out: Path) -> bool:
    """Whether a demo said that it works here; those before the record left their results alone."""
    for name, proof in (
        (RECORD, lambda facts: facts.get("made_by") == MADE_BY),
        (RESULTS, lambda facts: {"rows", "word_chance", "voice_chance"} <= set(facts)),
    ):
        with contextlib.suppress(OutputError):
            if proof(read_json(out / name, "a demo's record")):
                return True
    return False


def _written(out: Path) -> Iterator[Path]:
    """Every file that a demo writes outside the compressed student, whether it is there or not."""
    yield from (out / "speech" / name for name in ("manifest.csv", *speech.file_names()))
    distilled = out / "distilled"
    yield from (distilled / name for name in MODEL_FILES)
    yield from (distilled / "run" / name for name in ("metrics.jsonl", "state.json"))
    for checkpoint in (distilled / "run" / "checkpoints").glob("*/update-*"):
        yield from (checkpoint / name for name in ("state.safetensors", "state.json"))
    yield out / RESULTS


def _remove(path: Path, out: Path) -> None:
    """Removes a file and the folders that are empty then; never through a link out of `out`."""
    if not os.path.lexists(path) or not path.parent.resolve().is_relative_to(out.resolve()):
        return
    path.unlink()
    for folder in path.parents:
        if folder == out:
            return
        try:
            folder.rmdir()
        except OSError:  # it holds something else
            return
