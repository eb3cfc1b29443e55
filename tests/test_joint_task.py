"""The joint stage: the constraint, the decision within the budget, and a student that shrinks."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

from sslim.audio.batch import Batch
from sslim.backbone.units import plan_of, shape_of, table_of
from sslim.config import UNITS
from sslim.cost import Widths
from sslim.distill.mapping import check_layers, default_layers
from sslim.distill.task import Task
from sslim.errors import BudgetError, ConfigError
from sslim.plan import PruningPlan
from sslim.prune.budget import Budget, Limit
from sslim.prune.decision import closed_for_good, decide, plan_with
from sslim.prune.gates import Gates, open_probability
from sslim.prune.student import GatedStudent
from sslim.train.processes import Processes
from sslim.train.step import Step
from tests.models import CASES
from tests.tasks import KINDS, budget_of, gated_task, one_limit, teacher

ALONE = Processes(0, 1, torch.device("cpu"))


def under_gates(task: Task) -> GatedStudent:
    assert isinstance(task.student, GatedStudent)
    return task.student


def step_of(task: Task) -> Step:
    return Step(task, ALONE, precision=torch.float32, clip_norm=10.0)


def loss_of(step: Step, update: int, audio: torch.Tensor) -> float:
    """Makes an update on one batch; the loss before it, the constraint included."""
    figures = step(update, 1.0, [Batch(audio, ("clip",) * len(audio))])
    return float(figures["loss"] + figures["constraint"])


def without_closed(
    student: GatedStudent, multiple: int = 1, budget: Budget | None = None
) -> PruningPlan:
    """What is left when a chance to shrink comes between two updates."""
    return closed_for_good(student.gates, budget or student.budget, multiple, student.sample())


def close_some(student: GatedStudent, seed: int = 0) -> None:
    """Closes about half of all units for good."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        closed = torch.rand(student.gates.log_alpha.shape, generator=generator) < 0.5
        student.gates.log_alpha[closed] = -25.0


@pytest.mark.parametrize(("family", "size"), CASES)
def test_shrinking_changes_nothing(family: str, size: str) -> None:
    """Weights, gates and moments go together: the same loss on the same batch, now and ten steps on."""
    torch.manual_seed(0)
    audio = torch.randn(2, 2400)
    step = step_of(gated_task(teacher(family, size)))
    student = under_gates(step.task)
    close_some(student)
    for update in range(3):
        loss_of(step, update, audio)
    twin = copy.deepcopy(step)
    plan = without_closed(student)
    before = sum(weight.numel() for weight in student.model.parameters())
    step.follow(student.shrink(plan))
    after = sum(weight.numel() for weight in student.model.parameters())
    assert after == plan.parameters(shape_of(student.model)) < 0.8 * before
    trained = {weight for group in step.optimiser.param_groups for weight in group["params"]}
    assert trained == set(step.task.parameters()) >= set(step.optimiser.state)
    for update in range(3, 8):
        small = loss_of(step, update, audio)
        large = loss_of(twin, update, audio)
        assert small == pytest.approx(large, abs=1e-5 if update == 3 else 1e-4)


def test_units_that_are_open_in_this_update_stay() -> None:
    """Gates that open now and then: the cut leaves the loss of the update at hand as it was."""
    torch.manual_seed(0)
    audio = torch.randn(2, 2400)
    batch = Batch(audio, ("one", "two"))
    task = gated_task(teacher(), shrink_every=1, shrink_multiple=1)
    student = under_gates(task)
    with torch.no_grad():
        student.gates.log_alpha[::2] = -6.5
    assert float(open_probability(torch.tensor(-6.5))) == pytest.approx(0.0074, abs=1e-3)
    opened = 0
    for update in range(1, 30):
        task.begin_update(update)
        opened = int((student.sample()[::2] > 0).sum())
        if opened:
            break
    assert opened, "no update in which one of them opens"
    with torch.no_grad():
        before = float(task(batch)["loss"])
        closed = len(student.gates.log_alpha[::2])
        assert task.after_update(update)
        assert student.gates.origin.numel() == student.gates.total - closed + opened
        task.begin_update(update)  # the same noise, for the units that are left
        assert float(task(batch)["loss"]) == pytest.approx(before, abs=1e-5)


def test_shrinking_without_moving_the_moments_is_noticed() -> None:
    """The corrupted twin: forgetting the optimiser's state must show in the next losses."""
    torch.manual_seed(0)
    audio = torch.randn(2, 2400)
    step = step_of(gated_task(teacher()))
    student = under_gates(step.task)
    close_some(student)
    for update in range(3):
        loss_of(step, update, audio)
    twin = copy.deepcopy(step)
    step.follow(student.shrink(without_closed(student)))
    step.optimiser.state.clear()
    off = [
        abs(loss_of(step, update, audio) - loss_of(twin, update, audio)) for update in range(3, 8)
    ]
    assert max(off) > 1e-4


