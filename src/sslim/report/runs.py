"""What runs there are under a folder, and where each one stands."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from sslim.errors import OutputError
from sslim.train.folder import RUN_FOLDER
from sslim.train.state import read_state


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    folder: str
    state: str
    """`finished`, `running`, `starting`, `interrupted`, `failed`, or `stopped`: its process is gone."""
    stage: str
    update: int
    updates: int
    seconds_left: float | None
    """Of the whole run, at its present pace; None where it does not run."""
    waiting_share: float | None
    """Share of the stage's time that went into waiting for audio."""
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
    for path in root.rglob("run.json"):
        if path.parent.name == RUN_FOLDER:
            yield path.parent.parent


def _status(out: Path) -> RunStatus:
    facts = read_state(out / RUN_FOLDER)
    state = facts.get("status", "stopped")
    if (out / "sslim.json").is_file() and (out / "config.json").is_file():
        state = "finished"
    elif state in ("starting", "running") and not _alive(facts):
        state = "stopped"
    reason = str(facts.get("reason", "")) if state == "failed" else ""
    if state in ("stopped", "interrupted"):
        reason = "sslim compress --resume goes on with it"
    return RunStatus(
        folder=str(out),
        state=state,
        stage=facts.get("stage", ""),
        update=facts.get("update", 0),
        updates=facts.get("updates", 0),
        seconds_left=facts.get("seconds_left") if state == "running" else None,
        waiting_share=facts.get("waiting_share"),
        reason=reason,
    )


def _alive(facts: dict[str, Any]) -> bool:
    """Whether the process that wrote the state still runs, as far as can be seen from this machine."""
    if facts.get("host") != platform.node():
        return True  # another machine's processes cannot be seen; its own word counts
    try:
        process = psutil.Process(int(facts["process"]))
        # A number is given again after a while: its new owner has started after the state was written.
        return process.is_running() and process.create_time() <= float(facts["written"])
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return False
