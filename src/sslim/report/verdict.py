"""Three numbers and a recommendation, from evidence alone."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import Any

from sslim.report.evidence import Evidence

ENOUGH = 0.95
"""Share of the teacher's correct answers that must be kept: at the worst end of the interval for a rollout,
at the score itself for a pilot."""


@dataclass(frozen=True)
class TaskLoss:
    """One task: teacher and student."""

    task: str
    metric: str
    teacher: float
    student: float
    kept: float
    """Share of what the teacher gets right."""
    at_worst: float | None
    """The same at the worst end of the 95% interval of the difference; None: there is no interval."""
    certain: bool
    """Whether the whole interval is a loss."""

    @property
    def safe(self) -> bool:
        """Whether even the worst end keeps enough."""
        return self.at_worst is not None and self.at_worst >= ENOUGH

    @property
    def refused(self) -> bool:
        """Whether the loss is certain and too large."""
        return self.certain and self.kept < ENOUGH


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
    def blamed(self) -> list[TaskLoss]:
        """Tasks that the decision is due to."""
        if self.decision == "no":
            return [loss for loss in self.losses if loss.refused]
        return [loss for loss in self.losses if not loss.safe]


def judge(evidence: Evidence) -> Verdict:
    """Weighs the evidence.

    `yes`: every scored task keeps `ENOUGH` even at the worst end of its interval. `no`: a task keeps less,
    and the loss is certain. `pilot`: all between, and scores without intervals. `unknown`: nothing scored.
    """
    losses = tuple(filter(None, (_loss(evidence, scored) for scored in evidence.scores)))
    facts = evidence.inspection.to_dict()
    fast = measured_speed(evidence)
    quality = mean(loss.kept for loss in losses) if losses else _cosine(evidence)
    if not losses:
        decision = "unknown"
    elif any(loss.refused for loss in losses):
        decision = "no"
    else:
        decision = "yes" if all(loss.safe for loss in losses) else "pilot"
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
    at_worst, certain = None, False
    if between is not None:
        worst, best = between if up else (-between[1], -between[0])
        at_worst = (right[0] + worst) / right[0] if right[0] > 0 else 1.0
        certain = best < 0
    return TaskLoss(
        scored["task"],
        student["metric"],
        teacher["score"],
        student["score"],
        right[1] / right[0] if right[0] > 0 else 1.0,
        at_worst,
        certain,
    )


def _cosine(evidence: Evidence) -> float | None:
    for measured in evidence.fidelity:
        return float(measured["layers"][-1]["cosine"])
    layers = evidence.result.get("layers")
    if not layers:
        return None
    return float(layers[max(layers, key=int)]["cosine"])
