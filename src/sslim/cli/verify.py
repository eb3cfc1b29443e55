"""`sslim verify`: is a saved folder what it was when it was written?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder that compress or convert wrote.")
    ],
) -> None:
    """Compare FOLDER's weights, code and settings with its record; nothing of it is loaded or executed."""
    from sslim.backbone.verify import verify as run
    from sslim.errors import TeacherError

    verification = run(folder)
    width = max(len(file.name) for file in verification.files)
    for file in verification.files:
        typer.echo(f"{file.name:{width}}  {file.said}")
    if verification.problems:
        raise TeacherError(
            f"{folder}: {verification.problems[0].problem}",
            "do not use this folder before you know why; copy it again from where it was made",
        )
    typer.echo(verification.sentence())
