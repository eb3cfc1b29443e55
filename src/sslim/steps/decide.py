"""The decision: the gates write a plan within the budget, and surgery makes the small model."""

from __future__ import annotations

from sslim.backbone.units import shape_of
from sslim.distill.student import PlainStudent
from sslim.plan import PruningPlan
from sslim.prune.student import GatedStudent
from sslim.prune.surgery import cut
from sslim.runs.facts import CheckpointFacts, DecisionFacts
from sslim.steps.step import Product, Run, Step


def decide() -> Step:
    """Which units stay, and the cut."""
    return Step("decide", _decide, small_model)


def _decide(run: Run, before: Product | None) -> Product:
    assert before is not None
    gated = before.student
    assert isinstance(gated, GatedStudent)
    decision = gated.decide()
    if decision.undecided:
        run.say(
            f"warning: {decision.undecided:,} of {gated.gates.total:,} gates had not settled; a "
            "global threshold decided them. More updates (--set stage1.updates=...) make a better choice."
        )
    student = PlainStudent(gated.cut(decision), normalises=run.teacher.normalise)
    facts = DecisionFacts(
        plan=decision.plan.to_dict(gated.gates.layout.shape),
        undecided=decision.undecided,
        units=gated.gates.total,
        shrinks=tuple(gated.shrinks),
        shift=decision.shift,
    )
    return Product(student, before.objectives, facts)


def small_model(run: Run, facts: CheckpointFacts) -> Product:
    """A product after the decision, of the right shape to load a saved one into."""
    assert facts.decision is not None
    plan = PruningPlan.from_dict(facts.decision.plan, shape_of(run.teacher.model))
    student = PlainStudent(cut(run.teacher.model, plan), normalises=run.teacher.normalise)
    return Product(student, run.objectives(), facts.decision)
