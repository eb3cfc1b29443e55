"""The other end of the warm process: runs the words of a case in a child and gives what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY, SOURCE
from tests.hostile.box import Box
from tests.hostile.case import Case

UNDER_TEST = "SSLIM_UNDER_TEST"
"""Environment variable: another `src` folder whose program is judged instead of this checkout's."""


@dataclass(frozen=True)
class Outcome:
    """What a child did."""

    code: int
    """Exit code; negative: the signal that ended it."""
    late: bool
    """It was killed because its time was over."""
    stdout: str
    stderr: str
    events: tuple[str, ...]
    """Programs it started, connections it tried, classes that pickles named."""
    seconds: float
    cpu_seconds: float
    peak_bytes: int


class Warm:
    """A warm process, for as long as a session of tests lasts.

    Args:
        folder: for its cache and log.
    """

    def __init__(self, folder: Path) -> None:
        source = os.environ.get(UNDER_TEST) or str(SOURCE)
        environment = {
            name: value
            for name, value in os.environ.items()
            # Offline, a model hub would never be asked, and no test would see that somebody wanted to.
            if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "WORLD_SIZE", "RANK")
        } | {
            "PYTHONPATH": os.pathsep.join([source, str(REPOSITORY)]),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",
            "HF_HOME": str(folder / "hub"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "200",
        }
        self.log = (folder / "warm.log").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            cwd=folder,
            env=environment,
        )
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"the warm process ended: {self.log.read().decode()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(
        self, box: Box, words: list[str], case: Case | None = None, function: str = ""
    ) -> Outcome:
        """Runs `sslim WORDS` (or a function of the tests) in a child, with the limits of a case."""
        case = case or Case("", "", "", expected=None)  # type: ignore[arg-type]
        names = {
            name: box.root / "temporary" / name for name in ("stdin", "stdout", "stderr", "events")
        }
        names["stdin"].write_text(case.typed)
        names["events"].write_text("")
        home = box.root / "home"
        order = {
            "words": words,
            "function": function,
            "folder": str(box.work),
            "environment": {
                "HOME": str(home),
                "XDG_CACHE_HOME": str(home / ".cache"),
                "TMPDIR": str(box.root / "temporary"),
                **dict(case.environment),
            },
            "gibibytes": case.gibibytes,
            "seconds": case.seconds,
            "cpu_seconds": case.cpu_seconds,
            "most_bytes": case.most_bytes,
            **{name: str(path) for name, path in names.items()},
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        answer = self._read()
        return Outcome(
            **answer,
            stdout=names["stdout"].read_text(encoding="utf-8", errors="replace"),
            stderr=names["stderr"].read_text(encoding="utf-8", errors="replace"),
            events=tuple(names["events"].read_text(encoding="utf-8").splitlines()),
        )

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.communicate(timeout=30)
        self.log.close()
