"""The one loop: it runs any task that returns `{"loss": ..., parts}` for a batch of waveforms.

An update is a list of batches; each batch's loss counts by its share of the update's audio, so how an
update is cut into batches does not change what is learned.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from sslim.errors import TrainingError
from sslim.train import checkpoint
from sslim.train.interrupts import GracefulStop


class TrainableTask(Protocol):
    """What the loop needs of a task (a torch module)."""

    def __call__(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]: ...
    def parameter_groups(self) -> list[dict[str, Any]]: ...
    def begin_update(self, update: int) -> None: ...
    def constraint(self) -> dict[str, torch.Tensor]: ...
    def report(self) -> dict[str, float]: ...
    def after_update(self, update: int, optimiser: torch.optim.Optimizer) -> bool: ...
    def structure(self) -> dict[str, Any]: ...
    def restructure(self, structure: Mapping[str, Any]) -> None: ...
    def state_dict(self) -> dict[str, torch.Tensor]: ...
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> Any: ...


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
    device: torch.device
    precision: torch.dtype
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int


@dataclass(frozen=True)
class Progress:
    """What the loop tells a progress bar."""

    stage: str
    update: int
    updates: int
    figures: dict[str, float]
    seconds_left: float


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
    *,
    start: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, float]:
    """Trains `task` to `settings.updates` and returns the last logged figures.

    Args:
        task: owns models and losses.
        updates: (update index, batches), from the update that comes next.
        settings: see LoopSettings.
        folder: `metrics.jsonl` and `checkpoints/STAGE` are written here.
        start: checkpoint to go on from.
        on_progress: called after every update.

    Raises:
        TrainingError: a loss or gradient is not finite; the weights are those before that update.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the update was finished and saved first.
    """
    if start is not None:
        task.restructure(checkpoint.load(start)[1]["structure"])
    groups = task.parameter_groups()
    peaks = [group["lr"] for group in groups]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    parameters = [parameter for group in groups for parameter in group["params"]]
    warmup = round(settings.warmup_fraction * settings.updates)
    checkpoints = folder / "checkpoints" / settings.stage
    if start is not None:
        _restore(task, optimiser, start)
    _trim_log(folder / "metrics.jsonl", settings.stage, start)
    figures: dict[str, float] = {}
    began, done = time.perf_counter(), 0
    autocast = settings.precision != torch.float32
    with GracefulStop() as stop, (folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        for update, batches in updates:
            if update >= settings.updates:
                break
            share = learning_rate_share(update, settings.updates, warmup)
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            task.begin_update(update)
            optimiser.zero_grad(set_to_none=True)
            samples = sum(batch.waveforms.numel() for batch in batches)
            sums: dict[str, torch.Tensor] = {}
            for batch in batches:
                waveforms = batch.waveforms.to(settings.device, non_blocking=True)
                with torch.autocast(settings.device.type, settings.precision, enabled=autocast):
                    parts = task(waveforms)
                weight = batch.waveforms.numel() / samples
                (parts["loss"] * weight).backward()
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() * weight
            constraint = task.constraint()
            if constraint:
                constraint["loss"].backward()
                sums |= {name: value for name, value in constraint.items() if name != "loss"}
                sums["constraint"] = constraint["loss"].detach()
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            if not math.isfinite(float(norm) + float(sums["loss"])):
                _stop(task, optimiser, settings, checkpoints, update, batches, sums, norm)
            optimiser.step()
            done += 1
            if task.after_update(update, optimiser):
                parameters = [
                    weight for group in optimiser.param_groups for weight in group["params"]
                ]
            last = update + 1 == settings.updates
            if last or (update + 1) % settings.log_every == 0 or on_progress:
                figures = _figures(sums, norm, share) | task.report()
            if last or (update + 1) % settings.log_every == 0:
                seconds = sum(len(batch.waveforms) * batch.waveforms.shape[1] for batch in batches)
                line = {
                    "stage": settings.stage,
                    "update": update + 1,
                    "samples": seconds,
                    **figures,
                }
                metrics.write(json.dumps(line) + "\n")
                metrics.flush()
            if on_progress is not None:
                left = (time.perf_counter() - began) / done * (settings.updates - update - 1)
                on_progress(Progress(settings.stage, update + 1, settings.updates, figures, left))
            if last or stop.asked or (update + 1) % settings.checkpoint_every == 0:
                _save(task, optimiser, settings, checkpoints, update + 1)
            if stop.asked:
                raise KeyboardInterrupt
    return figures


def _figures(sums: dict[str, torch.Tensor], norm: torch.Tensor, share: float) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, value in sums.items():
        if value.dim() == 0:
            figures[name] = float(value)
    return {**figures, "gradient_norm": float(norm), "learning_rate_share": share}


def _save(
    task: TrainableTask,
    optimiser: torch.optim.Optimizer,
    settings: LoopSettings,
    folder: Path,
    update: int,
) -> None:
    tensors = {f"task.{name}": value for name, value in task.state_dict().items()}
    tensors |= checkpoint.optimiser_tensors(optimiser)
    tensors["random.cpu"] = torch.get_rng_state()
    if settings.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(settings.device)
    facts = {"stage": settings.stage, "structure": task.structure()}
    checkpoint.save(folder, update, tensors, facts, settings.keep_checkpoints)


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


def _restore(task: TrainableTask, optimiser: torch.optim.Optimizer, start: Path) -> None:
    tensors, _ = checkpoint.load(start)
    saved = {
        name.removeprefix("task."): value
        for name, value in tensors.items()
        if name.startswith("task.")
    }
    task.load_state_dict(saved)
    checkpoint.restore_optimiser(optimiser, tensors)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


def _stop(
    task: TrainableTask,
    optimiser: torch.optim.Optimizer,
    settings: LoopSettings,
    folder: Path,
    update: int,
    batches: Sequence[WaveformBatch],
    sums: dict[str, torch.Tensor],
    norm: torch.Tensor,
) -> None:
    """Keeps the last good state and names what happened."""
    _save(task, optimiser, settings, folder, update)
    names = [identity for batch in batches for identity in batch.identities]
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    raise TrainingError(
        f"{settings.stage}, update {update + 1}: the loss is {float(sums['loss'])} and the gradient "
        f"norm {float(norm)} on {listed}; the state before this update is saved in {folder}",
        "look at these files, or lower the learning rate, then run again with --resume",
    )
