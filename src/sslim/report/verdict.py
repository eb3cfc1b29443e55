"""Three figures and a recommendation, from evidence alone.

A task counts only where it can tell a good model from a bad one: its teacher stands clearly, by intervals,
above chance and above log-mel features. What a score on any other task says is `unknown`, with the reason:
two models at chance are not "100% kept". The figure at the top is of the worst task that counts, and never
above the teacher: what a student gains on a few hundred clips is noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sslim.measurements import Result, Timing
from sslim.report.evidence import Evidence, ScoredTask

ENOUGH = 0.95
"""Share of the teacher's correct answers that must be kept: at the worst end of the interval for a rollout,
at the score itself for a pilot."""


@dataclass(frozen=True)
class TaskLoss:
    """One task: teacher and student."""

    task: str
    metric: str
    model: str
    """The student's name in that file: the folder, or an exported file of it."""
    teacher: float | None
    student: float
    unknown: str
    """Why the scores say nothing, as a key of `words.toml` (`why_...`); empty where they do."""
    kept: float = 0.0
    """Share of what the teacher gets right, 0 or more; above 1 where the student happened to get more."""
    at_worst: float = 0.0
    """The same at the worst end of the 95% interval of the difference."""
    certain: bool = False
    """Whether the whole interval is a loss."""

    @property
    def safe(self) -> bool:
        """Whether even the worst end keeps enough."""
        return not self.unknown and self.at_worst >= ENOUGH

    @property
    def refused(self) -> bool:
        """Whether the loss is certain and too large."""
        return not self.unknown and self.certain and self.kept < ENOUGH

    @property
    def as_good(self) -> bool:
        """Whether no loss was seen: then a share above 100% would be noise shown as a gain."""
        return not self.unknown and self.kept >= 1.0


@dataclass(frozen=True)
class Speed:
    """The student's fastest runtime against its teacher, at the longest audio on the fewest threads."""

    times: float
    """How many times as fast."""
    runtime: str
    teacher_runtime: str
    threads: int
    seconds: float

    @property
    def like(self) -> bool:
        """Whether both ran in the same runtime."""
        return self.runtime == self.teacher_runtime


@dataclass(frozen=True)
class Verdict:
    """What the top of a report says."""

    size: float | None
    """The student's parameters as a share of its teacher's (of the dense model's, where none is recorded)."""
    fewer_operations: float | None
    """How many times fewer MACs."""
    speed: Speed | None
    """Measured; None: no benchmark has both models."""
    decision: str
    """`unknown`, `yes`, `pilot` or `no`."""
    losses: tuple[TaskLoss, ...]

    @property
    def judged(self) -> list[TaskLoss]:
        """Tasks that say something."""
        return [loss for loss in self.losses if not loss.unknown]

    @property
    def silent(self) -> list[TaskLoss]:
        """Tasks that say nothing."""
        return [loss for loss in self.losses if loss.unknown]

    @property
    def worst(self) -> TaskLoss | None:
        """The task of which least was kept, among those that say something."""
        return min(self.judged, key=lambda loss: (loss.kept, loss.at_worst), default=None)

    @property
    def blamed(self) -> list[TaskLoss]:
        """Tasks that the decision is due to."""
        if self.decision == "no":
            return [loss for loss in self.judged if loss.refused]
        if self.decision == "pilot":
            return [loss for loss in self.judged if not loss.safe]
        return self.judged


def judge(evidence: Evidence) -> Verdict:
    """Weighs the evidence.

    `yes`: every task that says something keeps `ENOUGH` even at the worst end of its interval. `no`: one of
    them keeps less, and the loss is certain. `pilot`: all between. `unknown`: no task says anything.
    """
    losses = tuple(loss for scored in evidence.scores for loss in _losses(evidence, scored))
    known = [loss for loss in losses if not loss.unknown]
    if not known:
        decision = "unknown"
    elif any(loss.refused for loss in known):
        decision = "no"
    else:
        decision = "yes" if all(loss.safe for loss in known) else "pilot"
    sizes = evidence.sizes
    compressed = sizes["parameters"] < sizes["dense_parameters"]
    return Verdict(
        size=sizes["parameters"] / sizes["dense_parameters"] if compressed else None,
        fewer_operations=sizes["dense_macs_per_second"] / sizes["macs_per_second"]
        if compressed
        else None,
        speed=measured_speed(evidence),
        decision=decision,
        losses=losses,
    )


