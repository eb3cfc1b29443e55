"""`sslim demo`: the main job, offline, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslim.cli.arguments import OutFolder, Setting


def demo(
    out: OutFolder = Path("demo-output"),
    settings: Setting = None,
    force: Annotated[
        bool, typer.Option("--force/--keep", help="Replace what is in OUT, or refuse to.")
    ] = False,
) -> None:
    """Compress the embedded teacher on spoken commands made on this machine, and compare."""
    from sslim.recipes import resolve

    resolve("demo", settings=settings or ())  # a misspelt setting is answered at once

    from sslim.demo.run import run_demo

    run_demo(out, settings=settings or (), force=force)
