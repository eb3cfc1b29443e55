"""What runs there are under a folder, and where each one stands."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil

from sslim.backbone.contents import CONFIG, RECORD
from sslim.errors import OutputError
from sslim.records import Record
from sslim.runs.facts import StateFacts
from sslim.runs.folder import RUN_FOLDER
from sslim.runs.state import read_state


@dataclass(frozen=True)
class RunStatus(Record):
    """One run, as `sslim runs` shows it."""

    KIND: ClassVar[str] = "run-status"

    folder: str
    state: str
    """`finished`, `running`, `starting`, `interrupted`, `failed`, or `stopped`: its process is gone."""
    step: str
    """Of the run's list: `joint`, `decide`, `recover`, `save`."""
    stage: str
    """The training that the step is, or the last one before it, as in the settings."""
    update: int
    updates: int
    seconds_left: float | None
    """Of the whole run, at its present pace; None where it does not run."""
    waiting_share: float | None
    """Share of the stage's time that went into waiting for audio."""
    reason: str


def find_runs(folder: str | Path) -> list[RunStatus]:
    """All runs in `folder` and below, by name.

    Raises:
        OutputError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise OutputError(
            f"{root} is not a folder", "give one that holds runs, or holds folders of runs"
        )
    return [_status(path) for path in sorted(_run_folders(root))]


def _run_folders(root: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(root):  # what may not be looked into is passed over
        if Path(parent).name == RUN_FOLDER and "run.json" in files:
            yield Path(parent).parent
        folders.sort()


def _status(out: Path) -> RunStatus:
    facts = read_state(out / RUN_FOLDER)
    state, why = facts.status or "stopped", ""
    if (out / RECORD).is_file() and (out / CONFIG).is_file():
        state = "finished"
    elif state in ("starting", "running"):
        why = _silent(facts)
        state = "stopped" if why else state
    reason = (facts.reason or "") if state == "failed" else ""
    if state in ("stopped", "interrupted"):
        reason = f"{why}{'; ' if why else ''}sslim compress --resume goes on with it"
    return RunStatus(
        folder=str(out),
        state=state,
        step=facts.step or "",
        stage=facts.stage or "",
        update=facts.update or 0,
        updates=facts.updates or 0,
        seconds_left=facts.seconds_left if state == "running" else None,
        waiting_share=facts.waiting_share,
        reason=reason,
    )


LONGEST_SILENCE = 30 * 60.0
"""Seconds after which a run that has written nothing is taken for dead, where its process cannot be seen."""


def _silent(facts: StateFacts) -> str:
    """Why a run that says it runs does not, as far as can be seen from this machine; empty: it may."""
    written = facts.written or 0.0
    if facts.host != platform.node():
        # Another machine's, or another container's: its processes cannot be seen, but it writes every few
        # seconds, or after every update where those take longer.
        silence = time.time() - written
        if silence <= max(LONGEST_SILENCE, 10 * (facts.seconds_per_update or 0.0)):
            return ""
        return f"nothing from {facts.host or 'its machine'} for {silence / 3600:.1f} h"
    try:
        process = psutil.Process(facts.process or -1)
        # A number is given again after a while: its new owner has started after the state was written.
        if process.is_running() and process.create_time() <= written:
            return ""
    except (psutil.Error, ValueError, OverflowError):
        pass
    return "its process is gone"
