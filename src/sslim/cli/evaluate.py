"""`sslim evaluate`: what a model can still do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sslim.cli.compress import parse_where
from sslim.errors import ConfigError

if TYPE_CHECKING:
    from sslim.evaluate.fidelity import Fidelity
    from sslim.evaluate.run import Evaluation
    from sslim.evaluate.scorer import Condition

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
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Only these rows. Can be repeated."),
    ] = None,
    split_column: Annotated[
        str, typer.Option(help="The column with train, valid, test.")
    ] = "split",
    folds: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Each value is the test part once.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything here as well.")
    ] = None,
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
    collar: Annotated[float, typer.Option(help="sd: seconds around boundaries not scored.")] = 0.0,
    noise: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also score with noise from here added.")
    ] = None,
    snr: Annotated[str, typer.Option(metavar="DB,DB", help="With --noise.")] = "20,10,5,0",
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
        bool, typer.Option("--allow-leaks", help="Accept a speaker in two parts.")
    ] = False,
    random_labels: Annotated[
        bool, typer.Option("--random-labels", help="Shuffle training labels: what is chance?")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where features are kept.")
    ] = None,
    cache_gib: Annotated[float, typer.Option(help="Most disk for features of frames.")] = 20.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
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
    if seeds < 1 or epochs < 1 or batch < 1:
        raise ConfigError("--seeds, --epochs and --batch must be at least 1")
    if precision not in ("float32", "bfloat16", "auto"):
        raise ConfigError(f"--precision knows float32, bfloat16, auto, got {precision!r}")
    columns = parse_where(where or ())
    rates, ratios = (
        _numbers(name, text)
        for name, text in (("--learning-rates", learning_rates), ("--snr", snr))
    )

    from sslim.train.progress import ProgressBar

    if task == "fidelity":
        with ProgressBar(True) as bar:
            found = _fidelity(models, data, columns, device, precision, bar)
        _show_fidelity(found)
        if json_file:
            _write(json_file, [one.to_dict() | {"model": name} for name, one in found])
        return

    from sslim.evaluate.conditions import named_conditions
    from sslim.evaluate.features import FeatureStore
    from sslim.evaluate.fitting import Schedule
    from sslim.evaluate.run import evaluate as run
    from sslim.evaluate.scorer import Settings
    from sslim.evaluate.suite import run_suite
    from sslim.evaluate.tasks import get_task

    if task:
        get_task(task)
    heard: list[Condition] = named_conditions(
        _words(conditions), noise=noise, ratios=ratios, rooms=rooms
    )
    options = {"collar": str(collar)}
    options |= {} if trials is None else {"trials": str(trials)}
    options |= {} if valid_trials is None else {"valid_trials": str(valid_trials)}
    with ProgressBar(True) as bar:
        settings = Settings(
            store=FeatureStore(cache or _cache_folder(), int(cache_gib * 2**30)),
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
            conditions=heard,
            groups=_words(group),
            allow_leaks=allow_leaks,
            random_labels=random_labels,
            settings=settings,
            device=device,
            precision=precision,
        )
    show(evaluation)
    if json_file:
        evaluation.write(json_file)
        typer.echo(f"written to {json_file}", err=True)


def show(evaluation: Evaluation) -> None:
    """Prints the tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    first = evaluation.results[0]
    scale = 1.0 if first.metric == "MTWV" else 100.0
    unit = "" if first.metric == "MTWV" else ", %"
    direction = "higher is better" if first.higher_is_better else "lower is better"
    title = f"{evaluation.task}: {first.metric}{unit} ({direction}), {first.items:,} test items"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in (
        "model",
        "score",
        "95% interval",
        f"against {first.model}",
        "parameters",
        "MACs/s",
    ):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name in first.others:
        table.add_column(name, justify="right")
    for result in evaluation.results:
        low, high = (scale * edge for edge in result.interval)
        less, more = (scale * edge for edge in result.difference_interval)
        against = (
            ""
            if result is first
            else f"{scale * result.difference:+.1f} ({less:+.1f} to {more:+.1f})"
        )
        table.add_row(
            result.model,
            f"{scale * result.score:.2f}",
            f"{low:.2f} to {high:.2f}",
            against,
            f"{result.parameters:,}" if result.parameters else "-",
            f"{result.macs_per_second / 1e9:.3g}G" if result.macs_per_second else "-",
            *(f"{scale * score:.2f}" for score in result.others.values()),
        )
    chance = evaluation.results[0].chance
    table.add_row("chance", f"{scale * chance:.2f}", "", "", "-", "-", *("" for _ in first.others))
    console.print(table)
    if first.conditions:
        worse = Table(box=None, pad_edge=False)
        for heading in ("condition", *(result.model for result in evaluation.results)):
            worse.add_column(heading, justify="left" if heading == "condition" else "right")
        for name in first.conditions:
            cells = [result.conditions[name] for result in evaluation.results]
            worse.add_row(
                name,
                *(f"{scale * cell['score']:.1f} ({scale * cell['change']:+.1f})" for cell in cells),
            )
        console.print(worse)
    for report in evaluation.groups:
        by = Table(box=None, pad_edge=False)
        by.add_column(report.column)
        for name in report.scores:
            by.add_column(name, justify="right")
        for value in next(iter(report.scores.values())):
            row = [report.scores[name][value] for name in report.scores]
            texts = [
                f"{scale * cell['score']:.1f} ({scale * cell['interval'][0]:.1f} to "
                f"{scale * cell['interval'][1]:.1f})"
                for cell in row
            ]
            by.add_row(f"{value} ({row[0]['clips']})", *texts)
        console.print(by)
        for sentence in report.sentences:
            console.print(sentence, highlight=False, soft_wrap=True)
    for note in evaluation.notes:
        console.print(note, highlight=False, soft_wrap=True)


def _fidelity(
    models: list[str],
    data: Path | None,
    where: dict[str, str],
    device: str,
    precision: str,
    bar: Any,
) -> list[tuple[str, Fidelity]]:
    from sslim.audio import read_source
    from sslim.evaluate.fidelity import fidelity
    from sslim.evaluate.upstream import open_upstream

    if len(models) < 2:
        raise ConfigError("fidelity needs a teacher and a student", "name both, the teacher first")
    upstreams = [open_upstream(model, device=device, precision=precision) for model in models]
    utterances = read_source(data or Path(), where=where).utterances
    found = []
    for student in upstreams[1:]:
        tell = lambda done, total, name=student.name: bar.work(name, done, total)  # noqa: E731
        found.append((student.name, fidelity(upstreams[0], student, utterances, on_progress=tell)))
    return found


def _show_fidelity(found: list[tuple[str, Fidelity]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, one in found:
        table = Table(
            title=f"{name}: {one.utterances:,} utterances, {one.seconds / 60:.1f} min",
            title_justify="left",
            box=None,
            pad_edge=False,
        )
        for heading in ("hidden state", "cosine", "L1 / mean", "CKA"):
            table.add_column(heading, justify="right")
        for layer in one.layers:
            table.add_row(
                str(layer.layer), f"{layer.cosine:.4f}", f"{layer.l1:.3f}", f"{layer.cka:.4f}"
            )
        console.print(table)
        console.print("least alike in the last one:")
        for clip, cosine in one.worst:
            console.print(f"  {cosine:.4f}  {clip}", highlight=False, soft_wrap=True)


def _write(path: Path, data: Any) -> None:
    from sslim.files import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"results": json.loads(json.dumps(data))})


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sslim" / "features"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in _words(text))
    except ValueError as error:
        raise ConfigError(f"{name} needs numbers separated by commas, got {text!r}") from error
