"""Three numbers and a recommendation, from evidence alone."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import Any

from sslim.report.evidence import Evidence

ENOUGH = 0.95
"""Share of the teacher's score below which a loss beyond its interval is no longer worth a pilot."""


@dataclass(frozen=True)
class TaskLoss:
    """One task: teacher and student."""

    task: str
    metric: str
    teacher: float
    student: float
    kept: float
    """Share of what the teacher gets right."""
    certain: bool | None
    """Whether the loss is beyond its 95% interval; None: there is no interval."""


@dataclass(frozen=True)
class Verdict:
    """What the top of a report says."""

    size: float | None
    """The student's parameters as a share of the teacher's."""
    speed: float | None
    """How many times as fast as the first model of the benchmark, at the longest audio on the fewest threads;
    without a benchmark, how many times fewer MACs."""
    speed_measured: bool
    quality: float | None
    """Mean share of the teacher's correct answers over tasks; without tasks, cosine to the teacher's last
    layer."""
    quality_measured: bool
    decision: str
    """`unknown`, `yes`, `pilot` or `no`."""
    losses: tuple[TaskLoss, ...]

    @property
    def lost(self) -> list[TaskLoss]:
        """Tasks with a loss beyond the interval."""
        return [loss for loss in self.losses if loss.certain]


def judge(evidence: Evidence) -> Verdict:
    """Weighs the evidence.

    `yes`: no task lost beyond its interval. `pilot`: some did, or no interval is known, but all keep
    `ENOUGH`. `no`: a task kept less and the loss is certain. `unknown`: no task was scored.
    """
    losses = tuple(filter(None, (_loss(evidence, scored) for scored in evidence.scores)))
    facts = evidence.inspection.to_dict()
    fast = measured_speed(evidence)
    quality = mean(loss.kept for loss in losses) if losses else _cosine(evidence)
    worst = min((loss.kept for loss in losses if loss.certain is not False), default=1.0)
    if not losses:
        decision = "unknown"
    elif worst < ENOUGH:
        decision = "no"
    elif any(loss.certain is not False for loss in losses):
        decision = "pilot"
    else:
        decision = "yes"
    compressed = facts["parameters"] < facts["dense_parameters"]
    return Verdict(
        size=facts["parameters"] / facts["dense_parameters"] if compressed else None,
        speed=fast
        if fast is not None
        else facts["dense_macs_per_second"] / facts["macs_per_second"]
        if compressed
        else None,
        speed_measured=fast is not None,
        quality=quality,
        quality_measured=bool(losses),
        decision=decision,
        losses=losses,
    )


def measured_speed(evidence: Evidence) -> float | None:
    """The best ratio of a runtime of this model, at the longest audio on the fewest threads."""
    if evidence.bench is None:
        return None
    rows: list[dict[str, Any]] = evidence.bench["results"]
    first = rows[0]["model"]
    own = [row for row in rows if row["model"] != first]
    if not own:
        return None
    threads = min(row["threads"] for row in own)
    seconds = max(row["seconds"] for row in own)
    return max(
        (row["ratio"] for row in own if (row["threads"], row["seconds"]) == (threads, seconds)),
        default=None,
    )


def _loss(evidence: Evidence, scored: dict[str, Any]) -> TaskLoss | None:
    teacher, student = evidence.pair(scored)
    if teacher is None or student is None:
        return None
    up = student["higher_is_better"]
    right = [row["score"] if up else 1 - row["score"] for row in (teacher, student)]
    between = student.get("difference_interval")
    certain = None
    if between is not None:
        certain = between[1] < 0 if up else between[0] > 0
    return TaskLoss(
        scored["task"],
        student["metric"],
        teacher["score"],
        student["score"],
        right[1] / right[0] if right[0] > 0 else 1.0,
        certain,
    )


def _cosine(evidence: Evidence) -> float | None:
    for measured in evidence.fidelity:
        return float(measured["layers"][-1]["cosine"])
    layers = evidence.result.get("layers")
    if not layers:
        return None
    return float(layers[max(layers, key=int)]["cosine"])
