"""Stage 1: the student, under gates, learns the teacher while units close (DPHuBERT, section 2.2)."""

from __future__ import annotations

import copy

from sslim.config import RunConfig
from sslim.distill.task import CLIPS_TO_PREPARE
from sslim.prune.student import GatedStudent
from sslim.runs.audio import clips_to_measure
from sslim.runs.facts import CheckpointFacts
from sslim.steps.step import Product, Run, Step
from sslim.train.stage import run_stage


def joint(config: RunConfig) -> Step:
    """Joint distillation and pruning."""
    return Step("joint", _train, _empty, stage="stage1", updates=config.stage1.updates)


def _train(run: Run, before: Product | None) -> Product:
    product, stage = _fresh(run), run.config.stage1
    task = run.task(product, stage.learning_rate)
    audio = run.inputs.audio.training
    task.prepare(clips_to_measure(run.config, audio, CLIPS_TO_PREPARE, run.say))
    run_stage(
        run.session,
        "stage1",
        task,
        updates=stage.updates,
        warmup_fraction=stage.warmup_fraction,
        first=0,
    )
    return product


def _fresh(run: Run) -> Product:
    """The teacher's copy under gates that are all nearly open."""
    stage = run.config.stage1
    student = GatedStudent(
        copy.deepcopy(run.teacher.model),
        run.inputs.budget,
        run.config.units,
        normalises=run.teacher.normalise,
        gate_learning_rate=stage.gate_learning_rate,
        sparsity_warmup=round(stage.sparsity_warmup_fraction * stage.updates),
        seed=run.config.seed,
        shrink_every=max(1, stage.updates // stage.shrink_chances) if stage.shrink_chances else 0,
        shrink_multiple=stage.shrink_multiple,
    )
    return Product(student, run.objectives())


def _empty(run: Run, facts: CheckpointFacts) -> Product:
    product = _fresh(run)
    product.student.restructure(facts.structure)
    return product
