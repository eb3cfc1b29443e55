"""`sslim evaluate`: models on a task, side by side, with intervals, conditions and groups."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sslim.errors import ConfigError
from sslim.evaluate.clips import (
    Clip,
    LabelledClips,
    check_parts,
    check_speakers,
    read_clips,
)
from sslim.evaluate.fitting import CPU
from sslim.evaluate.groups import GroupReport, group_report
from sslim.evaluate.outcome import Outcome, difference, interval, joined
from sslim.evaluate.scorer import CLEAN, Condition, Scorer, Settings
from sslim.evaluate.tasks import Task, get_task
from sslim.evaluate.upstream import Upstream, open_upstream
from sslim.files import write_json
from sslim.train.device import choose_device, device_name, versions

FOLD_VALID_SHARE = 0.2
"""Of a fold's training clips, what the learning rate and stopping are chosen on (as s3prl for IEMOCAP)."""


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    model: str
    task: str
    metric: str
    higher_is_better: bool
    score: float
    interval: tuple[float, float]
    """95% bootstrap over the test part's items."""
    per_seed: tuple[float, ...]
    difference: float
    """To the first model, on the same items."""
    difference_interval: tuple[float, float]
    others: dict[str, float]
    """The task's further metrics."""
    parameters: int
    macs_per_second: int
    chance: float
    learning_rate: float
    items: int
    """Test clips, trials, recordings or queries."""
    conditions: dict[str, dict[str, Any]]
    """Condition -> score, interval, and the loss against clean audio."""
    fingerprint: str
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured, and what is needed to repeat it."""

    task: str
    results: tuple[Result, ...]
    groups: tuple[GroupReport, ...]
    notes: tuple[str, ...]
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.facts,
            "task": self.task,
            "results": [asdict(result) for result in self.results],
            "groups": [group.to_dict() for group in self.groups],
            "notes": list(self.notes),
        }

    def write(self, path: Path) -> None:
        """Writes JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, json.loads(json.dumps(self.to_dict())))


def evaluate(
    models: Sequence[str | Path],
    task: str,
    data: str | Path | LabelledClips,
    *,
    where: Mapping[str, str] | None = None,
    split_column: str = "split",
    folds: str | None = None,
    conditions: Sequence[Condition] = (),
    groups: Sequence[str] = (),
    allow_leaks: bool = False,
    random_labels: bool = False,
    settings: Settings | None = None,
    device: str = "auto",
    precision: str = "float32",
) -> Evaluation:
    """Scores models on one task.

    Args:
        models: folders, hub ids, or `fbank`; differences are to the first.
        task: a name in `tasks.TASKS`.
        data: a CSV of labelled clips (see `clips`).
        where: rows to take, as column -> value.
        split_column: where train, valid and test are written.
        folds: a column whose every value is the test part once (emotion recognition by session).
        conditions: what else the test part is heard under.
        groups: columns to compare scores over.
        allow_leaks: do not refuse a speaker in two parts.
        random_labels: shuffle the training labels, to see what a score is worth.
        settings: seeds, schedule, cache.
        device: where features are computed, and heads over frames learn if it is a CUDA device.
        precision: of the features.

    Raises:
        SslimError: a model, the data or an option cannot be used.
    """
    place = choose_device(device)
    # Apple's GPU has no CTC loss.
    heads_learn_on = place if place.type == "cuda" else CPU
    chosen = replace(settings or Settings(), device=heads_learn_on)
    what = get_task(task)
    began = time.time()
    needed = (*what.columns, *groups, *([folds] if folds else []))
    clips = data
    if not isinstance(clips, LabelledClips):
        column = "" if folds else split_column
        clips = read_clips(clips, columns=needed, where=where, split_column=column)
    clips.need(*needed)
    parts = _folds(clips, folds) if folds else [clips]
    for part in parts:
        check_parts(part, parts=what.parts, shared_role=what.shared_role)
        if what.keeps_speakers_apart and not allow_leaks:
            check_speakers(part if not folds else _tested(part))
    if random_labels:
        parts = [_shuffled(part, what) for part in parts]
    upstreams = [open_upstream(model, device=device, precision=precision) for model in models]
    results: list[Result] = []
    kept: list[dict[str, Outcome]] = []
    for upstream, name in zip(upstreams, _names(models), strict=True):
        result, outcomes = _one(
            replace(upstream, name=name), what, parts, conditions, chosen, kept[:1]
        )
        results.append(result)
        kept.append(outcomes)
    tested = {clip.identity: clip for part in parts for clip in part.part("test")}
    reports = [
        group_report(column, [r.model for r in results], kept, tested, what) for column in groups
    ]
    facts = {
        "data": {
            "source": clips.source,
            "where": dict(where or {}),
            "split_column": split_column,
            "folds": folds,
            "clips": {
                name: sum(len(part.part(name)) for part in parts)
                for name in ("train", "valid", "test")
            },
        },
        "seeds": list(chosen.seeds),
        "schedule": asdict(chosen.schedule),
        "options": dict(chosen.options),
        "random_labels": random_labels,
        "precision": precision,
        "device": device_name(place),
        "versions": versions(),
        "seconds": round(time.time() - began, 1),
    }
    return Evaluation(what.name, tuple(results), tuple(reports), clips.notes, facts)


