"""`sslim embed`: features of recordings of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def embed(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, hub id or exported .onnx file.")
    ],
    audio: Annotated[
        Path, typer.Argument(metavar="AUDIO", help="A file, a folder, or a list of files.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    format: Annotated[str, typer.Option(help="npz, safetensors or parquet.")] = "npz",
    layer: Annotated[
        str, typer.Option(help="last, a number (0: input of the first layer), or all.")
    ] = "last",
    chunk: Annotated[float, typer.Option(help="Seconds of new audio per chunk.")] = 20.0,
    left: Annotated[float, typer.Option(help="Seconds of context before a chunk.")] = 5.0,
    right: Annotated[float, typer.Option(help="Seconds of context after it.")] = 5.0,
    batch: Annotated[int, typer.Option(help="Chunks that are computed at once.")] = 4,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in OUT.")] = False,
) -> None:
    """Write features of every recording in AUDIO to OUT, in bounded memory."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from sslim.audio.blocks import duration
    from sslim.deploy.embed import embed as run
    from sslim.deploy.streaming import Chunking
    from sslim.errors import AudioError, visible

    console = Console(stderr=True)
    start = time.perf_counter()
    # Names of files are no markup, and not always text.
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())

    def say(line: str) -> None:
        console.print(visible(line), markup=False, highlight=False, soft_wrap=True)

    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        bar = bars.add_task("")
        lengths: dict[Path, float] = {}

        def progress(recording: Path, seconds: float) -> None:
            if hidden:
                return
            if recording not in lengths:
                lengths[recording] = duration(recording)
            bars.update(
                bar,
                description=visible(recording.name),
                total=lengths[recording],
                completed=seconds,
            )

        done = run(
            model,
            audio,
            out,
            format=format,
            layer=layer,
            chunking=Chunking(chunk, left, right),
            batch=batch,
            resume=resume,
            say=say,
            progress=progress,
        )
    seconds = sum(file.seconds for file in done.files)
    spent = time.perf_counter() - start
    typer.echo(
        f"{visible(done.out)}: {len(done.files)} recordings, {seconds / 3600:.2f} h in {spent:.0f} s "
        f"({seconds / max(spent, 1e-9):.0f} times real time)"
    )
    if done.failed:
        raise AudioError(
            f"{len(done.failed)} recording(s) could not be used; the first: {done.failed[0]}"
        )
