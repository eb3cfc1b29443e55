"""The one loop: it runs any task that returns `{"loss": ..., parts}` for a batch of waveforms.

It decides when to log, to look whether all is well, to save and to stop; what an update is lies in `step.py`.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from sslim.errors import TrainingError
from sslim.train import checkpoint
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
    start: Path | None = None,
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
        start: checkpoint to go on from.
        on_progress: called after every update.
        on_warning: called with sentences a user should read.

    Raises:
        TrainingError: a loss or gradient is not finite, or the memory is too small; the weights are those
            before that update.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the update was finished and saved first.
    """
    if start is not None:
        task.restructure(checkpoint.load(start)[1]["structure"])
    step = Step(
        task,
        processes,
        precision=settings.precision,
        clip_norm=settings.clip_norm,
        seed=settings.seed,
        on_warning=on_warning,
    )
    if start is not None:
        _restore(step, start)
    warmup = round(settings.warmup_fraction * settings.updates)
    checkpoints = folder / "checkpoints" / settings.stage
    log = folder / "metrics.jsonl"
    if processes.main:
        _trim_log(log, settings.stage, start)
    figures: dict[str, float] = {}
    recent: deque[tuple[int, Sequence[WaveformBatch]]] = deque(maxlen=settings.check_every)
    began, done = time.perf_counter(), 0
    with GracefulStop() as stop:
        for update, batches in updates:
            if update >= settings.updates:
                break
            share = learning_rate_share(update, settings.updates, warmup)
            recent.append((update, batches))
            measured = step(update, share, [batch.waveforms for batch in batches])
            task.after_update(update, step.optimiser)
            done += 1
            number = update + 1
            last = number == settings.updates
            to_log = last or number % settings.log_every == 0
            to_save = last or number % settings.checkpoint_every == 0
            stopping = False
            if to_log or to_save or number % settings.check_every == 0:
                figures = {name: float(value) for name, value in measured.items()}
                figures |= {"learning_rate_share": share, **task.report()}
                _check(step, settings, checkpoints, recent, figures)
                stopping = _any_stopped(stop, processes)
            if to_log and processes.main:
                line = {"stage": settings.stage, "update": number, **figures}
                with log.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
            if on_progress is not None:
                pace = (time.perf_counter() - began) / done
                on_progress(
                    Progress(settings.stage, number, settings.updates, figures, pace, to_log)
                )
            if to_save or stopping:
                _save(step, settings, checkpoints, number)
            if stopping:
                raise KeyboardInterrupt
    return figures


def _any_stopped(stop: GracefulStop, processes: Processes) -> bool:
    """Whether any process was asked to stop: they stop at the same update or wait for each other forever."""
    if processes.count == 1:
        return stop.asked
    asked = torch.tensor(float(stop.asked), device=processes.device)
    processes.add_up([asked])
    return bool(asked > 0)


def _check(
    step: Step,
    settings: LoopSettings,
    folder: Path,
    recent: Iterable[tuple[int, Sequence[WaveformBatch]]],
    figures: dict[str, float],
) -> None:
    """Stops where an update since the last look was not finite; the weights are those before it.

    Raises:
        TrainingError: names the update and what was heard in it.
    """
    failed = int(step.failed)
    if failed < 0:
        return
    _save(step, settings, folder, failed)
    heard = [batches for update, batches in recent if update == failed]
    names = [name for batches in heard for batch in batches for name in batch.identities]
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    now = {name: value for name, value in figures.items() if not math.isfinite(value)}
    raise TrainingError(
        f"{settings.stage}, update {failed + 1}: the loss or its gradient is not finite on {listed} "
        f"({now or 'finite again since'}); the state before this update is saved in {folder}",
        "look at these files, or lower the learning rate, then run again with --resume",
    )


def _save(step: Step, settings: LoopSettings, folder: Path, update: int) -> None:
    if step.processes.main:
        tensors = {f"task.{name}": value for name, value in step.task.state_dict().items()}
        tensors |= checkpoint.optimiser_tensors(step.optimiser)
        facts: dict[str, Any] = {
            "stage": settings.stage,
            "structure": step.task.structure(),
            # All random numbers follow from the seed and the update: there is no state to keep.
            "seed": settings.seed,
        }
        checkpoint.save(folder, update, tensors, facts, settings.keep_checkpoints)
    step.processes.wait()


def _restore(step: Step, start: Path) -> None:
    tensors, _ = checkpoint.load(start)
    saved = {
        name.removeprefix("task."): value
        for name, value in tensors.items()
        if name.startswith("task.")
    }
    step.task.load_state_dict(saved)
    checkpoint.restore_optimiser(step.optimiser, tensors)


def _trim_log(log: Path, stage: str, start: Path | None) -> None:
    """Drops what a killed run logged after the state it goes on from, half a line included."""
    if not log.is_file():
        return
    done = 0 if start is None else int(checkpoint.load(start)[1]["update"])
    kept = []
    for text in log.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["stage"] != stage or line["update"] <= done:
            kept.append(text + "\n")
    aside = log.with_name(".metrics.partial")
    aside.write_text("".join(kept), encoding="utf-8")
    aside.replace(log)
