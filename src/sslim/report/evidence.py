"""What is known of a run: only files are read, nothing is computed again and nothing is invented.

A run's folder holds `sslim.json`, `run/metrics.jsonl` and, in `evidence/`, whatever was measured since: the
JSON of `sslim evaluate` (scores, fidelity), `bench` and `export`. What a file is, is told by what it holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslim.errors import OutputError
from sslim.report.inspect import Inspection, inspect_model

FOLDER = "evidence"
DECISIONS = "rollout.toml"
"""What people decide and no program can know: see `checklist.py`."""

Facts = dict[str, Any]


@dataclass
class Evidence:
    """Everything that one report is made from."""

    folder: Path
    name: str
    inspection: Inspection
    run: Facts | None = None
    """`sslim.json` of a compressed folder; None: the model was made some other way."""
    teacher: str = ""
    """What the user called the teacher."""
    log: list[Facts] = field(default_factory=list)
    scores: list[Facts] = field(default_factory=list)
    fidelity: list[Facts] = field(default_factory=list)
    bench: Facts | None = None
    exports: list[Facts] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """Names of evidence files that are no JSON of ours."""

    @property
    def result(self) -> Facts:
        """The figures of the run, empty where there was none."""
        return {} if self.run is None else dict(self.run["result"])

    def pair(self, scored: Facts) -> tuple[Facts | None, Facts | None]:
        """The rows of teacher and student in one task's results.

        The student is the row of this folder's name, or of its size; the teacher the row that differences are
        to (the first), where that is another.
        """
        rows = scored["results"]
        size = self.inspection.to_dict()["parameters"]
        student = next((row for row in rows if row["model"] == self.name), None)
        if student is None:
            student = next((row for row in rows if row["parameters"] == size), None)
        teacher = rows[0] if rows and rows[0] is not student else None
        return teacher, student


def read_evidence(folder: str | Path, more: Sequence[Path] = ()) -> Evidence:
    """Reads a model's folder and its evidence.

    Args:
        folder: what `sslim compress` wrote, or any model folder.
        more: further JSON files.

    Raises:
        TeacherError: the folder holds no model.
        OutputError: one of `more` cannot be read.
    """
    folder = Path(folder)
    found = Evidence(folder, folder.resolve().name, inspect_model(folder))
    about = _json(folder / "sslim.json")
    if about is not None and "result" in about:
        found.run = about
        source = _json(folder / "run" / "run.json") or about
        found.teacher = str(source["teacher"]["source"])
    log = folder / "run" / "metrics.jsonl"
    if log.is_file():
        found.log = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    files = sorted(folder.glob(f"{FOLDER}/*.json")) + sorted(folder.glob("*.onnx.json"))
    for path in [*files, *more]:
        facts = _json(path)
        if facts is None and path in more:
            raise OutputError(f"{path} cannot be read as JSON", "give what --json wrote")
        if facts is None or not _sort(found, facts):
            if path in more:
                raise OutputError(
                    f"{path} is not what evaluate, bench or export writes", "leave it out"
                )
            found.unread.append(path.name)
    return found


def _sort(found: Evidence, facts: Facts) -> bool:
    """Puts one file where it belongs; False: it belongs nowhere."""
    results = facts.get("results")
    if "machine" in facts and isinstance(results, list):
        found.bench = facts
    elif "check" in facts and "format" in facts:
        found.exports = [e for e in found.exports if e["file"] != facts["file"]] + [facts]
    elif isinstance(results, list) and results and "task" in results[0]:
        for task in dict.fromkeys(row["task"] for row in results):
            rows = [row for row in results if row["task"] == task]
            found.scores.append(facts | {"task": task, "results": rows})
    elif isinstance(results, list) and results and "layers" in results[0]:
        found.fidelity += results
    else:
        return False
    return True


def _json(path: Path) -> Facts | None:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None
