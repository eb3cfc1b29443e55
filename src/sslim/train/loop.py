"""The one loop: it runs any task that returns `{"loss": ..., parts}` for a batch of waveforms.

It decides when to log, to look whether all is well, to save and to stop; what an update is lies in `step.py`.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from sslim.errors import TrainingError
from sslim.files import write_text
from sslim.runs import checkpoint
from sslim.runs.facts import CheckpointFacts
from sslim.train.interrupts import GracefulStop
from sslim.train.processes import Processes
from sslim.train.step import Step, TrainableTask


class WaveformBatch(Protocol):
    """One batch as the audio room makes it."""

    @property
    def waveforms(self) -> torch.Tensor: ...
    @property
    def identities(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class LoopSettings:
    """How long, how fast, and what to write down."""

    stage: str
    updates: int
    warmup_fraction: float
    clip_norm: float
    precision: torch.dtype
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    seed: int = 0
    check_every: int = 1
    """Updates between two looks at the device's figures. Each look waits for a GPU to catch up; a CPU has
    nothing to catch up with."""
    facts: CheckpointFacts = field(default_factory=CheckpointFacts)
    """What else every saved state says: the run's id, and what only a resume needs to know."""
    remedy: str = "run again with --resume and a lower learning rate"
    """What to do where a loss is not finite."""


@dataclass(frozen=True)
class Progress:
    """What the loop tells a progress bar."""

    stage: str
    update: int
    updates: int
    figures: dict[str, float]
    """The latest that were looked at; empty before the first look."""
    seconds_per_update: float
    logged: bool
    """Whether `figures` were written to the log at this update."""

    @property
    def seconds_left(self) -> float:
        """Of this stage, at the pace so far."""
        return self.seconds_per_update * (self.updates - self.update)


def learning_rate_share(update: int, updates: int, warmup: int) -> float:
    """Linear warm-up, then linear decay to zero, as a share of the peak (DPHuBERT, section 3.1)."""
    step = update + 1
    if step <= warmup:
        return step / warmup
    if step >= updates:
        # The reference's last step has rate zero; a one-update run must still learn something.
        return 0.0 if updates > 1 else 1.0
    return (updates - step) / (updates - warmup)


