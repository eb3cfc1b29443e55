"""`sslim inspect`: what a model keeps, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslim.cli.arguments import JsonFile, Model, Revision


def inspect(
    model: Model,
    revision: Revision = None,
    json_file: JsonFile = None,
    png_file: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Draw the layers as a picture.")
    ] = None,
) -> None:
    """Show what MODEL keeps per layer, and its parameters and MACs beside the dense model."""
    from rich.console import Console

    from sslim.errors import OutputError, first_line
    from sslim.report.inspect import inspect_model
    from sslim.report.pictures import save_png

    inspection = inspect_model(model, revision=revision)
    if json_file is not None:
        try:
            inspection.record().write(json_file)
        except OSError as error:
            raise OutputError(
                f"'{json_file}' cannot be written: {first_line(error)}", "name another file"
            ) from error
    inspection.render(Console())
    if png_file is not None:
        save_png(inspection, png_file)
