"""`sslim convert`: checkpoints of other projects."""

from __future__ import annotations

from typing import Annotated

import typer

from sslim.cli.arguments import OutFolder, Revision


def convert(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="fairseq HuBERT or wav2vec 2.0 (.pt), a torchaudio state dict (.pt), "
            "DPHuBERT or DPWavLM (.pth); or a folder or hub id, whose weights become safetensors.",
        ),
    ],
    out: OutFolder,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier conversion in OUT.")
    ] = False,
    revision: Revision = None,
) -> None:
    """Turn a checkpoint FILE of another project, or a model with code or pickles, into a plain folder OUT."""
    from sslim.backbone.convert import convert as run

    typer.echo(run(file, out, force=force, revision=revision).summary_line())