def test_a_checkpoint_of_a_shrunk_student_fits_a_fresh_task() -> None:
    torch.manual_seed(0)
    model = teacher("wavlm")
    task = gated_task(model)
    student = under_gates(task)
    close_some(student)
    task.begin_update(0)
    student.shrink(without_closed(student, multiple=8))
    fresh = gated_task(model)
    fresh.restructure(task.structure())
    fresh.load_state_dict(task.state_dict())
    batch = Batch(torch.randn(1, 2000), ("one",))
    task.begin_update(7)
    fresh.begin_update(7)
    assert float(fresh(batch)["loss"].detach()) == float(task(batch)["loss"].detach())


@pytest.mark.parametrize("quantity", ["parameters", "macs"])
def test_shrinking_after_an_overshoot_leaves_room_for_the_budget(quantity: str) -> None:
    """What is removed cannot come back, so the student never shrinks below what the user asked for."""
    model = teacher()
    budget = budget_of(model, 0.5, quantity)
    student = under_gates(gated_task(model, budget=budget))
    with torch.no_grad():
        student.gates.log_alpha.fill_(-25.0)
        student.gates.log_alpha[::9] = 8.0
    student.begin_update(0)
    smallest = without_closed(student, budget=one_limit(quantity, 1, model))
    assert smallest.count(student.gates.layout.shape, quantity) < 0.8 * budget.limits[0].limit
    student.shrink(without_closed(student))
    left = student.gates.plan.count(student.gates.layout.shape, quantity)
    assert left >= budget.limits[0].limit
    assert 0.0 <= budget.unused(student.decide().plan) <= 0.01


def test_kept_sizes_are_rounded_up() -> None:
    student = under_gates(gated_task(teacher()))
    close_some(student)
    student.begin_update(0)
    plan = without_closed(student, multiple=8)
    exact = without_closed(student, multiple=1)
    sizes = student.gates.layout.shape.conv_channels
    for rounded, kept, size in zip(plan.conv, exact.conv, sizes, strict=True):
        assert set(kept) <= set(rounded)
        assert len(rounded) % 8 == 0 or len(rounded) == size


@pytest.mark.parametrize("quantity", ["parameters", "macs"])
@pytest.mark.parametrize("share", [0.75, 0.4])
@pytest.mark.parametrize(("family", "size"), CASES)
def test_the_decision_always_meets_the_budget(
    family: str, size: str, share: float, quantity: str
) -> None:
    """However little the gates have learned: never above, at most 1% below."""
    model = teacher(family, size)
    budget = budget_of(model, share, quantity)
    for seed in range(4):
        gates = Gates(model, KINDS, seed=seed)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            gates.log_alpha += seed * torch.randn(gates.log_alpha.shape, generator=generator)
        decision = decide(gates, budget)
        assert 0.0 <= budget.unused(decision.plan) <= 0.01
        assert int((decision.values > 0).sum()) == sum(
            len(kept) for kept in decision.plan.conv
        ) + sum(len(layer.heads or ()) + len(layer.ffn or ()) for layer in decision.plan.layers)


SUBSETS = [
    kinds for number in range(1, len(UNITS) + 1) for kinds in itertools.combinations(UNITS, number)
]


@pytest.mark.parametrize("kinds", SUBSETS, ids="+".join)
@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_where_more_than_a_hundredth_stays_unused_no_unit_fits(
    family: str, kinds: tuple[str, ...]
) -> None:
    """Never above; with channels or FFN units, and blocks left whole, at most 1% below."""
    model = teacher(family)
    shape = shape_of(model)
    dense = PruningPlan.dense(shape)
    for seed, quantity in itertools.product((0, 3), ("parameters", "macs")):
        floor = PruningPlan.dense(shape).floor(shape, kinds).count(shape, quantity)
        whole = dense.count(shape, quantity)
        limit = floor + (whole - floor) * (seed + 1) // 6
        budget = one_limit(quantity, limit, model)
        gates = Gates(model, kinds, seed=seed)
        with torch.no_grad():
            gates.log_alpha += 2.0 * torch.randn(
                gates.log_alpha.shape, generator=torch.Generator().manual_seed(seed)
            )
        decision = decide(gates, budget)
        count = decision.plan.count(shape, quantity)
        assert count <= limit
        if count >= 0.99 * limit:
            continue
        coarse = {"attention_block", "ffn_block"} & set(kinds) or set(kinds) <= {"head", "tap"}
        assert coarse, "channels and FFN units fill the room"
        opened = {
            name: [unit for unit, value in enumerate(part.tolist()) if value > 0]
            for name, part in gates.split(decision.values).items()
        }
        assert plan_with(gates, opened) == decision.plan
        for axis in gates.axes:
            for unit in set(range(axis.size)) - set(opened[axis.name]):
                more = {**opened, axis.name: sorted([*opened[axis.name], unit])}
                assert plan_with(gates, more).count(shape, quantity) > limit


