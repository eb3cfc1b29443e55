"""`sslim inspect`: what a model keeps, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id or a local folder.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers as JSON.")
    ] = None,
    png_file: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Draw the layers as a picture.")
    ] = None,
) -> None:
    """Show what MODEL keeps per layer, and its parameters and MACs beside the dense model."""
    import json

    from rich.console import Console

    from sslim.errors import OutputError
    from sslim.report.inspect import inspect_model

    inspection = inspect_model(model)
    inspection.render(Console())
    if json_file is not None:
        text = json.dumps(inspection.to_dict(), indent=2) + "\n"
        try:
            json_file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"'{json_file}' cannot be written: {error.strerror}", "Name another file"
            ) from error
    if png_file is not None:
        inspection.save_png(png_file)
