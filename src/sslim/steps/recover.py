"""Stage 2: the small model is distilled again (DPHuBERT, section 2.3)."""

from __future__ import annotations

from sslim.config import RunConfig
from sslim.steps.decide import small_model
from sslim.steps.step import Product, Run, Step
from sslim.train.stage import run_stage


def recover(config: RunConfig) -> Step:
    """Further distillation; nothing is pruned any more."""
    return Step("recover", _train, small_model, stage="stage2", updates=config.stage2.updates)


def _train(run: Run, before: Product | None) -> Product:
    assert before is not None
    stage = run.config.stage2
    if stage.updates:
        run_stage(
            run.session,
            "stage2",
            run.task(before, stage.learning_rate),
            updates=stage.updates,
            warmup_fraction=stage.warmup_fraction,
            first=run.config.stage1.updates,
        )
    return before
