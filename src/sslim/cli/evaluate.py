"""`sslim evaluate`: what a model can still do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sslim.cli.arguments import CacheFolder, Device, JsonFile, Where, parse_where
from sslim.errors import ConfigError, OutputError, first_line

if TYPE_CHECKING:
    from sslim.evaluate.scorer import Condition
    from sslim.measurements import Evaluation, Fidelity, FidelityReport
    from sslim.records import Record

TASK_HELP = (
    "ks, ic, er, sid (a class per clip), pr, asr, sf (a transcript), asv (same speaker?), sd (who speaks "
    "when), qbe (spoken queries), or fidelity (distance to the first model; needs no labels)."
)


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Folders or hub ids, dense or compressed, or fbank for log-mel features. Differences are to "
            "the first: name the teacher first and fbank last to judge what lies between.",
        ),
    ],
    task: Annotated[str, typer.Option(help=TASK_HELP)] = "",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="SOURCE",
            help="A CSV with path, optional start and end (samples), label (or text, phones, speaker, ...), "
            "speaker, split (train, valid, test); other columns are groups. For fidelity any audio source.",
        ),
    ] = None,
    suite: Annotated[
        str, typer.Option(help="superb: all ten tasks on the corpora found in --root.")
    ] = "",
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the suite's corpora lie.")
    ] = None,
    where: Where = None,
    split_column: Annotated[
        str, typer.Option(help="The column with train, valid, test.")
    ] = "split",
    folds: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Each value is the test part once.")
    ] = None,
    json_file: JsonFile = None,
    seeds: Annotated[int, typer.Option(help="How many heads are trained, each from its seed.")] = 3,
    learning_rates: Annotated[
        str, typer.Option(metavar="A,B", help="To choose from on the validation part.")
    ] = "",
    epochs: Annotated[int, typer.Option(help="At most, for the tasks that need frames.")] = 30,
    batch: Annotated[
        int, typer.Option(help="Clips per step, for the tasks that need frames.")
    ] = 16,
    hidden: Annotated[int, typer.Option(help="Width of larger heads; 0: SUPERB's.")] = 0,
    trials: Annotated[
        Path | None, typer.Option(metavar="FILE", help="asv: test trials (target, utt1, utt2).")
    ] = None,
    valid_trials: Annotated[
        Path | None, typer.Option(metavar="FILE", help="asv: validation trials.")
    ] = None,
    collar: Annotated[
        float | None, typer.Option(help="sd: seconds around boundaries not scored. [default: 0.0]")
    ] = None,
    noise: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also score with noise from here added.")
    ] = None,
    snr: Annotated[
        str, typer.Option(metavar="DB,DB", help="With --noise. [default: 20,10,5,0]")
    ] = "",
    rooms: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also score with these room responses.")
    ] = None,
    conditions: Annotated[
        str, typer.Option(metavar="A,B", help="Also score under telephone, clipping, speed.")
    ] = "",
    group: Annotated[
        str, typer.Option(metavar="A,B", help="Columns to compare scores over: gender,age,lang.")
    ] = "",
    allow_leaks: Annotated[
        bool, typer.Option("--allow-leaks", help="Accept a speaker or audio in two parts.")
    ] = False,
    random_labels: Annotated[
        bool, typer.Option("--random-labels", help="Shuffle training labels: what is chance?")
    ] = False,
    cache: CacheFolder = None,
    cache_gib: Annotated[
        float, typer.Option(help="Most disk for features; see sslim cache.")
    ] = 20.0,
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(help="Of the features: float32, bfloat16 or auto.")
    ] = "float32",
) -> None:
    """Score MODELs on a task, frozen, with SUPERB's heads: one table, intervals, differences."""
    if bool(task) == bool(suite):
        raise ConfigError(
            "neither --task nor --suite was given"
            if not task
            else "both --task and --suite are given",
            "give --task ks --data clips.csv, or --suite superb --root DIR",
        )
    if task and data is None:
        raise ConfigError(f"--task {task} needs --data", "give a CSV of labelled clips")
    if suite and root is None:
        raise ConfigError("--suite needs --root", "name the folder that holds the corpora")
    _check_numbers({"--seeds": seeds, "--epochs": epochs, "--batch": batch}, least=1, most=100_000)
    _check_numbers({"--hidden": hidden}, least=0, most=65_536)
    _check_numbers({"--cache-gib": cache_gib}, least=0, most=1e6)
    _check_numbers({"--collar": collar or 0.0}, least=0, most=10)
    if precision not in ("float32", "bfloat16", "auto"):
        raise ConfigError(f"--precision knows float32, bfloat16, auto, got {precision!r}")
    columns = parse_where(where or ())
    rates = _numbers("--learning-rates", learning_rates)
    for rate in rates:
        _check_numbers({"--learning-rates": rate}, above=0, most=10)
    ratios = _numbers("--snr", snr)
    for ratio in ratios:
        _check_numbers({"--snr": ratio}, least=-100, most=100)
    _check_ignored(
        suite or task.lower(),
        {
            "--data": data,
            "--root": root,
            "--where": where,
            "--split-column": split_column != "split",
            "--folds": folds,
            "--seeds": seeds != 3,
            "--learning-rates": learning_rates,
            "--epochs": epochs != 30,
            "--batch": batch != 16,
            "--hidden": hidden,
            "--trials": trials,
            "--valid-trials": valid_trials,
            "--collar": collar is not None,
            "--noise": noise,
            "--snr": snr,
            "--rooms": rooms,
            "--conditions": conditions,
            "--group": group,
            "--allow-leaks": allow_leaks,
            "--random-labels": random_labels,
        },
        bool(suite),
    )
    if snr and noise is None:
        raise ConfigError("--snr is given without --noise", "name a folder of noises with --noise")
    if folds and split_column != "split":
        raise ConfigError(
            "--folds and --split-column are both given", "folds make the parts; leave one out"
        )
    if json_file is not None:
        _check_writable(json_file)

    from sslim.progress import ProgressBar

    if task.lower() == "fidelity":
        with ProgressBar(True) as bar:
            report = _fidelity(models, data or Path(), columns, device, precision, bar)
        if json_file is not None:
            _write(json_file, report)
        _show_fidelity(report.results)
        return

    from sslim.evaluate.cache import check_folder, default_folder
    from sslim.evaluate.conditions import named_conditions
    from sslim.evaluate.features import FeatureStore
    from sslim.evaluate.fitting import Schedule
    from sslim.evaluate.run import evaluate as run
    from sslim.evaluate.scorer import Settings
    from sslim.evaluate.suite import run_suite
    from sslim.evaluate.tasks import get_task

    if task:
        get_task(task)
    chosen_conditions: list[Condition] = named_conditions(
        _words(conditions), noise=noise, ratios=ratios or RATIOS, rooms=rooms
    )
    folder = cache or default_folder()
    check_folder(folder)
    options = {"collar": str(collar or 0.0)}
    options |= {} if trials is None else {"trials": str(trials)}
    options |= {} if valid_trials is None else {"valid_trials": str(valid_trials)}
    with ProgressBar(True) as bar:
        settings = Settings(
            store=FeatureStore(folder, int(cache_gib * 2**30), bar.say),
            seeds=tuple(range(seeds)),
            learning_rates=rates,
            schedule=Schedule(epochs=epochs, batch=batch, hidden=hidden),
            options=options,
            say=bar.say,
            on_progress=bar.work,
        )
        if suite:
            run_suite(
                suite, models, root or Path(), settings, json_file, device, precision, bar.say
            )
            return
        evaluation = run(
            models,
            task,
            data or Path(),
            where=columns,
            split_column=split_column,
            folds=folds,
            conditions=chosen_conditions,
            groups=_words(group),
            allow_leaks=allow_leaks,
            random_labels=random_labels,
            settings=settings,
            device=device,
            precision=precision,
        )
    if json_file is not None:
        _write(json_file, evaluation)
        typer.echo(f"written to {json_file}", err=True)
    show(evaluation)


