"""`sslim inspect`: what a model keeps, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id or a local folder.")],
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            metavar="NAME",
            help="The branch, tag or commit of a hub id; the same as ID@NAME.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers as JSON.")
    ] = None,
    png_file: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Draw the layers as a picture.")
    ] = None,
) -> None:
    """Show what MODEL keeps per layer, and its parameters and MACs beside the dense model."""
    from rich.console import Console

    from sslim.errors import OutputError, first_line
    from sslim.report.inspect import inspect_model

    inspection = inspect_model(model, revision=revision)
    if json_file is not None:
        try:
            inspection.facts().write(json_file)
        except OSError as error:
            raise OutputError(
                f"'{json_file}' cannot be written: {first_line(error)}", "name another file"
            ) from error
    inspection.render(Console())
    if png_file is not None:
        inspection.save_png(png_file)
