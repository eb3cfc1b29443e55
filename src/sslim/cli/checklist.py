"""`sslim checklist`: what stands between a model and its rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslim.cli.arguments import Language


def checklist(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a model.")],
    lang: Language = "en",
    init: Annotated[
        bool, typer.Option("--init", help="Make rollout.toml, for what people decide.")
    ] = False,
) -> None:
    """Show each point of a rollout: ticked from evidence in RUN, or open with what closes it."""
    from sslim.report.checklist import checklist as items
    from sslim.report.checklist import write_template
    from sslim.report.evidence import read_evidence
    from sslim.report.quoting import one_line
    from sslim.report.words import Words

    words = Words(lang)
    evidence = read_evidence(run)
    if init:
        typer.echo(one_line(write_template(run), 4096))
        return
    for item in items(evidence, words):
        mark = "✓" if item.done else "○"
        typer.echo(f"{mark} {item.text}: {item.evidence}")
        if item.command:
            typer.echo(f"    {item.command}")
    for left in evidence.not_used:
        typer.echo(words.say(left.why, file=left.file, detail=left.detail), err=True)
