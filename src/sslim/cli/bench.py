"""`sslim bench`: how fast, measured in turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from sslim.cli.arguments import JsonFile
from sslim.errors import ConfigError, visible

if TYPE_CHECKING:
    from rich.table import Table

    from sslim.measurements import Benchmark

WIDTH = 120
"""Columns of the tables where nobody says how many there are."""

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
    json_file: JsonFile = None,
) -> None:
    """Measure each MODEL in each runtime in turn: latency, memory, file size, cost."""
    from sslim.deploy.bench import REPEATS, SECONDS, THREADS

    counts = numbers(threads, int, "--threads", THREADS)
    lengths = numbers(seconds, float, "--seconds", SECONDS)
    numbers(str(repeats), int, "--repeats", REPEATS)
    if price_per_hour is not None and not 0 <= price_per_hour <= 1e9:
        raise ConfigError(f"--price-per-hour is {price_per_hour}", "give what the machine costs")
    if json_file is not None:
        from sslim.deploy.outputs import prepare_file

        prepare_file(json_file)  # known before minutes of measuring
    import tempfile

    from rich.console import Console
    from rich.markup import escape

    from sslim.deploy.bench import contestants, measure
    from sslim.deploy.processor import named

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)  # a file or a pipe has no edge
    note = Console(stderr=True)

    def say(line: str) -> None:
        note.print(visible(line), markup=False, highlight=False, soft_wrap=True)

    with tempfile.TemporaryDirectory() as folder:
        entries = contestants(
            models, [name.strip() for name in runtime.split(",")], Path(folder), say
        )
        benchmark = measure(entries, threads=counts, seconds=lengths, repeats=repeats, say=say)
    if (
        json_file is not None
    ):  # before anything is printed: a terminal that is gone costs no figures
        _write(
            json_file, benchmark if price_per_hour is None else benchmark.at_price(price_per_hour)
        )
    console.print(named(benchmark.machine), markup=False, highlight=False, soft_wrap=True)
    files = _table("What is run", ("file", "first answer", "worst cosine"))
    for row in {(row.model, row.runtime): row for row in benchmark.results}.values():
        files.add_row(
            escape(visible(row.model)),
            row.runtime if row.passed is not False else f"{row.runtime} FAILED its comparison",
            f"{row.file_bytes / 1e6:.1f} MB",
            f"{row.first_answer:.2f} s",
            "-" if row.worst_cosine is None else f"{row.worst_cosine:.5f}",
        )
    console.print(files)
    cost = [] if price_per_hour is None else ["1,000 h cost"]
    for count, length in dict.fromkeys((row.threads, row.seconds) for row in benchmark.results):
        table = _table(
            f"{length:g} s of audio, {count} thread{'s' if count > 1 else ''}",
            ("time", "ratio", "time / audio", "memory", "front-end", "of rate", *cost),
        )
        for row in benchmark.results:
            if (row.threads, row.seconds) != (count, length):
                continue
            half = (row.quartiles[1] - row.quartiles[0]) / 2
            mark = " noisy" if row.noisy else ""
            cells = [
                f"{1e3 * row.median:.0f} ± {1e3 * half:.0f} ms{mark}",
                f"{row.ratio:.2f}x",
                f"{row.real_time_factor:.4f}",
                f"{row.peak_bytes / 2**20:.0f} MiB",
                _percent(row.front_end_share),
                _percent(row.parts["whole"].of_rate if "whole" in row.parts else None),
            ]
            if price_per_hour is not None:
                cells.append(f"{row.cost(price_per_hour):.2f}")
            failed = " FAILED" if row.passed is False else ""
            table.add_row(escape(visible(row.model)), f"{row.runtime}{failed}", *cells)
        console.print(table)
    for line in remarks(benchmark, repeats):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def remarks(benchmark: Benchmark, repeats: int) -> list[str]:
    """What is said below the tables: the core's rates, shares of them by part, and who disturbed."""
    lines = [
        f"Medians of {repeats} runs in turn, half their quartile range; ratios to the first row."
    ]
    for count, rates in benchmark.machine.rates_at.items():
        reached = [
            f"{name} {rates.all[name][library]:.0f} G{'OP' if name == 'int8' else 'FLOP'}/s ({library})"
            for name, library in rates.libraries.items()
        ]
        lines.append(
            f"Large products here, {count} thread(s): {', '.join(reached) or 'not measured'}."
        )
    longest = max((row.seconds for row in benchmark.results), default=0.0)
    for row in benchmark.results:
        if row.seconds == longest and len(row.parts) > 1:
            shares = [
                f"{name.replace('_', '-')} {1e3 * part.seconds:.0f} ms"
                + ("" if part.of_rate is None else f" ({part.of_rate:.0%})")
                for name, part in row.parts.items()
                if name != "whole"
            ]
            lines.append(
                f"{visible(row.model)} in {row.runtime}, {row.threads} thread(s), {longest:g} s, time "
                f"and share of that rate: {', '.join(shares)}."
            )
    lines.append(
        "Cores kept busy by other work: {:.2f} before, {:.2f} during, {:.2f} after.".format(
            *benchmark.machine.loads
        )
    )
    if benchmark.busy:
        lines.append("The machine was not quiet: other work took more than half a core. Run again.")
    if benchmark.noisy:
        lines.append("Quartiles of the rows marked noisy are far apart. Run again.")
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _write(path: Path, benchmark: Benchmark) -> None:
    from sslim.deploy.outputs import cannot_write

    try:
        benchmark.write(path)
    except OSError as error:
        raise cannot_write(path, error) from error


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for column in ("model", "runtime"):
        table.add_column(column, no_wrap=column == "runtime")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def numbers(
    text: str, kind: type[Number], option: str, bounds: tuple[float, float]
) -> list[Number]:
    """`1,2` as numbers within bounds.

    Raises:
        ConfigError: it is something else.
    """
    try:
        values = [kind(part) for part in text.split(",")]
    except (ValueError, OverflowError):
        values = []
    # A comparison that NaN does not pass.
    if not values or not all(bounds[0] <= number <= bounds[1] for number in values):
        raise ConfigError(
            f"{option} is {text[:40]!r}",
            f"Give numbers from {bounds[0]:g} to {bounds[1]:g}, such as 1,2",
        )
    return values
