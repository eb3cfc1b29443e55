"""`sslim demo`: the main job, offline, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslim.cli.compress import HELP_SETTING


def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")] = Path(
        "demo-output"
    ),
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=HELP_SETTING)
    ] = None,
    force: Annotated[
        bool, typer.Option("--force/--keep", help="Replace what is in OUT, or refuse to.")
    ] = False,
) -> None:
    """Compress the embedded teacher on spoken commands made on this machine, and compare."""
    from sslim.recipes import resolve

    resolve("demo", settings=settings or ())  # a misspelt setting is answered at once

    from sslim.demo.run import run_demo

    run_demo(out, settings=settings or (), force=force)
