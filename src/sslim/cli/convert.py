"""`sslim convert`: checkpoints of other projects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="fairseq HuBERT or wav2vec 2.0 (.pt), a torchaudio state dict (.pt), "
            "DPHuBERT or DPWavLM (.pth).",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace what is in OUT.")] = False,
) -> None:
    """Turn a checkpoint FILE of another project into a Hugging Face folder OUT."""
    from sslim.backbone.convert import convert as run

    typer.echo(run(file, out, force=force).summary_line())
