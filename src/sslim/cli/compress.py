"""`sslim compress`: the main job."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sslim.errors import ConfigError

HELP_SETTING = "Change one setting, such as stage1.updates=2000. Can be repeated."


def compress(
    teacher: Annotated[
        str,
        typer.Argument(metavar="TEACHER", help="A hub id, a local folder, or a checkpoint file."),
    ],
    audio: Annotated[
        Path,
        typer.Argument(
            metavar="AUDIO",
            help="A folder (searched recursively), a list of files, a fairseq tsv, a CSV manifest, "
            "a lhotse manifest, or shards (lhotse Shar or WebDataset: a folder of .tar).",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    params: Annotated[
        str | None,
        typer.Option(
            metavar="BUDGET",
            help="What may remain: 25% or 24M parameters (or operations: budget_quantity=macs).",
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="The same, as the share to remove: 0.75."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="paper, fast or demo.")] = "paper",
    config: Annotated[
        Path | None, typer.Option(metavar="RUN.TOML", help="A file of settings.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=HELP_SETTING)
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE", help="Only these rows of a CSV manifest. Can be repeated."
        ),
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE=SHARE",
            help="More audio, and its share of what is heard: other.csv=0.2; AUDIO is the rest. "
            "Can be repeated.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that is in OUT.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in OUT.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    revision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The branch, tag or commit of a hub id; as ID@NAME."),
    ] = None,
) -> None:
    """Compress TEACHER with the speech in AUDIO and write the small model to OUT.

    Both stages run: distillation and pruning together, then distillation of the pruned model.
    """
    # Answered here, without torch: whatever can be wrong with the words that were typed.
    if resume and force:
        raise ConfigError("both --resume and --force were given", "Give one of them")
    columns, shares = parse_where(where or ()), parse_mix(mix or ())
    from sslim.recipes import resolve

    resolve(
        recipe,
        config=config,
        settings=settings or (),
        params=params,
        sparsity=sparsity,
        device=device,
    )

    from sslim.story import compress as run

    result = run(
        teacher,
        audio,
        out,
        recipe=recipe,
        config=config,
        settings=settings or (),
        params=params,
        sparsity=sparsity,
        resume=resume,
        force=force,
        device=device,
        where=columns,
        mix=shares,
        revision=revision,
        progress=True,
    )
    if int(os.environ.get("RANK") or 0) == 0:  # of several processes one speaks
        typer.echo(result.summary_line())
        _report(out)


def _report(out: Path) -> None:
    """Writes the report; a model that was made is not lost because its report was not."""
    from sslim.errors import SslimError
    from sslim.report.page import write_report

    try:
        typer.echo(f"report: {write_report([out], out / 'report.html')}")
    except (SslimError, OSError) as error:
        typer.echo(f"no report: {error}", err=True)


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
