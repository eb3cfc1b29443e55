"""The progress bar of training: update, loss, sparsity and time left, one bar per stage."""

from __future__ import annotations

from collections.abc import Mapping

from sslim.progress import ProgressBar
from sslim.train.loop import Progress


class StageBar(ProgressBar):
    """What the loop reports to; without a terminal it prints a line every tenth of a stage."""

    def __call__(self, progress: Progress) -> None:
        if not self.enabled:
            return
        figures = _in_words(progress.figures)
        if self.console.is_terminal:
            self.draw(progress.stage, progress.update, progress.updates, figures)
            return
        tenth = max(1, progress.updates // 10)
        if progress.update % tenth == 0 or progress.update == progress.updates:
            left = f"{progress.seconds_left / 60:.1f} min left"
            place = f"{progress.stage} {progress.update}/{progress.updates}"
            self.say("  ".join(part for part in (place, figures, left) if part))


def _in_words(figures: Mapping[str, float]) -> str:
    """Loss and sparsity as far as they are known: before the first look at the device nothing is."""
    parts = []
    if "loss" in figures:
        parts.append(f"loss {figures['loss']:.4f}")
    if "sparsity" in figures and "target" in figures:
        parts.append(f"sparsity {figures['sparsity']:.3f} of {figures['target']:.3f}")
    return "  ".join(parts)
