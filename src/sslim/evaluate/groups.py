"""Whom does compression hurt? Scores per group of clips, and whether the gap between groups has widened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sslim.errors import ConfigError
from sslim.evaluate.clips import Clip
from sslim.evaluate.outcome import Outcome, bounds, draws, interval
from sslim.evaluate.scorer import CLEAN
from sslim.evaluate.tasks import Task
from sslim.measurements import Gap, GroupReport, GroupScore

FEWEST = 20
"""Test clips below which a group is shown, but takes no part in gaps."""


def members_of(column: str, clips: Sequence[Clip], task: Task) -> dict[str, list[int]]:
    """The items of each group, as numbers of the test clips that are items; known before anything is trained.

    Raises:
        ConfigError: the task's items are no clips, or there are no two groups large enough to compare.
    """
    if task.items == "trial":
        raise ConfigError(
            f"scores of {task.title} belong to pairs of clips", "--group works with the other tasks"
        )
    members: dict[str, list[int]] = {}
    for index, clip in enumerate(items_of(clips, task)):
        members.setdefault(clip.row[column].strip() or "unknown", []).append(index)
    large = [name for name, indices in members.items() if len(indices) >= FEWEST]
    if len(large) < 2:
        raise ConfigError(
            f"the column {column!r} has {len(large)} group(s) of {FEWEST} test clips or more",
            "a comparison needs two",
        )
    return members


def items_of(clips: Sequence[Clip], task: Task) -> list[Clip]:
    """The test clips that are items of a score."""
    return [clip for clip in clips if task.items == "clip" or clip.row["role"] == task.items]


def group_report(
    column: str,
    names: Sequence[str],
    outcomes: Sequence[Mapping[str, Outcome]],
    clips: Mapping[str, Clip],
    task: Task,
) -> GroupReport:
    """Compares groups of test clips, for every model and against the first.

    Args:
        column: whose values are the groups.
        names: of the models.
        outcomes: for each model, condition -> outcome.
        clips: the test clips by identity.
        task: for its direction.

    Raises:
        ConfigError: as `members_of`.
    """
    clean = [by_condition[CLEAN.name] for by_condition in outcomes]
    members = members_of(column, [clips[name] for name in clean[0].identities], task)
    # A group may have nothing to score, such as no slot in any of its texts.
    large = sorted(
        name
        for name, indices in members.items()
        if len(indices) >= FEWEST and all(math.isfinite(outcome.over(indices)) for outcome in clean)
    )
    if len(large) < 2:
        raise ConfigError(
            f"the column {column!r} has {len(large)} group(s) of {FEWEST} test clips with a score",
            "a comparison needs two",
        )
    scores = {
        name: {
            group: GroupScore(len(indices), outcome.over(indices), interval(outcome, indices))
            for group, indices in sorted(members.items())
        }
        for name, outcome in zip(names, clean, strict=True)
    }
    gaps: dict[str, Gap] = {}
    sentences = []
    first = _gaps(clean[0], members, large)
    for name, outcome in zip(names, clean, strict=True):
        ours: dict[str, float] = {group: outcome.over(members[group]) for group in large}
        best, worst = (
            max(large, key=lambda group: ours[group]),
            min(large, key=lambda group: ours[group]),
        )
        gap = abs(ours[best] - ours[worst])
        if not task.higher_is_better:
            best, worst = worst, best
        gaps[name] = Gap(best, worst, gap)
        if name == names[0]:
            continue
        widened = gap - gaps[names[0]].gap
        between = bounds(_gaps(outcome, members, large) - first)
        gaps[name] = replace(gaps[name], widened=widened, widened_interval=between)
        sentences.append(_sentence(column, name, names[0], gaps[name], widened, between))
    return GroupReport(column, scores, gaps, tuple(sentences))


def _gaps(
    outcome: Outcome, members: Mapping[str, Sequence[int]], large: Sequence[str]
) -> np.ndarray:
    """The largest distance between two groups in each bootstrap sample, drawn within groups."""
    rows = []
    for group in large:
        indices = np.asarray(members[group])
        rows.append([outcome.statistic(indices[drawn]) for drawn in draws(len(indices))])
    table = np.array(rows)
    distance: np.ndarray = table.max(axis=0) - table.min(axis=0)
    return distance


def _sentence(
    column: str, name: str, first: str, gap: Gap, widened: float, interval: tuple[float, float]
) -> str:
    low, high = interval
    between = f"between {column} {gap.worst!r} and {gap.best!r}"
    size = f"{100 * gap.gap:.1f} points"
    if low > 0:
        return (
            f"{name}: the largest gap, {between}, is {size}; compression widened it by "
            f"{100 * widened:.1f} points over {first} (95% interval {100 * low:.1f} to "
            f"{100 * high:.1f})."
        )
    return (
        f"{name}: the largest gap, {between}, is {size}; no widening over {first} can be told from "
        f"chance (95% interval {100 * low:+.1f} to {100 * high:+.1f})."
    )
