"""`sslim runs`: where runs stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Looked through with all folders below it.")
    ] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the runs in FOLDER: state, step, time left, and time spent waiting for audio."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sslim.report.runs import find_runs

    listed = find_runs(folder)
    if as_json:
        typer.echo(json.dumps([run.to_dict() for run in listed], indent=2))
        return
    if not listed:
        typer.echo(f"no runs in {folder}")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "stage", "step", "left", "waiting", ""):
        table.add_column(heading, overflow="fold")
    for run in listed:
        left = "" if run.seconds_left is None else _duration(run.seconds_left)
        waiting = "" if run.waiting_share is None else f"{run.waiting_share:.0%}"
        step = f"{run.update}/{run.updates}" if run.updates else ""
        cells = (run.folder, run.state, run.stage, step, left, waiting, run.reason)
        table.add_row(*map(escape, cells))  # names and reasons are no markup
    Console().print(table)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