def measured_speed(evidence: Evidence) -> Speed | None:
    """This model's fastest runtime against its teacher in the same one, at the longest audio on the fewest
    threads that both were measured at; against the teacher's fastest where no runtime is shared."""
    if evidence.bench is None:
        return None
    rows = evidence.bench.results
    own = [row for row in rows if evidence.is_own(row)]
    theirs = [row for row in rows if evidence.is_teacher(row)]
    shared = {_place(row) for row in own} & {_place(row) for row in theirs}
    if not shared:
        return None
    threads = min(place[0] for place in shared)
    seconds = max(place[1] for place in shared if place[0] == threads)
    own = [row for row in own if _place(row) == (threads, seconds)]
    theirs = [row for row in theirs if _place(row) == (threads, seconds)]
    runtimes = {row.runtime for row in theirs}
    best = _fastest([row for row in own if row.runtime in runtimes] or own)
    beside = [row for row in theirs if row.runtime == best.runtime]
    other = _fastest(beside or theirs)
    times = other.median / best.median
    return Speed(times, best.runtime, other.runtime, threads, seconds)


def _place(row: Timing) -> tuple[int, float]:
    return row.threads, row.seconds


def _fastest(rows: Iterable[Timing]) -> Timing:
    return min(rows, key=lambda row: row.median)


def _losses(evidence: Evidence, scored: ScoredTask) -> list[TaskLoss]:
    """One task: a loss per row of this model (the folder itself, its exported files)."""
    rows = scored.results
    teacher = next((row for row in rows if evidence.is_teacher(row)), None)
    mel = next((row for row in rows if row.is_log_mel), None)
    own = [row for row in rows if evidence.is_own(row)]
    return [_loss(scored, teacher, row, mel) for row in own]


def _loss(
    scored: ScoredTask, teacher: Result | None, student: Result, mel: Result | None
) -> TaskLoss:
    known: dict[str, Any] = {"task": scored.task, "metric": student.metric, "model": student.model}
    why = "why_teacher_unscored" if teacher is None else _silence(scored, teacher, student, mel)
    score = None if teacher is None else teacher.score
    if why or teacher is None or student.difference_interval is None:
        return TaskLoss(**known, teacher=score, student=student.score, unknown=why)
    up = student.higher_is_better
    right = [_right(row.score, up) for row in (teacher, student)]
    worst, best = student.difference_interval
    if not up:
        worst, best = -best, -worst
    return TaskLoss(
        **known,
        teacher=score,
        student=student.score,
        unknown="",
        kept=right[1] / right[0],
        at_worst=max(0.0, (right[0] + worst) / right[0]),
        certain=best < 0,
    )


def _right(score: float, up: bool) -> float:
    """What is right, as a share of 1; an error rate above 100% gets nothing right."""
    return max(0.0, score if up else 1.0 - score)


def _silence(scored: ScoredTask, teacher: Result, student: Result, mel: Result | None) -> str:
    """Why a task does not tell models apart; empty where it does."""
    up = teacher.higher_is_better
    if _right(teacher.score, up) <= 0:
        return "why_teacher_nothing"
    if teacher.interval is None:
        return "why_no_interval"
    if not _above(teacher.interval, teacher.chance, up):
        apart = student.interval is not None and _above(student.interval, student.chance, up)
        return "why_teacher_chance" if apart else "why_both_chance"
    if mel is not None and not _above_log_mel(scored, teacher, mel, up):
        return "why_log_mel"
    if not scored.against_teacher or student.difference_interval is None:
        return "why_no_difference"
    return ""


def _above(interval: tuple[float, float], level: float, up: bool) -> bool:
    """Whether all of an interval is better than a level."""
    return interval[0] > level if up else interval[1] < level


def _above_log_mel(scored: ScoredTask, teacher: Result, mel: Result, up: bool) -> bool:
    """Whether the teacher is clearly better: by the paired interval, or by intervals that do not touch."""
    between = mel.difference_interval
    if scored.against_teacher and between is not None:
        return bool(between[1] < 0 if up else between[0] > 0)
    if mel.interval is None or teacher.interval is None:
        return False
    return _above(teacher.interval, mel.interval[1 if up else 0], up)


def measured_cosine(evidence: Evidence) -> tuple[float, str, int] | None:
    """Cosine to the teacher's last layer, on which audio it was measured (`own`, `held_out`, `trained_on`)
    and on how many utterances (0: not said)."""
    if evidence.fidelity:
        row = evidence.fidelity[-1]
        last = max(row.layers, key=lambda layer: layer.layer)
        return min(1.0, last.cosine), "own", row.utterances
    known = evidence.distance
    if known is None:
        return None
    cosine = known.layers[max(known.layers)].cosine
    return min(1.0, cosine), "held_out" if known.held_out else "trained_on", known.utterances