def train(
    task: TrainableTask,
    updates: Iterable[tuple[int, Sequence[WaveformBatch]]],
    settings: LoopSettings,
    folder: Path,
    processes: Processes,
    *,
    start: checkpoint.State | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Trains `task` to `settings.updates` and returns the last logged figures.

    Args:
        task: owns models and losses.
        updates: (update index, this process's batches), from the update that comes next.
        settings: see LoopSettings.
        folder: `metrics.jsonl` and `checkpoints/STAGE` are written here, by the main process.
        processes: this one among its peers.
        start: the saved state to go on from.
        on_progress: called after every update.
        on_warning: called with sentences a user should read.

    Raises:
        TrainingError: a loss or gradient is not finite, or the memory is too small; the weights are those
            before that update.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the update was finished and saved first.
    """
    if start is not None:
        task.restructure(start.facts.structure)
    step = Step(
        task,
        processes,
        precision=settings.precision,
        clip_norm=settings.clip_norm,
        seed=settings.seed,
        on_warning=on_warning,
    )
    made = 0
    if start is not None:
        _restore(step, start)
        made = start.update
        start.tensors.clear()  # they are in the task now, and would be held beside it all along
    save = _Saver(step, settings, folder / "checkpoints" / settings.stage, made)
    warmup = round(settings.warmup_fraction * settings.updates)
    log = folder / "metrics.jsonl"
    if processes.main:
        _trim_log(log, settings.stage, made)
    figures: dict[str, float] = {}
    recent: deque[tuple[int, list[str]]] = deque(maxlen=settings.check_every)
    began, done = time.perf_counter(), 0
    with GracefulStop() as stop:
        for update, batches in stop.between(updates, alone=processes.count == 1):
            if update >= settings.updates:
                break
            share = learning_rate_share(update, settings.updates, warmup)
            recent.append((update, [name for batch in batches for name in batch.identities]))
            measured = step(update, share, [batch.waveforms for batch in batches])
            task.after_update(update, step.optimiser)
            done += 1
            made = update + 1
            last = made == settings.updates
            to_log = last or made % settings.log_every == 0
            to_save = last or made % settings.checkpoint_every == 0
            stopping = False
            if to_log or to_save or made % settings.check_every == 0:
                figures = {name: float(value) for name, value in measured.items()}
                figures |= {"learning_rate_share": share, **task.report()}
                _check(step, settings, save, recent, figures)
                stopping = _any_stopped(stop, processes)
            if to_log and processes.main:
                line = {"stage": settings.stage, "update": made, **figures}
                with log.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
            if on_progress is not None:
                pace = (time.perf_counter() - began) / done
                on_progress(Progress(settings.stage, made, settings.updates, figures, pace, to_log))
            if to_save or stopping:
                save(made)
            if stopping:
                raise KeyboardInterrupt
        if made < settings.updates and stop.asked:
            _check(step, settings, save, recent, figures)
            save(made)
            raise KeyboardInterrupt
    return figures


def _any_stopped(stop: GracefulStop, processes: Processes) -> bool:
    """Whether any process was asked to stop: they stop at the same update or wait for each other forever."""
    if processes.count == 1:
        return stop.asked
    asked = torch.tensor(float(stop.asked), device=processes.device)
    processes.add_up([asked])
    return bool(asked > 0)


class _Saver:
    """Saves the state after an update, unless that is the one that was saved last (or gone on from)."""

    def __init__(self, step: Step, settings: LoopSettings, folder: Path, saved: int) -> None:
        self.step = step
        self.settings = settings
        self.folder = folder
        self.saved = saved

    def __call__(self, made: int) -> None:
        """Saves the state after `made` updates, by the main process; the others wait for it."""
        step, settings = self.step, self.settings
        if made == self.saved and made > 0:
            return
        if step.processes.main:
            tensors = {f"task.{name}": value for name, value in step.task.state_dict().items()}
            tensors |= checkpoint.optimiser_tensors(step.optimiser)
            facts = replace(
                settings.facts,
                update=made,
                stage=settings.stage,
                structure=step.task.structure(),
                # All random numbers follow from the seed and the update: there is no state to keep.
                seed=settings.seed,
            )
            checkpoint.save(self.folder, tensors, facts, settings.keep_checkpoints)
            # Only now is there something else to go back to than the stages before this one.
            for stage in self.folder.parent.iterdir():
                if stage != self.folder:
                    shutil.rmtree(stage, ignore_errors=True)
        self.saved = made
        step.processes.wait()


def _check(
    step: Step,
    settings: LoopSettings,
    save: _Saver,
    recent: Iterable[tuple[int, list[str]]],
    figures: dict[str, float],
) -> None:
    """Stops where an update since the last look was not finite; the weights are those before it.

    Raises:
        TrainingError: names the update and what was heard in it.
    """
    failed = int(step.failed)
    if failed < 0:
        return
    save(failed)
    names = [name for update, heard in recent if update == failed for name in heard]
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    now = {name: value for name, value in figures.items() if not math.isfinite(value)}
    raise TrainingError(
        f"{settings.stage}, update {failed + 1}: the loss or its gradient is not finite on {listed} "
        f"({now or 'finite again since'}); the state before this update is saved in {save.folder}",
        settings.remedy,
    )


def _restore(step: Step, start: checkpoint.State) -> None:
    saved = {
        name.removeprefix("task."): value
        for name, value in start.tensors.items()
        if name.startswith("task.")
    }
    step.task.load_state_dict(saved)
    checkpoint.restore_optimiser(step.optimiser, start.tensors)


def _trim_log(log: Path, stage: str, made: int) -> None:
    """Drops what a killed run logged after the state it goes on from, half a line included."""
    if not log.is_file():
        return
    kept = []
    for text in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            before = int(line["update"]) <= made or line["stage"] != stage
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if before:
            kept.append(text + "\n")
    write_text(log, "".join(kept))
