"""`--suite superb`: the ten tasks on whatever corpora are there, one table, and the SUPERB score."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sslim.errors import ConfigError
from sslim.evaluate.corpora import CORPORA, Corpus, voxceleb_trials
from sslim.evaluate.run import evaluate
from sslim.evaluate.scorer import Settings
from sslim.evaluate.superb import FBANK, superb_score
from sslim.evaluate.tasks import TASKS
from sslim.files import write_json

STATE = "sslim-superb"
"""Folder inside the corpora's, where CSVs and finished tasks are kept."""


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
) -> dict[str, Any]:
    """Runs what is there, says what is missing, and prints the table.

    A task that is finished for these models and settings is not run again, so an interrupted suite goes on.

    Raises:
        ConfigError: the suite is unknown, or none of its corpora is there.
    """
    if suite.lower() != "superb":
        raise ConfigError(f"there is no suite {suite!r}", "choose superb")
    if not root.is_dir():
        raise ConfigError(f"{root} is not a folder", "name the folder that holds the corpora")
    state = root / STATE
    results: dict[str, dict[str, dict[str, Any]]] = {}
    missing: list[str] = []
    for corpus in corpora:
        rows = corpus.find(root)
        if not rows:
            missing.append(f"{corpus.task}: {corpus.name} is not under {root} ({corpus.where})")
            continue
        state.mkdir(exist_ok=True)
        source = state / f"{corpus.task}.csv"
        _write_rows(source, rows)
        say(f"{corpus.task}: {len(rows):,} clips of {corpus.name}")
        found = _task(corpus, source, models, settings, state, device, precision)
        for result in found["results"]:
            results.setdefault(result["model"], {})[corpus.task] = result
    for line in missing:
        say(f"missing: {line}")
    if not results:
        raise ConfigError(
            f"none of SUPERB's corpora is under {root}",
            "the lines above say where to get them; any one of them will do",
        )
    facts: dict[str, Any] = {"suite": "superb", "results": [], "missing": missing}
    for model, by_task in results.items():
        facts["results"] += by_task.values()
        facts.setdefault("superb_score", {})[model] = score_of(by_task)
    _show(results, facts["superb_score"])
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, facts)
    return facts


def score_of(by_task: dict[str, dict[str, Any]]) -> float | None:
    """The SUPERB score of one model's results; None unless all ten tasks are there."""
    if set(by_task) != set(FBANK):
        return None
    return superb_score(
        {
            task: tuple(100.0 * value for value in (result["score"], *result["others"].values()))
            for task, result in by_task.items()
        }
    )


def _task(
    corpus: Corpus,
    source: Path,
    models: Sequence[str | Path],
    settings: Settings,
    state: Path,
    device: str,
    precision: str,
) -> dict[str, Any]:
    asked = {
        "models": [str(model) for model in models],
        "seeds": list(settings.seeds),
        "learning_rates": list(settings.learning_rates),
        "schedule": vars(settings.schedule),
        "precision": precision,
        "data": source.read_text(encoding="utf-8"),
    }
    done = state / f"{corpus.task}.json"
    if done.is_file():
        kept: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        if kept.get("asked") == asked:
            return kept
    options = dict(settings.options)
    if corpus.task == "asv" and "trials" not in options:
        found = voxceleb_trials(state.parent)
        if found is not None:
            trials = state / "asv_trials.csv"
            _write_trials(found, trials)
            options["trials"] = str(trials)
    evaluation = evaluate(
        models,
        corpus.task,
        source,
        folds=corpus.folds,
        settings=replace(settings, options=options),
        device=device,
        precision=precision,
        # Corpora with official splits are taken as they are.
        allow_leaks=True,
    )
    facts = evaluation.to_dict() | {"asked": asked}
    write_json(done, facts)
    kept = json.loads(json.dumps(facts))
    return kept


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


def _show(results: dict[str, dict[str, dict[str, Any]]], scores: dict[str, float | None]) -> None:
    table = Table(title="SUPERB (percent; QbE: MTWV x 100)", title_justify="left", box=None)
    table.add_column("model")
    for task in TASKS:
        table.add_column(task, justify="right")
    table.add_column("score", justify="right")
    for model, by_task in results.items():
        cells = []
        for task in TASKS:
            found = by_task.get(task)
            values = [] if found is None else [found["score"], *found["others"].values()]
            cells.append("/".join(f"{100 * value:.2f}" for value in values) or "-")
        score = scores[model]
        table.add_row(model, *cells, f"{score:.0f}" if score is not None else "-")
    Console().print(table)
