"""The progress bar: update, loss, sparsity and time left, one bar per stage."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from sslim.errors import visible
from sslim.train.loop import Progress


class ProgressBar:
    """Draws on stderr; on anything that is not a terminal it prints a line every tenth of a stage."""

    def __init__(self, enabled: bool = True) -> None:
        self.console = Console(stderr=True)
        self.enabled = enabled
        self.bars = Bars(
            TextColumn("{task.description}", markup=False),  # names of models may hold brackets
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self.stages: dict[str, TaskID] = {}
        self.halves: dict[str, int] = {}

    def __enter__(self) -> ProgressBar:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def say(self, line: str) -> None:
        """One line above the bars."""
        if self.enabled:
            line = visible(line)  # names of files and what they hold are in it
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def work(self, what: str, done: int, total: int) -> None:
        """Progress of a piece of work that is no training."""
        if not self.enabled or total <= 0:
            return
        if not self.console.is_terminal:
            half = done * 2 // total
            if half != self.halves.get(what):
                self.halves[what] = half
                self.say(f"{what}: {done}/{total}")
            return
        if what not in self.stages:
            self.stages[what] = self.bars.add_task(what, total=total, figures="")
        self.bars.update(self.stages[what], completed=done, total=total)

    def __call__(self, progress: Progress) -> None:
        if not self.enabled:
            return
        figures = _in_words(progress.figures)
        if not self.console.is_terminal:
            tenth = max(1, progress.updates // 10)
            if progress.update % tenth == 0 or progress.update == progress.updates:
                left = f"{progress.seconds_left / 60:.1f} min left"
                place = f"{progress.stage} {progress.update}/{progress.updates}"
                self.say("  ".join(part for part in (place, figures, left) if part))
            return
        if progress.stage not in self.stages:
            self.stages[progress.stage] = self.bars.add_task(
                progress.stage, total=progress.updates, figures=""
            )
        self.bars.update(self.stages[progress.stage], completed=progress.update, figures=figures)


def _in_words(figures: Mapping[str, float]) -> str:
    """Loss and sparsity as far as they are known: before the first look at the device nothing is."""
    parts = []
    if "loss" in figures:
        parts.append(f"loss {figures['loss']:.4f}")
    if "sparsity" in figures and "target" in figures:
        parts.append(f"sparsity {figures['sparsity']:.3f} of {figures['target']:.3f}")
    return "  ".join(parts)
