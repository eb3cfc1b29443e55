"""Files that a report is made from, taken for what they say only after everything in them was looked at.

Types and bounds are the records' own (`measurements.py`, `runs/facts.py`). Here is what a record alone cannot
know: which kind a file is, whether its figures fit each other, and that its texts are one line. A figure that
is wrong makes the whole file unusable: half of a damaged file is no evidence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from sslim.errors import OutputError
from sslim.files import read_json
from sslim.measurements import (
    Benchmark,
    Evaluation,
    ExportFacts,
    FidelityReport,
    Result,
    SuiteScores,
    Timing,
)
from sslim.records import Bounds, Count, Interval, Name, NewerRecordError, RecordError, from_json
from sslim.report.quoting import one_line

Facts = dict[str, Any]
Evidence = Evaluation | SuiteScores | FidelityReport | Benchmark | ExportFacts
T = TypeVar("T")

MOST_BYTES = 32 * 2**20
"""Of a file of evidence; ours have some kilobytes."""
LONGEST_TEXT = 1000
ROUNDING = 1e-6
"""What a share of open gates may exceed 1 by."""


class Unusable(ValueError):
    """A file is not what its kind promises; the text says where and why."""


def read_facts(path: Path) -> Facts:
    """The object in a JSON file.

    Raises:
        Unusable: it cannot be read, is far too large, or holds something else.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise Unusable(error.strerror or "it cannot be read") from error
    if size > MOST_BYTES:
        raise Unusable(f"it is larger than {MOST_BYTES // 2**20} MiB")
    try:
        return read_json(path, "evidence")
    except OutputError as error:
        raise Unusable(error.problem.partition(": ")[2] or error.problem) from error


def evidence(facts: Facts) -> Evidence:
    """The record in a file of evidence, by its kind, with texts of one line.

    Raises:
        Unusable: it is of no kind of evidence or of a newer version, or not what its kind promises.
    """
    kind = KINDS.get(str(facts.get("kind"))) if "kind" in facts else _by_keys(facts)
    if kind is None:
        raise Unusable("it is not what evaluate, bench or export writes")
    try:
        record = in_one_line(kind.from_dict(facts))
    except RecordError as error:
        hint = f"; {error.hint}" if isinstance(error, NewerRecordError) else ""
        raise Unusable(f"{one_line(error, LONGEST_TEXT)}{hint}") from error
    if isinstance(record, Evaluation | SuiteScores):
        _check_scores(record)
    elif isinstance(record, Benchmark):
        for index, row in enumerate(record.results):
            _check_timing(row, f"results[{index}].")
    elif isinstance(record, FidelityReport) and not record.results:
        raise Unusable("results is empty")
    return record


KINDS: Mapping[str, type[Evidence]] = {
    kind.KIND: kind for kind in (Evaluation, SuiteScores, FidelityReport, Benchmark, ExportFacts)
}


def _by_keys(facts: Facts) -> type[Evidence] | None:
    """The kind of a file of version 0.1, which does not say it."""
    results = facts.get("results")
    first: Any = results[0] if isinstance(results, list) and results else None
    if "machine" in facts and isinstance(results, list):
        return Benchmark
    if "format" in facts and "passed" in facts:
        return ExportFacts
    if isinstance(first, dict) and "layers" in first:
        return FidelityReport
    if isinstance(first, dict) and "task" in first:
        return Evaluation
    return None


