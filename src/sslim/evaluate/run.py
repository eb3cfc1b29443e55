"""`sslim evaluate`: models on a task, side by side, with intervals, conditions and groups."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from sslim import identity
from sslim.backbone.frozen import Frozen
from sslim.device import choose_device, device_name
from sslim.errors import ConfigError
from sslim.evaluate.classification import check_answers
from sslim.evaluate.clip_table import read_clips
from sslim.evaluate.clips import Clip, LabelledClips, folded
from sslim.evaluate.fitting import CPU
from sslim.evaluate.groups import group_report, members_of
from sslim.evaluate.outcome import Outcome, difference, interval, joined
from sslim.evaluate.scorer import CLEAN, Condition, Scorer, Settings
from sslim.evaluate.splits import check_parts, check_speakers
from sslim.evaluate.tasks import Task, get_task
from sslim.evaluate.upstream import FBANK, open_upstream
from sslim.measurements import ConditionScore, Evaluation, Result, ScoredData
from sslim.version import versions

FOLD_VALID_SHARE = 0.2
"""Of a fold's training clips, what the learning rate and stopping are chosen on (as s3prl for IEMOCAP)."""


def evaluate(
    models: Sequence[str | Path | Frozen],
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
        models: folders, hub ids, `fbank`, or what is opened already; differences are to the first.
        task: a name in `tasks.TASKS`.
        data: a CSV of labelled clips (see `clip_table`).
        where: rows to take, as column -> value.
        split_column: where train, valid and test are written.
        folds: a column whose every value is the test part once (emotion recognition by session).
        conditions: what else the test part is heard under.
        groups: columns to compare scores over.
        allow_leaks: count a speaker or audio in two parts instead of refusing it.
        random_labels: shuffle the training labels, to see what a score is worth.
        settings: seeds, schedule, cache.
        device: where features are computed, and heads over frames learn if it is a CUDA device.
        precision: of the features.

    Raises:
        SslimError: a model, the data or an option cannot be used, a head does not learn, or a score is no
            number. All that can be known beforehand is found before a model is opened.
    """
    feature_device = choose_device(device)
    # Heads over frames learn on CUDA or a CPU: Apple's GPU has no CTC loss.
    heads_learn_on = feature_device if feature_device.type == "cuda" else CPU
    run_settings = replace(settings or Settings(), device=heads_learn_on)
    definition = get_task(task)
    began = time.time()
    if folds and not definition.foldable:
        raise ConfigError(
            f"scores of {definition.title} cannot be joined over folds",
            f"give the task {definition.name} a split instead of --folds",
        )
    twice = [name for name, count in Counter(one.name for one in conditions).items() if count > 1]
    if twice:
        raise ConfigError(f"there are two conditions {twice[0]!r}", "give each another name")
    needed = (*definition.columns, *groups, *([folds] if folds else []))
    clips = data
    if not isinstance(clips, LabelledClips):
        column = "" if folds else split_column
        clips = read_clips(
            clips,
            columns=needed,
            where=where,
            split_column=column,
            cache_folder=run_settings.store.folder,
        )
    clips.need(*needed)
    parts = _folds(clips, folds) if folds else [clips]
    notes = [*clips.notes]
    for part in parts:
        accepted = check_parts(
            part,
            parts=definition.parts,
            shared_role=definition.shared_role,
            allow_leaks=allow_leaks,
        )
        notes += [note for note in accepted if note not in notes]
        if definition.keeps_speakers_apart:
            try:
                check_speakers(part if not folds else _tested(part))
            except ConfigError as leak:
                if not allow_leaks:
                    raise
                notes.append(f"{leak.problem}: scores flatter")
    test_clips = [clip for part in parts for clip in part.part("test")]
    if definition.metric == "accuracy":
        for part in parts:
            check_answers(part, definition.columns)
        notes += _check_test_answers(clips, test_clips, definition)
    for column in groups:
        members_of(column, test_clips, definition)
    if random_labels:
        parts = [_shuffled(part, definition) for part in parts]
    upstreams = [
        model
        if isinstance(model, Frozen)
        else open_upstream(model, device=device, precision=precision)
        for model in models
    ]
    names = _names([one.name if isinstance(one, Frozen) else one for one in models])
    results: list[Result] = []
    kept: list[dict[str, Outcome]] = []
    for upstream, name in zip(upstreams, names, strict=True):
        result, outcomes = _score_model(
            replace(upstream, name=name), definition, parts, conditions, run_settings, kept[:1]
        )
        results.append(result)
        kept.append(outcomes)
    floors = [row.score for row, model in zip(results, models, strict=True) if _is_floor(model)]
    results = [replace(result, floor=floors[0] if floors else None) for result in results]
    notes += _suspicions(results)
    tested = {clip.identity: clip for clip in test_clips}
    reports = [
        group_report(column, [r.model for r in results], kept, tested, definition)
        for column in groups
    ]
    return Evaluation(
        task=definition.name,
        results=tuple(results),
        groups=tuple(reports),
        notes=tuple(notes),
        data=ScoredData(
            source=clips.source,
            where=dict(where or {}),
            split_column=split_column,
            folds=folds,
            clips={
                name: sum(len(part.part(name)) for part in parts)
                for name in ("train", "valid", "test")
            },
            test_audio=identity.digest(sorted(clip.content for clip in test_clips)),
        ),
        computation=identity.COMPUTATION,
        seeds=tuple(run_settings.seeds),
        schedule=asdict(run_settings.schedule),
        options=dict(run_settings.options),
        random_labels=random_labels,
        precision=precision,
        device=device_name(feature_device),
        versions=versions(),
        seconds=round(time.time() - began, 1),
    )


def _check_test_answers(data: LabelledClips, test_clips: Sequence[Clip], task: Task) -> list[str]:
    """Refuses a test part with one answer, on which everyone who says it is right; notes answers that differ
    in case or blanks only, which are counted as different."""
    if len({tuple(clip.row[column] for column in task.columns) for clip in test_clips}) < 2:
        raise ConfigError(
            f"the test part of {data.source} has one answer, {test_clips[0].row[task.columns[0]]!r}",
            "accuracy needs at least two; check the split",
        )
    notes = []
    for column in task.columns:
        spellings: dict[str, set[str]] = {}
        for clip in data.clips:
            spellings.setdefault(folded(clip.row[column]), set()).add(clip.row[column])
        for variants in spellings.values():
            if len(variants) > 1:
                listed = " and ".join(repr(name) for name in sorted(variants))
                notes.append(f"the column {column!r} has {listed}: they are taken as different")
    return notes


def _is_floor(model: str | Path | Frozen) -> bool:
    return (model.name if isinstance(model, Frozen) else str(model)) == FBANK


def _suspicions(results: Sequence[Result]) -> list[str]:
    """What a reader has to know before believing a figure."""
    notes = []
    first = results[0]
    low, high = first.interval or (math.nan, math.nan)
    if (low <= first.chance) if first.higher_is_better else (high >= first.chance):
        notes.append(
            f"{first.model} cannot be told from chance ({100 * first.chance:.1f}%): nothing can be said of "
            "models that are compared with it"
        )
    for result in results:
        if not result.higher_is_better and result.score > 1.0:
            notes.append(
                f"{result.model}: {result.metric} {100 * result.score:.0f}%, more errors than there is to be "
                "right about; one that says nothing has 100%"
            )
    return notes


def _check_score(result: str, task: Task, outcomes: Mapping[str, Outcome]) -> None:
    """Raises ConfigError for a score over nothing, or one that is no number."""
    for metric, outcome in outcomes.items():
        if outcome.items == 0 or not math.isfinite(outcome.score):
            raise ConfigError(
                f"{metric} of {result} is no number over {outcome.items} items of {task.title}",
                "the test part must hold something of each kind that is scored",
            )


def _score_model(
    upstream: Frozen,
    task: Task,
    parts: Sequence[LabelledClips],
    conditions: Sequence[Condition],
    settings: Settings,
    first: Sequence[dict[str, Outcome]],
) -> tuple[Result, dict[str, Outcome]]:
    """One model's line and its outcome under each condition."""
    began = time.time()
    scorers = [task.fit(upstream, part, settings) for part in parts]
    test_parts = [part.part("test") for part in parts]
    outcomes_under: dict[str, dict[str, Outcome]] = {}
    for condition in (CLEAN, *conditions):
        folds = [
            scorer.outcomes(clips, condition)
            for scorer, clips in zip(scorers, test_parts, strict=True)
        ]
        outcomes_under[condition.name] = folds[0] if len(folds) == 1 else _over_folds(folds)
        _check_score(f"{upstream.name}, {condition.name},", task, outcomes_under[condition.name])
    clean = outcomes_under[CLEAN.name]
    main = clean[task.metric]
    reference = first[0][CLEAN.name] if first else main
    identities = {condition.name: condition.identity for condition in conditions}
    by_condition = {
        name: ConditionScore(
            outcomes[task.metric].score,
            interval(outcomes[task.metric]),
            outcomes[task.metric].score - main.score,
            identities[name],
        )
        for name, outcomes in outcomes_under.items()
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
        per_seed=_per_seed(scorers, test_parts),
        difference=gap,
        difference_interval=gap_interval,
        others={name: outcome.score for name, outcome in clean.items() if name != task.metric},
        parameters=upstream.parameters,
        macs_per_second=upstream.macs_per_second,
        chance=float(
            np.average(
                [scorer.chance for scorer in scorers], weights=[len(clips) for clips in test_parts]
            )
        ),
        floor=None,
        learning_rate=scorers[0].learning_rate,
        items=main.items,
        conditions=by_condition,
        fingerprint=upstream.fingerprint,
        model_fingerprint=upstream.model_fingerprint,
        numbers=upstream.numbers,
        seconds=round(time.time() - began, 1),
    )
    return result, {name: outcomes[task.metric] for name, outcomes in outcomes_under.items()}


def _per_seed(scorers: Sequence[Scorer], tests: Sequence[Sequence[Clip]]) -> tuple[float, ...]:
    """Each seed's score, a mean over folds weighted by their clips."""
    rows = [scorer.per_seed(clips) for scorer, clips in zip(scorers, tests, strict=True)]
    weights = [len(clips) for clips in tests]
    return tuple(np.average(np.array(rows), axis=0, weights=weights).tolist())


def _over_folds(folds: Sequence[Mapping[str, Outcome]]) -> dict[str, Outcome]:
    return {metric: joined([fold[metric] for fold in folds]) for metric in folds[0]}


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
        valid_names = set(
            random.Random(0).sample(rest, max(1, round(FOLD_VALID_SHARE * len(rest))))
        )
        parts = [
            "test"
            if clip.row[column] == value
            else "valid"
            if clip.identity in valid_names
            else "train"
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
    shuffled: dict[str, Clip] = {}
    for name in ("train", "valid"):
        clips = data.part(name)
        rows = [dict(clip.row) for clip in clips]
        order = random.Random(f"labels of {name}").sample(range(len(rows)), len(rows))
        for clip, source in zip(clips, order, strict=True):
            row = dict(clip.row) | {column: rows[source][column] for column in task.columns}
            shuffled[clip.identity] = replace(clip, row=row)
    return replace(data, clips=tuple(shuffled.get(clip.identity, clip) for clip in data.clips))


def _names(models: Sequence[str | Path]) -> list[str]:
    """Short names where they are unique, whole ones where not."""
    short = [Path(str(model)).name or str(model) for model in models]
    return [
        name if short.count(name) == 1 else str(model)
        for name, model in zip(short, models, strict=True)
    ]
