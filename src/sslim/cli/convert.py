"""`sslim convert`: checkpoints of other projects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="fairseq HuBERT or wav2vec 2.0 (.pt), a torchaudio state dict (.pt), "
            "DPHuBERT or DPWavLM (.pth); or a folder or hub id, whose weights become safetensors.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier conversion in OUT.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            metavar="NAME",
            help="The branch, tag or commit of a hub id; the same as ID@NAME.",
        ),
    ] = None,
) -> None:
    """Turn a checkpoint FILE of another project, or a model with code or pickles, into a plain folder OUT."""
    from sslim.backbone.convert import convert as run

    typer.echo(run(file, out, force=force, revision=revision).summary_line())
