"""Is a saved folder what it was when it was written? Read from files alone: nothing is loaded or executed.

`sslim.json` holds the SHA-256 of each file. Whoever can change a file can change that record as well, so
three things are checked that do not rest on it: the model code is one that sslim ships, no other code or
weights lie beside it, and no settings name code of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sslim
from sslim.backbone.contents import CONFIG, MODEL_CODE, RECORD, SETTINGS
from sslim.errors import OutputError, TeacherError, first_line
from sslim.files import read_json
from sslim.identity import sha256_of

KNOWN_CODE: dict[str, str] = {}
"""SHA-256 of the model code of earlier releases -> their version."""
LOADABLE = (
    ".py",
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".pkl",
    ".index.json",
)
"""Endings of what a library may load from the folder."""
NAMES_CODE = ("auto_map", "custom_pipelines")


@dataclass(frozen=True)
class Checked:
    """A file, and what is wrong with it ("": nothing)."""

    name: str
    said: str
    problem: str = ""


@dataclass(frozen=True)
class Verification:
    """What was found in a folder."""

    folder: Path
    files: tuple[Checked, ...]
    code: str
    """Whose model code it is, in words."""

    @property
    def problems(self) -> list[Checked]:
        """The files that differ."""
        return [file for file in self.files if file.problem]

    def sentence(self) -> str:
        """One sentence, where nothing differs."""
        return f"{self.folder}: {len(self.files)} files are as they were written; {self.code}."


def recorded_files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files that a folder's record names.

    Raises:
        TeacherError: there is no record, or it names no files of the folder.
    """
    try:
        wrong = "" if folder.is_dir() else "no folder" if folder.exists() else "not there"
    except OSError as error:
        wrong = f"no folder: {first_line(error)}"
    if wrong:
        raise TeacherError(f"{folder} is {wrong}", "give a folder that sslim wrote")
    if not (folder / RECORD).is_file():
        raise TeacherError(
            f"{folder} cannot be verified: it has no {RECORD}, so nothing says what its files were",
            "give a folder that sslim wrote",
        )
    files = read_json(folder / RECORD, "the record of a saved folder", TeacherError).get("files")
    if not isinstance(files, dict) or not files:
        raise TeacherError(
            f"{folder} cannot be verified: its {RECORD} names no files, as those of sslim 0.1.0 and before",
            "write the folder again with this version",
        )
    for name, value in files.items():
        if Path(name).name != name or not isinstance(value, str):
            raise TeacherError(
                f"{folder / RECORD} names {name[:60]!r}, which is no file of the folder",
                "do not trust this folder",
            )
    return files


def verify(folder: str | Path) -> Verification:
    """Compares every file with its record.

    Raises:
        TeacherError: the folder has no record that could be compared with.
        OutputError: a file cannot be read.
    """
    folder = Path(folder)
    recorded = recorded_files(folder)
    try:
        return Verification(folder, tuple(_checked(folder, recorded)), _whose_code(folder))
    except OSError as error:
        raise OutputError(
            f"{error.filename or folder} cannot be read: {first_line(error)}", "check its rights"
        ) from error


def _checked(folder: Path, recorded: dict[str, str]) -> Iterator[Checked]:
    for name, wanted in recorded.items():
        path = folder / name
        if not path.is_file():
            yield Checked(name, "missing", f"{name} is recorded and not there")
        elif sha256_of(path) != wanted:
            yield Checked(name, "differs", f"{name} is not what was written")
        elif name == MODEL_CODE and not _version_of(path):
            yield Checked(
                name,
                "unknown",
                f"{name} is as recorded, but not the model code of any sslim that this one knows",
            )
        elif problem := _names_code(path):
            yield Checked(name, "names code", problem)
        else:
            yield Checked(name, "as written")
    for path in sorted(folder.iterdir()):
        loadable = path.name.endswith(LOADABLE) or path.name in SETTINGS
        if loadable and path.name not in recorded:
            yield Checked(
                path.name, "not recorded", f"{path.name} was added after the folder was written"
            )


def _version_of(path: Path) -> str:
    """The version of sslim that ships this model code, "" where none is known."""
    found = sha256_of(path)
    if found == sha256_of(Path(__file__).with_name(MODEL_CODE)):
        return sslim.__version__
    return KNOWN_CODE.get(found, "")


def _whose_code(folder: Path) -> str:
    path = folder / MODEL_CODE
    if not path.is_file():
        return "no code lies in it"
    return f"the model code is that of sslim {_version_of(path) or '(unknown)'}"


def _names_code(path: Path) -> str:
    """What settings name besides our own model code."""
    if path.name not in SETTINGS:
        return ""
    data = read_json(path, "settings", TeacherError)
    ours = MODEL_CODE.removesuffix(".py") + "."
    for key in NAMES_CODE:
        value: Any = data.get(key)
        names = list(value.values()) if isinstance(value, dict) else [value] if value else []
        for name in names:
            if not (path.name == CONFIG and isinstance(name, str) and name.startswith(ours)):
                return f"{path.name} names code of others in {key}: {str(name)[:60]}"
    return ""