NO_INTERVAL = (math.nan, math.nan)
RATIOS = (20.0, 10.0, 5.0, 0.0)
"""Decibels, where none are given."""
OF_SUITE = {
    "--root",
    "--seeds",
    "--learning-rates",
    "--epochs",
    "--batch",
    "--hidden",
    "--trials",
    "--valid-trials",
    "--collar",
}
OF_FIDELITY = {"--data", "--where"}
OF_ONE_TASK = {"--trials": "asv", "--valid-trials": "asv", "--collar": "sd", "--root": "--suite"}


def _check_ignored(task: str, given: dict[str, Any], suite: bool) -> None:
    """Raises ConfigError for an option that would have no effect, instead of scoring something else."""
    for name, value in given.items():
        if not value:
            continue
        if suite and name not in OF_SUITE:
            raise ConfigError(
                f"--suite takes no {name}",
                "score a task alone with --task; the suite leaves its table in DIR/sslim-superb",
            )
        if task == "fidelity" and name not in OF_FIDELITY:
            raise ConfigError(f"--task fidelity takes no {name}", "leave it out")
        if not suite and OF_ONE_TASK.get(name, task) != task:
            raise ConfigError(
                f"--task {task} takes no {name}",
                f"it belongs to {OF_ONE_TASK[name]}; leave it out",
            )


def _check_numbers(
    values: dict[str, float],
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float,
) -> None:
    for name, value in values.items():
        if not (least <= value <= most and value > above):  # so is what is no number
            edge = f"above {above:g}" if math.isfinite(above) else f"at least {least:g}"
            raise ConfigError(f"{name} must be {edge} and at most {most:g}, got {value:g}")


def _check_writable(path: Path) -> None:
    """Raises OutputError where a result could not be written hours later."""
    try:
        if path.is_dir():
            raise OSError(None, "it is a folder")
        aside = path.with_name(f".{path.name}.check")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(b"")
        aside.unlink()
    except (OSError, ValueError) as error:
        raise OutputError(
            f"--json {path} cannot be written: {first_line(error)}", "name another file"
        ) from error


