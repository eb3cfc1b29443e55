"""`sslim bench`: how fast, measured in turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from sslim.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

Number = TypeVar("Number", int, float)


def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL [MODEL ...]",
            help="Folders, hub ids or exported .onnx files; ratios are to the first.",
        ),
    ],
    runtime: Annotated[
        str,
        typer.Option(help="Some of torch, bfloat16, transformers, onnx, onnx-int8."),
    ] = "torch,onnx,onnx-int8",
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "1",
    seconds: Annotated[str, typer.Option(help="Lengths of audio.")] = "1,5,10,30",
    repeats: Annotated[int, typer.Option(help="Runs of each.", min=1)] = 9,
    price_per_hour: Annotated[
        float | None,
        typer.Option(help="Of the machine: adds the cost of 1,000 hours of audio."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.")
    ] = None,
) -> None:
    """Measure each MODEL in each runtime in turn: latency, memory, file size, cost."""
    counts = numbers(threads, int, "--threads")
    lengths = numbers(seconds, float, "--seconds")
    if json_file is not None:
        _write(json_file, "")  # that it can be written is known before minutes of measuring
    import json
    import tempfile

    from rich.console import Console

    from sslim.deploy.bench import contestants, measure

    console = Console()
    note = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        entries = contestants(
            models, [name.strip() for name in runtime.split(",")], Path(folder), note.print
        )
        found = measure(entries, threads=counts, seconds=lengths, repeats=repeats, say=note.print)
    files = _table("What is run", ("file", "first answer", "worst cosine"))
    for row in {(row.model, row.runtime): row for row in found.rows}.values():
        files.add_row(
            row.model,
            row.runtime,
            f"{row.file_bytes / 1e6:.1f} MB",
            f"{row.first_answer:.2f} s",
            "-" if row.worst_cosine is None else f"{row.worst_cosine:.5f}",
        )
    console.print(files)
    cost = [] if price_per_hour is None else ["1,000 h cost"]
    for count, length in dict.fromkeys((row.threads, row.seconds) for row in found.rows):
        table = _table(
            f"{length:g} s of audio, {count} thread{'s' if count > 1 else ''}",
            ("time", "ratio", "time / audio", "memory", "front-end", *cost),
        )
        for row in found.rows:
            if (row.threads, row.seconds) != (count, length):
                continue
            half = (row.quartiles[1] - row.quartiles[0]) / 2
            mark = " noisy" if row.noisy else ""
            cells = [
                f"{1e3 * row.median:.0f} ± {1e3 * half:.0f} ms{mark}",
                f"{row.ratio:.2f}x",
                f"{row.real_time_factor:.4f}",
                f"{row.peak_bytes / 2**20:.0f} MiB",
                "-" if row.front_end_share is None else f"{row.front_end_share:.0%}",
            ]
            if price_per_hour is not None:
                cells.append(f"{row.cost(price_per_hour):.2f}")
            table.add_row(row.model, row.runtime, *cells)
        console.print(table)
    console.print(
        f"Medians of {repeats} runs in turn, half their quartile range; ratios to the first row."
    )
    if found.noisy:
        console.print(
            "The machine was busy: quartiles of the rows marked noisy are far apart. Run again."
        )
    if json_file is not None:
        _write(json_file, json.dumps(found.to_dict(price_per_hour), indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    from sslim.errors import OutputError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if not text else "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise OutputError(
            f"'{path}' cannot be written: {error.strerror}", "Name another file"
        ) from error


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for column in ("model", "runtime"):
        table.add_column(column, no_wrap=column == "runtime")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def numbers(text: str, kind: type[Number], option: str) -> list[Number]:
    """`1,2` as numbers above zero.

    Raises:
        ConfigError: it is something else.
    """
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise ConfigError(f"{option} is {text!r}", "Give numbers above zero, such as 1,2")
    return found
