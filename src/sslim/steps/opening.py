"""The folder of a run: a new one begun, or one that is there gone on with; and how the run ends, noted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from sslim.config import to_flat_dict
from sslim.device import choose_precision
from sslim.runs import folder, record
from sslim.runs.beginning import begin, go_on
from sslim.runs.facts import RunRecord
from sslim.runs.folder import RUN_FOLDER
from sslim.runs.state import RunState
from sslim.steps.inputs import Inputs, Request, Say
from sslim.steps.step import Run, Step
from sslim.train.processes import Processes
from sslim.train.progress import StageBar
from sslim.train.stage import Session
from sslim.train.tracking import Trackers


@dataclass(frozen=True)
class Before:
    """What was in the output folder, before anything is written there."""

    record: RunRecord | None
    """Of the run that is resumed; None for a new one."""
    finished: bool
    """Whether that run has written its result."""
    mended: dict[str, Any]
    """Its settings that were changed to get past a failure: name -> (before, now)."""
    locked: bool
    """Whether the folder was there, and is held by this program."""


def look(request: Request, processes: Processes, held: ExitStack) -> Before:
    """Refuses what may not be written or resumed; nothing is changed yet.

    Args:
        request: what the user asked for.
        processes: this one among its peers.
        held: what keeps other programs out, from here on where the folder is there.

    Raises:
        OutputError: the folder holds what must not be lost, or nothing to resume.
        ConfigError: the run that is resumed had other settings.
    """
    out = request.out
    choice = request.audio
    folder.keep_inputs_apart(out, request.teacher, choice.audio, choice.mix)
    locked = False
    if processes.main:
        folder.check_writable(out, resume=request.resume, force=request.force)
        locked = (out / RUN_FOLDER).is_dir()
        if locked:
            folder.hold(out, held)
    if not request.resume:
        return Before(None, False, {}, locked)
    before = record.read_record(out / RUN_FOLDER)
    mended = record.compare_settings(out, before, request.config)
    record.compare_where(out, before, choice.where)
    record.compare_mix(out, before, choice.mix)
    finished = processes.agree(float(folder.is_finished(out, before))) > 0
    return Before(before, finished, mended, locked)


def claim(
    request: Request,
    inputs: Inputs,
    before: Before,
    processes: Processes,
    held: ExitStack,
    say: Say,
) -> None:
    """Makes the folder this run's, or makes sure that it is, by the main process; the others wait.

    Raises:
        OutputError: it cannot be written.
        ConfigError: the run that is there was made from something else.
    """
    if processes.main:
        if before.record is not None:
            go_on(
                request.out, before.record, inputs.record, request.config, before.mended,
                shards=inputs.audio.training.divided_by_process, say=say,
            )  # fmt: skip
        else:
            begin(
                request.out, inputs.record, inputs.audio, held,
                locked=before.locked, force=request.force, say=say,
            )  # fmt: skip
    processes.wait()


def open_run(
    request: Request,
    inputs: Inputs,
    before: Before,
    steps: Sequence[Step],
    processes: Processes,
    bar: StageBar,
    began: float,
) -> Run:
    """What lives in the run's folder, now that it is there."""
    path, config = request.out / RUN_FOLDER, inputs.config
    now = record.read_record(path)
    stages = {step.stage: step.updates for step in steps if step.stage}
    state = RunState(path, stages, writes=processes.main, resumed=request.resume)
    if before.mended:
        state.forget_pace()
    session = Session(
        config=config,
        audio=inputs.audio.training,
        folder=path,
        processes=processes,
        precision=choose_precision(config.precision, processes.device),
        progress=bar,
        state=state,
        trackers=Trackers(config.trackers if processes.main else (), path, to_flat_dict(config)),
        mended=bool(before.mended),
        run=now.id,
    )
    return Run(inputs, session, request.out, now, began)


@contextmanager
def noted(run: Run, request: Request) -> Iterator[None]:
    """Keeps `state.json` true about how the run ends, and says how to go on."""
    state = run.session.state
    state.set(status="running", recipe=request.recipe)
    advice = f"Run the same command with --resume{' instead of --force' if request.force else ''}"
    try:
        with run.session.trackers:
            yield
    except KeyboardInterrupt as error:
        state.set(status="interrupted")
        error.add_note(advice)
        raise
    except Exception as error:
        state.set(status="failed", reason=str(error), error=type(error).__name__)
        error.add_note(advice)
        raise
    state.set(status="finished", seconds_left=0.0)