def test_settled_gates_decide_by_themselves() -> None:
    model = teacher()
    gates = Gates(model, KINDS)
    with torch.no_grad():
        gates.log_alpha.fill_(12.0)
        gates.log_alpha[::2] = -12.0
    shape = gates.layout.shape
    opened = {
        axis.name: [unit for unit in range(axis.size) if (start + unit) % 2]
        for axis, start in zip(
            gates.axes, itertools.accumulate(gates.sizes, initial=0), strict=False
        )
    }
    wanted = plan_with(gates, opened)
    count = wanted.parameters(shape)
    decision = decide(gates, one_limit("parameters", count + 5, model))
    assert decision.plan == wanted
    assert decision.undecided == 0
    assert decision.shift == 0.0


def test_an_impossible_budget_names_the_smallest_possible() -> None:
    model = teacher()
    shape = shape_of(model)
    budget = budget_of(model, 0.05)
    with pytest.raises(BudgetError, match="smallest possible is") as caught:
        budget.check(PruningPlan.dense(shape), table_of(model), ("head",))
    named = int(str(caught.value).split("smallest possible is ")[1].split(" ")[0].replace(",", ""))
    plan = PruningPlan.dense(shape).floor(shape, ("head",))
    assert named == plan.parameters(shape)


def test_layers() -> None:
    assert default_layers(12) == (0, 4, 8, 12)
    assert default_layers(24) == (0, 8, 16, 24)
    assert check_layers((), 6) == (0, 2, 4, 6)
    with pytest.raises(ConfigError, match=r"\[7\]"):
        check_layers((0, 7), 6)


def test_the_noise_depends_on_seed_and_update_alone() -> None:
    gates = Gates(teacher(), KINDS)
    torch.rand(5)
    assert torch.equal(gates.noise(1, 10), gates.noise(1, 10))
    assert not torch.equal(gates.noise(1, 10), gates.noise(1, 11))
    assert not torch.equal(gates.noise(1, 10), gates.noise(2, 10))


class Measured:
    """A cost that is no count of anything in the table: so many milliseconds for a part, linear in widths."""

    name = "milliseconds"

    def total(self, widths: Widths) -> Any:
        return sum(
            0.25 + 0.5 * width
            for axis, width in widths.items()
            if axis.startswith(("conv", "head"))
        )


@pytest.mark.parametrize(("family", "size"), CASES)
def test_several_limits_hold_together(family: str, size: str) -> None:
    """Two counts and a measured cost: none exceeded, the tightest used, whichever it is."""
    model = teacher(family, size)
    plan, layout = plan_of(model), table_of(model)
    measured = Measured()
    whole = measured.total(plan.widths)
    tightest = set()
    for shares in ((0.4, 0.9, 0.9), (0.9, 0.4, 0.9), (0.9, 0.9, 0.5), (0.5, 0.5, 0.6)):
        counted = {
            name: int(share * plan.count(layout.shape, name))
            for name, share in zip(("parameters", "macs"), shares, strict=False)
        }
        limits = Budget.of(counted, plan, layout).limits
        budget = Budget((*limits, Limit(measured, shares[2] * whole, whole)))
        budget.check(plan, layout, KINDS)
        decided = under_gates(gated_task(model, budget=budget)).decide().plan
        left = [limit.unused(decided) for limit in budget.limits]
        assert min(left) >= 0.0
        coarse = left.index(min(left)) == 2  # a head is half a millisecond of few
        assert min(left) <= (0.1 if coarse else 0.01)
        tightest.add(left.index(min(left)))
    assert tightest == {0, 1, 2}


def test_several_limits_pull_together_in_training() -> None:
    """Each limit has its own target, multipliers and figures, and each one's gap reaches the gates."""
    model = teacher()
    plan, layout = plan_of(model), table_of(model)
    counts = {name: plan.count(layout.shape, name) for name in ("parameters", "macs")}
    limits = {"parameters": int(0.3 * counts["parameters"]), "macs": int(0.6 * counts["macs"])}
    both = under_gates(gated_task(model, budget=Budget.of(limits, plan, layout)))
    alone = [
        under_gates(gated_task(model, budget=Budget.of({name: limit}, plan, layout)))
        for name, limit in limits.items()
    ]
    for student in (both, *alone):
        with torch.no_grad():
            student.multipliers.fill_(0.7)
        student.begin_update(5)
        student.constraint()["loss"].backward()
    gradients = [student.gates.log_alpha.grad for student in (both, *alone)]
    assert torch.allclose(gradients[0], gradients[1] + gradients[2], atol=1e-6)
    assert torch.equal(both.multipliers.grad[:, :1], alone[0].multipliers.grad)
    assert torch.equal(both.multipliers.grad[:, 1:], alone[1].multipliers.grad)
    figures = both.constraint() | both.report()
    assert float(figures["sparsity.macs"]) == float(alone[1].constraint()["sparsity"])
    assert figures["target.macs"] == pytest.approx(0.4, abs=1e-3)
    assert figures["target"] == pytest.approx(0.7, abs=1e-3)
