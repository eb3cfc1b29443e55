"""`sslim compress`: the main job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sslim.cli.arguments import Device, OutFolder, Revision, Setting, Where, parse_mix, parse_where
from sslim.errors import ConfigError


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
    out: OutFolder,
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
    settings: Setting = None,
    where: Where = None,
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
    device: Device = "auto",
    revision: Revision = None,
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
