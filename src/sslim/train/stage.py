"""One stage of a run: audio into the loop, from wherever the stage was left.

What every stage of every run needs is here once: the joint stage, the recovery stage and the demo's
distillation-only student differ in their tasks alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sslim.audio.batching import UpdateStream
from sslim.audio.manifest import Skipped
from sslim.audio.source import Source, StreamSettings
from sslim.config import RunConfig, to_flat_dict
from sslim.device import keep_freed_memory, looks_every
from sslim.errors import OutputError, TrainingError
from sslim.runs import checkpoint
from sslim.runs.facts import CheckpointFacts
from sslim.runs.state import RunState
from sslim.train.loop import LoopSettings, Progress, train
from sslim.train.memory import seconds_that_fit
from sslim.train.processes import Processes
from sslim.train.progress import StageBar
from sslim.train.step import TrainableTask
from sslim.train.tracking import Trackers


@dataclass(frozen=True)
class Session:
    """What the stages of a run share."""

    config: RunConfig
    audio: Source
    folder: Path
    """Log, state and checkpoints."""
    processes: Processes
    precision: torch.dtype
    progress: StageBar
    state: RunState
    trackers: Trackers
    mended: bool = False
    """Whether settings were changed after a failure, so that nothing measured before holds."""
    run: str = ""
    """The run's id: only its own states are gone on from."""
    waited: dict[str, float] = field(default_factory=dict)
    """Stage -> seconds that training stood still for want of audio."""


def run_stage(
    session: Session,
    stage: str,
    task: TrainableTask,
    *,
    updates: int,
    warmup_fraction: float,
    first: int,
) -> None:
    """Trains `task` through one stage.

    Args:
        session: what the stages share.
        stage: its name in logs and checkpoints.
        task: already on the device.
        updates: its length.
        warmup_fraction: share of the updates over which the learning rate rises.
        first: its first update in the run's one sequence of updates.

    Raises:
        OutputError: states were saved, and none of them is whole.
        TrainingError, AudioError, KeyboardInterrupt: as `train` and `UpdateStream`.
    """
    config, processes = session.config, session.processes
    if processes.device.type == "cpu":
        keep_freed_memory()
    states = session.folder / "checkpoints" / stage
    start = checkpoint.newest(states, session.run, session.progress.say)
    done = start.update if start else 0
    if processes.agree(float(done)) != done:
        raise OutputError(
            f"process {processes.rank} finds another state in {states} than the main process",
            "give all processes one OUT on one shared disk, and run again with --resume",
        )
    batch_seconds = _batch_seconds(session, task, start)
    settings = LoopSettings(
        stage=stage,
        updates=updates,
        warmup_fraction=warmup_fraction,
        clip_norm=config.clip_norm,
        precision=session.precision,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        keep_checkpoints=config.keep_checkpoints,
        seed=config.seed + first,
        check_every=config.check_every or looks_every(processes.device, config.log_every),
        facts=CheckpointFacts(run=session.run, seconds_per_batch=batch_seconds),
        remedy=_remedy(config, stage),
    )
    with _open(session, batch_seconds, first + done, first + updates) as stream:

        def on_progress(progress: Progress) -> None:
            trained = progress.seconds_per_update * (progress.update - done)
            share = min(1.0, stream.seconds_waited / max(trained, 1e-9))
            session.waited[stage] = stream.seconds_waited
            session.state.progress(stage, progress.update, progress.seconds_per_update, share)
            if progress.logged:
                figures = {f"{stage}/{name}": value for name, value in progress.figures.items()}
                figures[f"{stage}/seconds_per_update"] = progress.seconds_per_update
                figures[f"{stage}/waiting_share"] = share
                session.trackers.log(figures, first + progress.update)
            session.progress(progress)

        try:
            train(
                task,
                ((update - first, audio) for update, audio in stream),
                settings,
                session.folder,
                processes,
                start=start,
                on_progress=on_progress if processes.main else None,
                on_warning=session.progress.say,
            )
            if len(stream.seconds_heard) > 1:
                heard = ", ".join(f"{seconds:.1f} s" for seconds in stream.seconds_heard)
                session.progress.say(f"{stage}: heard {heard} of the sources, in their order")
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"a process that decodes audio was killed ({str(error).splitlines()[0]})",
                "--resume goes on from the last checkpoint; if memory was short, --set workers=0 "
                "decodes in the training process",
            ) from error


def _remedy(config: RunConfig, stage: str) -> str:
    """What to do where a loss is not finite."""
    name = f"{stage}.learning_rate"
    rate = to_flat_dict(config).get(name)
    lower = f"--set {name}={rate / 2:g}" if rate else "a lower learning rate"
    return (
        f"run the same command with --resume and {lower}, or take these files out of the audio and begin "
        "anew with --force"
    )


def _open(session: Session, batch_seconds: float, first: int, last: int) -> UpdateStream:
    """The audio of the updates from `first` to `last`, for this process."""
    config, processes = session.config, session.processes
    settings = StreamSettings(
        seconds_per_update=config.seconds_per_update,
        seconds_per_batch=batch_seconds,
        max_seconds=config.audio.max_seconds,
        seed=config.seed,
        rank=processes.rank,
        processes=processes.count,
        fixed_crops=config.target_cache_gib > 0,
    )
    return UpdateStream(
        session.audio.datasets(settings, first, last),
        workers=config.workers,
        pin_memory=processes.device.type == "cuda",
        on_lost=_report_once(session),
    )


def _batch_seconds(session: Session, task: TrainableTask, start: checkpoint.State | None) -> float:
    """Seconds of audio that pass through the models of one process at once.

    Measured where the settings leave it open, once: a resumed run goes on with the same batches, whatever
    memory is free by then.
    """
    config = session.config
    if config.seconds_per_batch:
        return config.seconds_per_batch
    # The state that is gone on from knows best; `state.json` knows it from the stage before.
    told = start.facts.seconds_per_batch if start else None
    known = told if told and not session.mended else session.state.facts.seconds_per_batch
    known = session.processes.agree(float(known or 0.0))
    if not known:
        longest = session.audio.longest(config.audio.max_seconds)
        known = seconds_that_fit(task, session.processes, session.precision, longest)
        session.state.set(seconds_per_batch=known)
        shown = min(known, config.seconds_per_update / session.processes.count)
        session.progress.say(
            f"{shown:.0f} s of audio at once, {config.seconds_per_update:g} s per update"
        )
    return known


def _report_once(session: Session) -> Callable[[Skipped], None]:
    lost: set[str] = set()

    def report(item: Skipped) -> None:
        if item.path not in lost:
            lost.add(item.path)
            session.progress.say(f"warning: skipped {item.path}: {item.reason}")

    return report