def _one(
    upstream: Upstream,
    task: Task,
    parts: Sequence[LabelledClips],
    conditions: Sequence[Condition],
    settings: Settings,
    first: Sequence[dict[str, Outcome]],
) -> tuple[Result, dict[str, Outcome]]:
    """One model's line and its outcome under each condition."""
    began = time.time()
    scorers = [task.fit(upstream, part, settings) for part in parts]
    tests = [part.part("test") for part in parts]
    heard: dict[str, dict[str, Outcome]] = {}
    for condition in (CLEAN, *conditions):
        found = [
            scorer.outcomes(clips, condition) for scorer, clips in zip(scorers, tests, strict=True)
        ]
        heard[condition.name] = found[0] if len(found) == 1 else _over_folds(found)
    clean = heard[CLEAN.name]
    main = clean[task.metric]
    reference = first[0][CLEAN.name] if first else main
    by_condition = {
        name: {
            "score": outcomes[task.metric].score,
            "interval": interval(outcomes[task.metric]),
            "change": outcomes[task.metric].score - main.score,
        }
        for name, outcomes in heard.items()
        if name != CLEAN.name
    }
    gap, gap_interval = difference(main, reference)
    result = Result(
        model=upstream.name,
        task=task.name,
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        score=main.score,
        interval=interval(main),
        per_seed=_per_seed(scorers, tests),
        difference=gap,
        difference_interval=gap_interval,
        others={name: found.score for name, found in clean.items() if name != task.metric},
        parameters=upstream.parameters,
        macs_per_second=upstream.macs_per_second,
        chance=float(np.mean([scorer.chance for scorer in scorers])),
        learning_rate=scorers[0].learning_rate,
        items=main.items,
        conditions=by_condition,
        fingerprint=upstream.fingerprint,
        seconds=round(time.time() - began, 1),
    )
    return result, {name: outcomes[task.metric] for name, outcomes in heard.items()}


def _per_seed(scorers: Sequence[Scorer], tests: Sequence[Sequence[Clip]]) -> tuple[float, ...]:
    """Each seed's score, a mean over folds weighted by their clips."""
    rows = [scorer.per_seed(clips) for scorer, clips in zip(scorers, tests, strict=True)]
    weights = [len(clips) for clips in tests]
    return tuple(np.average(np.array(rows), axis=0, weights=weights).tolist())


def _over_folds(found: Sequence[Mapping[str, Outcome]]) -> dict[str, Outcome]:
    return {metric: joined([fold[metric] for fold in found]) for metric in found[0]}


def _folds(data: LabelledClips, column: str) -> list[LabelledClips]:
    """Each value of a column as the test part once; of the rest a fifth, drawn, is the validation part."""
    values = sorted({clip.row[column] for clip in data.clips})
    if len(values) < 2:
        raise ConfigError(
            f"the column {column!r} of {data.source} has one value", "folds need at least two"
        )
    folds = []
    for value in values:
        rest = [clip.identity for clip in data.clips if clip.row[column] != value]
        held = set(random.Random(0).sample(rest, max(1, round(FOLD_VALID_SHARE * len(rest)))))
        parts = [
            "test" if clip.row[column] == value else "valid" if clip.identity in held else "train"
            for clip in data.clips
        ]
        clips = [replace(clip, part=part) for clip, part in zip(data.clips, parts, strict=True)]
        folds.append(replace(data, clips=tuple(clips)))
    return folds


def _tested(data: LabelledClips) -> LabelledClips:
    """Folds keep speakers of the test part apart from the rest; training and validation may share them."""
    clips = [
        replace(clip, part="train" if clip.part == "valid" else clip.part) for clip in data.clips
    ]
    return replace(data, clips=tuple(clips))


def _shuffled(data: LabelledClips, task: Task) -> LabelledClips:
    """The same clips with the labels of the training and validation parts in another order."""
    found: dict[str, Clip] = {}
    for name in ("train", "valid"):
        clips = data.part(name)
        rows = [dict(clip.row) for clip in clips]
        order = random.Random(f"labels of {name}").sample(range(len(rows)), len(rows))
        for clip, source in zip(clips, order, strict=True):
            row = dict(clip.row) | {column: rows[source][column] for column in task.columns}
            found[clip.identity] = replace(clip, row=row)
    return replace(data, clips=tuple(found.get(clip.identity, clip) for clip in data.clips))


def _names(models: Sequence[str | Path]) -> list[str]:
    """Short names where they are unique, whole ones where not."""
    short = [Path(str(model)).name or str(model) for model in models]
    return [
        name if short.count(name) == 1 else str(model)
        for name, model in zip(short, models, strict=True)
    ]
