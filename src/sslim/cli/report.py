"""`sslim report`: one HTML file to decide by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslim.cli.arguments import Language


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN [RUN ...]", help="Folders of models; several make a comparison."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default: report.html in RUN, or here for several."),
    ] = None,
    lang: Language = "en",
    evidence: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="JSON",
            help="What evaluate, bench or export wrote elsewhere than in RUN/evidence/. Repeatable.",
        ),
    ] = None,
) -> None:
    """Write what was saved, what was lost and whether to roll out, as one HTML file."""
    from sslim.report.page import write_report
    from sslim.report.quoting import one_line

    target = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    written = write_report(runs, target, language=lang, evidence=evidence or ())
    typer.echo(one_line(written, 4096))  # a file's name may hold anything, a terminal should not
