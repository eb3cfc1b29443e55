"""What a person sees while something works: bars and lines on stderr."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sslim.errors import visible


class ProgressBar:
    """Draws on stderr, a bar per piece of work; on anything that is not a terminal it prints lines."""

    def __init__(self, enabled: bool = True) -> None:
        self.console = Console(stderr=True)
        self.enabled = enabled
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),  # names of models may hold brackets
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self._tasks: dict[str, TaskID] = {}
        self._halves: dict[str, int] = {}

    def __enter__(self) -> Self:
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

    def work(self, name: str, done: int, total: int) -> None:
        """How far a piece of work is; without a terminal, a line for each half of it."""
        if not self.enabled or total <= 0:
            return
        if self.console.is_terminal:
            self.draw(name, done, total)
            return
        half = done * 2 // total
        if half != self._halves.get(name):
            self._halves[name] = half
            self.say(f"{name}: {done}/{total}")

    def draw(self, name: str, done: int, total: int, figures: str = "") -> None:
        """Moves the bar `name`, which appears when it is first moved; `figures` stand beside it."""
        if name not in self._tasks:
            self._tasks[name] = self.bars.add_task(name, total=total, figures="")
        self.bars.update(self._tasks[name], completed=done, total=total, figures=figures)
