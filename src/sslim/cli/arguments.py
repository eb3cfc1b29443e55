"""Arguments that several verbs take, each with its one name and help, and what is made of `--where`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sslim.errors import ConfigError

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, hub id or checkpoint file.")]
OutFolder = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where", metavar="COLUMN=VALUE", help="Only these rows of a CSV. Can be repeated."
    ),
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, such as stage1.updates=2000. Can be repeated.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="NAME",
        help="The branch, tag or commit of a hub id; the same as ID@NAME.",
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON as well.")
]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", metavar="DIR", help="Where features are kept.")
]
Language = Annotated[str, typer.Option("--lang", help="en or ja.")]


def parse_where(conditions: Sequence[str]) -> dict[str, str]:
    """`["split=train"]` as `{"split": "train"}`.

    Raises:
        ConfigError: a condition has no `=`, or a column is named twice.
    """
    columns: dict[str, str] = {}
    for condition in conditions:
        column, equals, value = condition.partition("=")
        if not equals or not column.strip():
            raise ConfigError(f"--where needs column=value, got '{condition}'")
        if column.strip() in columns:
            raise ConfigError(
                f"--where names the column '{column.strip()}' twice", "Give each column one value"
            )
        columns[column.strip()] = value.strip()
    return columns


def parse_mix(sources: Sequence[str]) -> dict[str, float]:
    """`["other.csv=0.2"]` as `{"other.csv": 0.2}`.

    Raises:
        ConfigError: a source has no share, or is named twice.
    """
    shares: dict[str, float] = {}
    for source in sources:
        path, _, share = source.rpartition("=")
        try:
            number = float(share)
        except ValueError:
            path = ""
        if not path.strip():
            raise ConfigError(
                f"--mix needs a source and its share, got '{source}'", "Write --mix other.csv=0.2"
            )
        if path in shares:
            raise ConfigError(f"--mix names {path} twice", "Give each source one share")
        shares[path] = number
    return shares
