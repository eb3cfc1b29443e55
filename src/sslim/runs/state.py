"""Where a run stands, in one small file that other programs may read while it runs.

`state.json` in a run's folder: what it does, how far it is, how fast it goes and what it waits for. It is
rewritten every few seconds, whole or not at all, and read by `sslim runs`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslim.errors import OutputError
from sslim.files import read_json, write_json

FILE = "state.json"
SECONDS_BETWEEN_WRITES = 5.0


class RunState:
    """Keeps `state.json`.

    Args:
        folder: the run's folder.
        stages: name of each stage -> its updates, in order; for the time left.
        writes: whether this process writes the file (one of several does).
        resumed: whether what the file says already is about this run, and holds on.
    """

    def __init__(
        self,
        folder: Path,
        stages: Mapping[str, int],
        *,
        writes: bool = True,
        resumed: bool = False,
    ) -> None:
        self.folder = folder
        self.stages = dict(stages)
        self.writes = writes
        self.facts = read_state(folder) if resumed else {}
        for ended in ("reason", "error"):
            self.facts.pop(ended, None)
        self.facts |= {"status": "starting", "host": platform.node(), "process": os.getpid()}
        self._written = -float("inf")

    def set(self, **facts: Any) -> None:
        """Changes facts and writes the file now."""
        self.facts |= facts
        self.facts["written"] = time.time()
        self._written = time.monotonic()
        if self.writes and self.folder.is_dir():
            with contextlib.suppress(
                OSError
            ):  # a full disk ends the run where it matters, not here
                write_json(self.folder / FILE, self.facts)

    def progress(
        self, stage: str, update: int, seconds_per_update: float, waiting_share: float
    ) -> None:
        """Notes how far the run is, on disk every few seconds."""
        names = list(self.stages)
        later = names[names.index(stage) + 1 :] if stage in names else []
        updates_left = self.stages.get(stage, update) - update
        updates_left += sum(self.stages[name] for name in later)
        facts = {
            "status": "running",
            "stage": stage,
            "update": update,
            "updates": self.stages.get(stage, update),
            "seconds_per_update": round(seconds_per_update, 4),
            "waiting_share": round(waiting_share, 4),
            # The pace of this stage stands for the next as well; a smaller student is faster than that.
            "seconds_left": round(updates_left * seconds_per_update, 1),
        }
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self.set(**facts)
        else:
            self.facts |= facts


NUMBERS = (
    "process",
    "written",
    "update",
    "updates",
    "seconds_per_update",
    "seconds_per_batch",
    "seconds_left",
    "waiting_share",
)
WORDS = ("status", "stage", "recipe", "host", "reason", "error")


def read_state(folder: Path) -> dict[str, Any]:
    """What `state.json` in `folder` says; empty where there is none, without what makes no sense."""
    try:
        facts = read_json(folder / FILE, "the state of a run")
    except OutputError:
        return {}
    return {
        name: value
        for name, value in facts.items()
        if (name in WORDS and isinstance(value, str))
        or (
            name in NUMBERS
            and isinstance(value, int | float)
            and not isinstance(value, bool)
            and 0 <= value < 2**62  # neither NaN nor infinity
        )
    }
