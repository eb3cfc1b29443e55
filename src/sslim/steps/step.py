"""What a step of a run is, and how a list of them is run: from the last product that is there, to the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn

from sslim.backbone.loaded import LoadedModel
from sslim.config import RunConfig
from sslim.distill.cache import TargetCache
from sslim.distill.objectives import make_objectives, weights_of
from sslim.distill.student import Student
from sslim.distill.task import Task
from sslim.distill.teacher import Teacher
from sslim.errors import OutputError
from sslim.runs import checkpoint
from sslim.runs.facts import CheckpointFacts, DecisionFacts, RunRecord
from sslim.runs.folder import PRODUCTS
from sslim.steps.inputs import Inputs
from sslim.train.processes import Processes
from sslim.train.stage import Session


@dataclass(frozen=True)
class Run:
    """What all steps share: the inputs, checked, and the training room's session."""

    inputs: Inputs
    session: Session
    out: Path
    """Where the result goes."""
    record: RunRecord
    """What the run is, as its folder says."""
    began: float
    """When this program began, by `time.perf_counter`."""

    @property
    def teacher(self) -> LoadedModel:
        return self.inputs.teacher

    @property
    def config(self) -> RunConfig:
        return self.session.config

    def target_cache(self) -> TargetCache | None:
        """Where the teacher's states are kept, if the settings ask for it."""
        gib = self.config.target_cache_gib
        folder = self.session.folder / "targets"
        return TargetCache(folder, int(gib * 2**30), self.processes.count) if gib else None

    @property
    def processes(self) -> Processes:
        return self.session.processes

    def say(self, line: str) -> None:
        """A line for the person who watches."""
        self.session.progress.say(line)

    def objectives(self) -> nn.ModuleDict:
        """What the student is taught, as new."""
        return make_objectives(list(weights_of(self.config.objectives)), self.inputs.sizes)

    def task(self, product: Product, learning_rate: float, *, cached: bool = True) -> Task:
        """What trains a product on, or measures it, on the run's device."""
        task = Task(
            Teacher(
                self.teacher.model,
                normalises=self.teacher.normalise,
                cache=self.target_cache() if cached else None,
                head=self.teacher.head_alone(),
            ),
            product.student,
            product.objectives,
            weights=weights_of(self.config.objectives),
            learning_rate=learning_rate,
            seed=self.config.seed,
        )
        return task.to(self.processes.device)


@dataclass(frozen=True)
class Product:
    """What one step hands to the next: a student, what it learns by, and what was decided about it."""

    student: Student
    objectives: nn.ModuleDict
    decision: DecisionFacts | None = None
    """None before anything was decided."""

    def modules(self) -> nn.ModuleDict:
        """All that is learned, under the names of a saved state."""
        student = cast(nn.Module, self.student)
        return nn.ModuleDict({"student": student, "objectives": self.objectives})


@dataclass(frozen=True)
class Step:
    """One step of a run."""

    name: str
    make: Callable[[Run, Product | None], Product]
    """From the product before (None for the first step) to its own."""
    empty: Callable[[Run, CheckpointFacts], Product] | None = None
    """A product of the right structure to load a saved one into; None: the step keeps none here."""
    stage: str = ""
    """The name of its training in settings, log and checkpoints; empty where it trains nothing."""
    updates: int = 0
    """Of that training."""


def run_steps(run: Run, steps: Sequence[Step]) -> None:
    """Makes what is not made yet.

    Raises:
        OutputError: a saved product is damaged and nothing is left from before it.
        SslimError: whatever a step raises.
    """
    product, done = _last_product(run, steps)
    if run.processes.agree(float(done)) != done:
        raise OutputError(
            f"process {run.processes.rank} finds other products in {run.session.folder / PRODUCTS} than the "
            "main process",
            "give all processes one OUT on one shared disk, and run again with --resume",
        )
    for step in steps[done:]:
        run.session.state.begin(step.name, step.stage, step.updates)
        product = step.make(run, product)
        if step.empty is not None and run.processes.main:
            _save(run, step, product, sum(one.updates for one in steps[: steps.index(step) + 1]))
        run.processes.wait()


def _save(run: Run, step: Step, product: Product, updates: int) -> None:
    checkpoint.write(
        run.session.folder / PRODUCTS / step.name,
        product.modules().state_dict(),
        CheckpointFacts(
            update=updates,
            run=run.session.run,
            structure=product.student.structure(),
            decision=product.decision,
        ),
    )


def _last_product(run: Run, steps: Sequence[Step]) -> tuple[Product | None, int]:
    """The last product that can be read whole, and how many steps it stands for.

    One that is damaged gives way to the one before, as long as there is anything before it.
    """
    damaged: OutputError | None = None
    for done, step in reversed(list(enumerate(steps, 1))):
        folder = run.session.folder / PRODUCTS / step.name
        if step.empty is None or not folder.is_dir():
            continue
        try:
            state = checkpoint.read(folder)
        except OutputError as error:
            damaged = damaged or error
            run.say(f"warning: {error.problem}; looking for another way to go on")
            continue
        if state.facts.run == run.session.run:
            product = step.empty(run, state.facts)
            product.modules().load_state_dict(state.tensors)
            return product, done
    states = run.session.folder / "checkpoints"
    if damaged and not any(checkpoint.found(states / step.stage) for step in steps[:1]):
        raise OutputError(
            f"{damaged.problem}, and nothing is left from before it",
            "begin anew with --force instead of --resume",
        )
    return None, 0
