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
from dataclasses import replace
from pathlib import Path
from typing import Any

from sslim.errors import OutputError
from sslim.files import read_json
from sslim.records import sensible
from sslim.runs.facts import StateFacts

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
        self.facts = replace(
            read_state(folder) if resumed else StateFacts(),
            reason=None,
            error=None,
            status="starting",
            host=platform.node(),
            process=os.getpid(),
        )
        self._written = -float("inf")

    def set(self, **facts: Any) -> None:
        """Changes facts and writes the file now."""
        self.facts = replace(self.facts, written=time.time(), **facts)
        self._written = time.monotonic()
        if self.writes and self.folder.is_dir():
            with contextlib.suppress(
                OSError
            ):  # a full disk ends the run where it matters, not here
                self.facts.write(self.folder / FILE)

    def begin(self, step: str, stage: str, updates: int) -> None:
        """Notes the step that begins; what was trained last stays named where it trains nothing itself."""
        training = {"stage": stage, "update": 0, "updates": updates} if stage else {}
        self.set(status="running", step=step, **training)

    def forget_pace(self) -> None:
        """What was measured before holds no longer: settings were changed."""
        self.facts = replace(self.facts, seconds_per_batch=None)

    def progress(
        self, stage: str, update: int, seconds_per_update: float, waiting_share: float
    ) -> None:
        """Notes how far the run is, on disk every few seconds."""
        names = list(self.stages)
        later = names[names.index(stage) + 1 :] if stage in names else []
        updates_left = self.stages.get(stage, update) - update
        updates_left += sum(self.stages[name] for name in later)
        facts: dict[str, Any] = {
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
            self.facts = replace(self.facts, **facts)


def read_state(folder: Path) -> StateFacts:
    """What `state.json` in `folder` says; nothing where there is none, without what makes no sense."""
    try:
        return sensible(StateFacts, read_json(folder / FILE, StateFacts.TITLE))
    except OutputError:
        return StateFacts()