def in_one_line(value: T) -> T:
    """A record with every text in it, names among them, as one line of characters that can be shown."""
    tidied: Any = value
    if isinstance(value, str):
        tidied = one_line(value, LONGEST_TEXT)
    elif isinstance(value, tuple):
        tidied = tuple(in_one_line(one) for one in value)
    elif isinstance(value, dict):
        tidied = {in_one_line(key): in_one_line(one) for key, one in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        changes = {item.name: in_one_line(getattr(value, item.name)) for item in fields(value)}
        tidied = replace(value, **changes)
    result: T = tidied
    return result


def _check_scores(record: Evaluation | SuiteScores) -> None:
    """Raises Unusable where rows contradict each other."""
    if not record.results:
        raise Unusable("results is empty")
    first: dict[str, Result] = {}
    seen: set[tuple[str, str]] = set()
    for index, row in enumerate(record.results):
        _check_score(row, f"results[{index}].")
        lead = first.setdefault(row.task, row)
        if (row.task, row.model) in seen:
            raise Unusable(f"there are two rows of {row.model} in {row.task}")
        seen.add((row.task, row.model))
        if (row.metric, row.higher_is_better) != (lead.metric, lead.higher_is_better):
            raise Unusable(f"the rows of {row.task} have different metrics")
        if abs(row.difference - (row.score - lead.score)) > 1e-3:
            raise Unusable(f"the difference of {row.model} is not that of its scores")
    for report in record.groups if isinstance(record, Evaluation) else ():
        for cells in report.scores.values():
            for name, cell in cells.items():
                _within(cell.score, -100, 100, f"the score of {name}")
                _check_interval(cell.interval, -100, 100, f"the interval of {name}")


def _check_score(row: Result, at: str) -> None:
    # A share of what is right ends at 1 (MTWV may be negative); a rate of errors begins at 0.
    low, high = (-100.0, 1.0) if row.higher_is_better else (0.0, 100.0)
    _within(row.score, low, high, f"{at}score")
    _within(row.chance, low, high, f"{at}chance")
    _within(row.difference, -101, 101, f"{at}difference")
    _check_interval(row.interval, low, high, f"{at}interval")
    _check_interval(row.difference_interval, -101, 101, f"{at}difference_interval")
    for name, condition in row.conditions.items():
        _within(condition.score, low, high, f"{at}conditions.{name}.score")


def _check_timing(row: Timing, at: str) -> None:
    if abs(row.real_time_factor * row.seconds - row.median) > 0.01 * row.median:
        raise Unusable(f"{at}real_time_factor is not the time per second of audio")


def _within(value: float, low: float, high: float, at: str) -> None:
    if not low <= value <= high:
        raise Unusable(f"{at} is {value:g}, not between {low:g} and {high:g}")


def _check_interval(interval: Interval | None, low: float, high: float, at: str) -> None:
    for edge in interval or ():
        _within(edge, low, high, at)
    if interval is not None and interval[0] > interval[1]:
        raise Unusable(f"{at} ends before it begins")


@dataclass(frozen=True)
class _LogLine:
    """What every line of the log has."""

    stage: Name
    update: Count
    loss: float


@dataclass(frozen=True)
class _JointLine(_LogLine):
    """A line of the joint stage."""

    sparsity: float
    target: float
    shrinks: float


def log(path: Path) -> tuple[list[Facts], str]:
    """The lines of `metrics.jsonl` that can be drawn, and what is wrong with the others ("": nothing)."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return [], "it is not a file"
        if path.stat().st_size > MOST_BYTES:
            return [], f"it is larger than {MOST_BYTES // 2**20} MiB"
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        return [], error.strerror or "it cannot be read"
    drawable, problem = [], ""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            drawable.append(_log_line(json.loads(line.decode("utf-8"))))
        except RecordError as error:
            problem = problem or f"line {number}: {error}"
        except (ValueError, RecursionError):
            problem = problem or f"line {number} is no JSON"
    return drawable, problem


def _log_line(line: Any) -> Facts:
    """The line itself, once everything in it that is drawn was looked at."""
    if from_json(_LogLine, line).stage == "stage1":
        from_json(_JointLine, line)
        gates = {key: share for key, share in line.items() if key.startswith("open.")}
        from_json(_OpenGates, {"shares": gates})
    drawable: Facts = line
    return drawable


@dataclass(frozen=True)
class _OpenGates:
    shares: dict[str, Annotated[float, Bounds(-ROUNDING, 1 + ROUNDING)]]