def show(evaluation: Evaluation) -> None:
    """Prints the tables. Names of models, groups and folders are shown as they are, brackets included."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    first = evaluation.results[0]
    scale = 1.0 if first.metric == "MTWV" else 100.0
    unit = "" if first.metric == "MTWV" else ", %"
    direction = "higher is better" if first.higher_is_better else "lower is better"
    table = _table(
        [
            *("model", "score", "95% interval", f"against {first.model}", "parameters", "MACs/s"),
            *first.others,
        ],
        f"{evaluation.task}: {first.metric}{unit} ({direction}), {first.items:,} test items",
    )
    for result in evaluation.results:
        less, more = (scale * edge for edge in result.difference_interval or NO_INTERVAL)
        against = (
            ""
            if result is first
            else f"{scale * result.difference:+.1f} ({less:+.1f} to {more:+.1f})"
        )
        table.add_row(
            escape(result.model),
            f"{scale * result.score:.2f}",
            _between(result.interval, scale, 2),
            against,
            f"{result.parameters:,}" if result.parameters else "-",
            f"{result.macs_per_second / 1e9:.3g}G" if result.macs_per_second else "-",
            *(f"{scale * score:.2f}" for score in result.others.values()),
        )
    table.add_row(
        "chance", f"{scale * first.chance:.2f}", "", "", "-", "-", *("" for _ in first.others)
    )
    console.print(table)
    if first.conditions:
        worse = _table(["condition", *(result.model for result in evaluation.results)])
        for name in first.conditions:
            cells = [result.conditions[name] for result in evaluation.results]
            worse.add_row(
                escape(name),
                *(f"{scale * cell.score:.1f} ({scale * cell.change:+.1f})" for cell in cells),
            )
        console.print(worse)
    for report in evaluation.groups:
        by = _table([report.column, *report.scores])
        for value in next(iter(report.scores.values())):
            row = [report.scores[name][value] for name in report.scores]
            texts = [
                f"{scale * cell.score:.1f} ({_between(cell.interval, scale, 1)})"
                if math.isfinite(cell.score)
                else "nothing to score"
                for cell in row
            ]
            by.add_row(f"{escape(value)} ({row[0].clips})", *texts)
        console.print(by)
        for sentence in report.sentences:
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    for note in evaluation.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def _table(headings: list[str], title: str | None = None) -> Any:
    """A table whose first column is a name and whose others are numbers."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=None if title is None else escape(title),
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for number, heading in enumerate(headings):
        table.add_column(escape(heading), justify="right" if number else "left")
    return table


def _between(interval: tuple[float, float] | None, scale: float, digits: int) -> str:
    low, high = (scale * edge for edge in interval or NO_INTERVAL)
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _fidelity(
    models: list[str],
    data: Path,
    where: dict[str, str],
    device: str,
    precision: str,
    bar: Any,
) -> FidelityReport:
    """Every model but the first against the first."""
    from sslim.audio import read_source
    from sslim.audio.manifest import content_identity
    from sslim.evaluate.fidelity import fidelity
    from sslim.evaluate.upstream import open_upstream
    from sslim.identity import COMPUTATION, digest
    from sslim.measurements import FidelityReport
    from sslim.version import versions

    if len(models) < 2:
        raise ConfigError("fidelity needs a teacher and a student", "name both, the teacher first")
    upstreams = [open_upstream(model, device=device, precision=precision) for model in models]
    manifest = read_source(data, where=where)
    teacher, rows = upstreams[0], []
    for student in upstreams[1:]:
        report = lambda done, total, name=student.name: bar.work(name, done, total)  # noqa: E731
        rows.append(fidelity(teacher, student, manifest.utterances, on_progress=report))
    return FidelityReport(
        results=tuple(rows),
        computation=COMPUTATION,
        versions=versions(),
        source=str(data),
        where=where,
        skipped=len(manifest.skipped),
        test_audio=digest(sorted(content_identity(one) for one in manifest.utterances)),
    )


def _show_fidelity(rows: Iterable[Fidelity]) -> None:
    from rich.console import Console

    console = Console()
    for row in rows:
        table = _table(
            ["hidden state", "cosine", "L1 / mean", "CKA"],
            f"{row.model}: {row.utterances:,} utterances, {row.seconds / 60:.1f} min",
        )
        for layer in row.layers:
            table.add_row(
                str(layer.layer), f"{layer.cosine:.4f}", f"{layer.l1:.3f}", f"{layer.cka:.4f}"
            )
        console.print(table)
        console.print("least alike in the last one:")
        for one in row.worst:
            line = f"  {one.cosine:.4f}  {one.clip}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _write(path: Path, record: Record) -> None:
    """Writes a result; what is printed does not depend on it."""
    try:
        record.write(path)
    except OSError as error:
        raise OutputError(
            f"--json {path} cannot be written: {first_line(error)}",
            "run the same command again with another file: features are kept, so it is quick",
        ) from error


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        if text and not _words(text):
            raise ValueError
        return tuple(float(word) for word in _words(text))
    except ValueError as error:
        raise ConfigError(f"{name} needs numbers separated by commas, got {text!r}") from error
