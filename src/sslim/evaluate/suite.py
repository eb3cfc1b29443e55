"""`--suite superb`: the ten tasks on whatever corpora are there, one table, and the SUPERB score."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sslim import identity
from sslim.backbone.frozen import Frozen
from sslim.errors import ConfigError, OutputError, first_line
from sslim.evaluate.corpora import CORPORA, Corpus, voxceleb_trials
from sslim.evaluate.run import evaluate
from sslim.evaluate.scorer import Settings
from sslim.evaluate.superb import FBANK, superb_score
from sslim.evaluate.tasks import TASKS
from sslim.evaluate.upstream import open_upstream
from sslim.measurements import Evaluation, Result, SuiteScores
from sslim.version import versions

STATE = "sslim-superb"
"""Folder inside the corpora's, where CSVs and finished tasks are kept."""


@dataclass(frozen=True, kw_only=True)
class FinishedTask(Evaluation):
    """`TASK.json` in the suite's folder: scores like any others, and what they are of."""

    asked: dict[str, Any] = field(default_factory=dict)
    """Everything that decides the result: the task is not run again where it is the same."""


def run_suite(
    suite: str,
    models: Sequence[str | Path],
    root: Path,
    settings: Settings,
    json_file: Path | None,
    device: str,
    precision: str,
    say: Callable[[str], None],
    corpora: Sequence[Corpus] = CORPORA,
) -> SuiteScores:
    """Runs what is there, says what is missing, and prints the table.

    A task that is finished for the same models, settings, audio and versions is not run again, so an
    interrupted suite goes on.

    Raises:
        ConfigError: the suite is unknown, or none of its corpora is there.
        OutputError: nothing can be written beside the corpora.
    """
    if suite.lower() != "superb":
        raise ConfigError(f"there is no suite {suite!r}", "choose superb")
    if not root.is_dir():
        raise ConfigError(f"{root} is not a folder", "name the folder that holds the corpora")
    state = root / STATE
    upstreams: list[Frozen] = []
    results: dict[str, dict[str, Result]] = {}
    missing: list[str] = []
    test_audio: dict[str, str] = {}
    for corpus in corpora:
        rows = corpus.find(root)
        if not rows:
            missing.append(f"{corpus.task}: {corpus.name} is not under {root} ({corpus.where})")
            continue
        source = state / f"{corpus.task}.csv"
        try:
            state.mkdir(exist_ok=True)
            _write_rows(source, rows)
        except OSError as error:
            raise OutputError(
                f"{state} cannot be written: {first_line(error)}",
                "finished tasks are kept there; make it writable, or link the corpora into another folder",
            ) from error
        upstreams = upstreams or [
            open_upstream(model, device=device, precision=precision, name=str(model))
            for model in models
        ]
        say(f"{corpus.task}: {len(rows):,} clips of {corpus.name}")
        evaluated = _task(corpus, source, upstreams, settings, state, device, precision)
        test_audio[corpus.task] = evaluated.data.test_audio if evaluated.data else ""
        for result in evaluated.results:
            results.setdefault(result.model, {})[corpus.task] = result
    for line in missing:
        say(f"missing: {line}")
    if not results:
        raise ConfigError(
            f"none of SUPERB's corpora is under {root}",
            "the lines above say where to get them; any one of them will do",
        )
    scores = SuiteScores(
        suite="superb",
        results=tuple(row for by_task in results.values() for row in by_task.values()),
        missing=tuple(missing),
        computation=identity.COMPUTATION,
        versions=versions(),
        test_audio=test_audio,
        superb_score={model: score_of(by_task) for model, by_task in results.items()},
    )
    _show(results, scores.superb_score)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        scores.write(json_file)
    return scores


def score_of(by_task: dict[str, Result]) -> float | None:
    """The SUPERB score of one model's results; None unless all ten tasks are there."""
    if set(by_task) != set(FBANK):
        return None
    return superb_score(
        {
            task: tuple(100.0 * value for value in (result.score, *result.others.values()))
            for task, result in by_task.items()
        }
    )


def _task(
    corpus: Corpus,
    source: Path,
    upstreams: Sequence[Frozen],
    settings: Settings,
    state: Path,
    device: str,
    precision: str,
) -> Evaluation:
    options = dict(settings.options)
    if corpus.task == "asv" and "trials" not in options:
        trials_file = voxceleb_trials(state.parent)
        if trials_file is not None:
            trials = state / "asv_trials.csv"
            _write_trials(trials_file, trials)
            options["trials"] = str(trials)
    request = _request(source, upstreams, replace(settings, options=options))
    done = state / f"{corpus.task}.json"
    if done.is_file():
        # A disk that was full, say: it is run again.
        with contextlib.suppress(OutputError):
            kept = FinishedTask.read(done)
            if kept.asked == request:
                return kept
    evaluation = evaluate(
        upstreams,
        corpus.task,
        source,
        folds=corpus.folds,
        settings=replace(settings, options=options),
        device=device,
        precision=precision,
        # Corpora with official splits are taken as they are.
        allow_leaks=True,
    )
    finished = FinishedTask(**vars(evaluation), asked=request)
    finished.write(done)
    return finished


def _request(source: Path, upstreams: Sequence[Frozen], settings: Settings) -> dict[str, Any]:
    """Everything that decides a task's result. Audio counts by size and time of writing: that is known at
    once for a whole corpus, and what is run again in vain comes from the cache of features."""
    data = identity.content_of(source)
    with source.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    files = sorted({row[column] for row in rows for column in ("path", "rttm") if row.get(column)})
    stamps: list[tuple[str, int, int]] = []
    for name in files:
        try:
            facts = os.stat(name)
        except OSError:  # `evaluate` says so
            continue
        stamps.append((name, facts.st_size, facts.st_mtime_ns))
    options = {
        name: identity.content_of(value) if Path(value).is_file() else value
        for name, value in settings.options.items()
    }
    return {
        "models": [[one.name, one.fingerprint, one.numbers] for one in upstreams],
        "seeds": list(settings.seeds),
        "learning_rates": list(settings.learning_rates),
        "schedule": asdict(settings.schedule),
        "options": options,
        "data": data,
        "audio": identity.digest(stamps),
        "computation": identity.COMPUTATION,
        "versions": versions(),
    }


def _write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"path": str(Path(row["path"]).resolve())})


def _write_trials(source: Path, path: Path) -> None:
    """VoxCeleb's trials (target, two clips) as a CSV."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["target", "utt1", "utt2"])
        writer.writerows(line.split() for line in source.read_text(encoding="utf-8").splitlines())


def _show(results: dict[str, dict[str, Result]], scores: dict[str, float | None]) -> None:
    table = Table(title="SUPERB (percent; QbE: MTWV x 100)", title_justify="left", box=None)
    # Names of models may hold square brackets.
    table.add_column("model")
    for task in TASKS:
        table.add_column(task, justify="right")
    table.add_column("score", justify="right")
    for model, by_task in results.items():
        cells = []
        for task in TASKS:
            result = by_task.get(task)
            values = [] if result is None else [result.score, *result.others.values()]
            cells.append("/".join(f"{100 * value:.2f}" for value in values) or "-")
        score = scores[model]
        table.add_row(escape(model), *cells, f"{score:.0f}" if score is not None else "-")
    Console().print(table)
