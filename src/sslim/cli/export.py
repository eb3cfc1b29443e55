"""`sslim export`: one deployable file, compared with the model it came from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, hub id or checkpoint file.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    format: Annotated[
        str,
        typer.Option(help="onnx (float32), onnx-int8, or dphubert (the reference's .pth)."),
    ] = "onnx",
    audio: Annotated[
        Path | None,
        typer.Option(
            metavar="SOURCE",
            help="Speech like yours (folder, list, CSV) to fix int8 ranges and to compare with. "
            "Default: the run's own audio, else signals made here.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Only these rows of a CSV. Can be repeated."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="Labelled clips on which the model and the file are both scored."
        ),
    ] = None,
    task: Annotated[str, typer.Option(help="What the labels are for, see evaluate.")] = "ks",
    all_layers: Annotated[
        bool, typer.Option("--all-layers", help="Give out every hidden state as well.")
    ] = False,
    seven_bit: Annotated[
        bool,
        typer.Option("--seven-bit", help="int8 weights of 7 bits: for processors without VNNI."),
    ] = False,
    min_cosine: Annotated[
        float, typer.Option(help="What every layer of an int8 file must reach.")
    ] = 0.999,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace OUT, and keep a file that failed the comparison."),
    ] = False,
) -> None:
    """Export MODEL to OUT, run the file and compare it with the model, layer by layer."""
    from sslim.cli.compress import parse_where
    from sslim.deploy.export import FORMATS
    from sslim.errors import ConfigError

    if format not in FORMATS:
        raise ConfigError(f"the format {format!r} is unknown", f"use one of {', '.join(FORMATS)}")
    columns = parse_where(where or ())
    from sslim.deploy.export import export as run

    made = run(
        model,
        out,
        format=format,
        audio=audio,
        where=columns,
        labels=labels,
        task=task,
        all_layers=all_layers,
        seven_bit=seven_bit,
        min_cosine=min_cosine,
        force=force,
        say=typer.echo,
    )
    if made.check is not None:
        for layer in made.check.layers:
            typer.echo(
                f"layer {layer.layer:2}  cosine {layer.cosine:.6f}  difference {layer.difference:.1e}"
            )
        typer.echo(f"output difference {made.check.output:.1e}, batching {made.check.batching:.1e}")
    if made.probe is not None:
        probe = made.probe
        low, high = (100 * edge for edge in probe.file_interval or (math.nan, math.nan))
        typer.echo(
            f"{probe.task} {probe.metric}: model {100 * probe.model:.1f}, "
            f"file {100 * probe.file:.1f} (95% interval {low:.1f} to {high:.1f})"
        )
    for note in made.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{made.path}: {made.format}, {made.bytes:,} bytes")
