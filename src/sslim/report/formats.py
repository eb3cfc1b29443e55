"""Files that a report is made from, taken for what they say only after everything in them was looked at.

One check per kind: a run (`sslim.json`), its log, scores, fidelity, a benchmark, an exported file. A figure
that is no number, not finite, or out of the range that its meaning allows makes the whole file unusable: half
of a damaged file is no evidence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sslim.errors import OutputError
from sslim.files import read_json
from sslim.report.quoting import one_line

Facts = dict[str, Any]

MOST_BYTES = 32 * 2**20
"""Of a file of evidence; ours have some kilobytes."""
MOST_ROWS = 1000
"""Models in a file, values in a column of groups, conditions."""
LARGE = 1e18
RATES = ("float32", "bfloat16", "int8")
"""Formats of numbers whose rate `bench` measures; what else it says of them is not shown."""
ROUNDING = 1e-6
"""What a cosine may exceed 1 by."""


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


def number(
    facts: Mapping[str, Any], key: str, low: float = -LARGE, high: float = LARGE, *, at: str = ""
) -> float:
    """A finite number between two bounds."""
    value = facts.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unusable(f"{at}{key} is {_shown(value)}, not a number")
    try:
        known = float(value)
    except OverflowError:
        known = math.inf
    if not math.isfinite(known) or not low <= known <= high:
        raise Unusable(f"{at}{key} is {_shown(value)}, not between {low:g} and {high:g}")
    return known


def count(facts: Mapping[str, Any], key: str, low: int = 0, *, at: str = "") -> int:
    """A whole number."""
    value = number(facts, key, low, at=at)
    if value != int(value):
        raise Unusable(f"{at}{key} is {_shown(value)}, not a whole number")
    return int(facts[key])


def text(facts: Mapping[str, Any], key: str, *, at: str = "") -> str:
    """Text that is not empty, as one line."""
    value = facts.get(key)
    if not isinstance(value, str) or not value.strip():
        raise Unusable(f"{at}{key} is {_shown(value)}, not a text")
    return one_line(value)


def truth(facts: Mapping[str, Any], key: str, *, at: str = "") -> bool:
    """true or false."""
    value = facts.get(key)
    if not isinstance(value, bool):
        raise Unusable(f"{at}{key} is {_shown(value)}, not true or false")
    return value


def inner(facts: Mapping[str, Any], key: str, *, at: str = "") -> Facts:
    """An object inside another."""
    value = facts.get(key)
    if not isinstance(value, dict):
        raise Unusable(f"{at}{key} is {_shown(value)}, not an object")
    return value


def rows(facts: Mapping[str, Any], key: str, *, at: str = "") -> list[Facts]:
    """A list of objects."""
    value = facts.get(key)
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise Unusable(f"{at}{key} is not a list of objects")
    if len(value) > MOST_ROWS:
        raise Unusable(f"{at}{key} has {len(value):,} entries")
    return value


def span(
    facts: Mapping[str, Any], key: str, low: float, high: float, *, at: str = ""
) -> tuple[float, float] | None:
    """An interval, or None where there is none."""
    value = facts.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise Unusable(f"{at}{key} is {_shown(value)}, not two numbers")
    edges = dict(zip(("low", "high"), value, strict=True))
    found = [number(edges, edge, low, high, at=f"{at}{key}.") for edge in edges]
    if found[0] > found[1]:
        raise Unusable(f"{at}{key} ends before it begins")
    return found[0], found[1]


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    return "missing" if value is None else one_line(repr(value), 60)


def identities(row: Mapping[str, Any]) -> Facts:
    """What was run and the torch model behind it, where a row says so."""
    found: Facts = {}
    for name in ("fingerprint", "model_fingerprint"):
        if row.get(name) is not None:
            found[name] = text(row, name)
    return found


def run(facts: Facts) -> Facts:
    """`sslim.json` of a compressed folder, with everything that is shown of it looked at."""
    at = "result."
    result = inner(facts, "result")
    for name in ("parameters", "dense_parameters", "macs_per_second", "dense_macs_per_second"):
        count(result, name, 1, at=at)
    number(result, "seconds", 0, at=at)
    layers(inner(result, "layers", at=at), at=f"{at}layers.")
    if result.get("measured_utterances") is not None:
        count(result, "measured_utterances", 1, at=at)
    held = result.get("held_out")
    if held is not None:
        place = f"{at}held_out."
        held = inner(result, "held_out", at=at)
        count(held, "utterances", at=place)
        number(held, "seconds", 0, at=place)
        text(held, "chosen", at=place)
        layers(inner(held, "layers", at=place), at=f"{place}layers.")
    text(inner(facts, "teacher"), "source", at="teacher.")
    config = inner(facts, "config")
    for stage in ("stage1", "stage2"):
        count(inner(config, stage, at="config."), "updates", at=f"config.{stage}.")
    audio = inner(facts, "audio")
    if audio.get("seconds") is not None:
        number(audio, "seconds", 0, at="audio.")
    text(facts, "device")
    return facts


def layers(found: Mapping[str, Any], *, at: str) -> None:
    """Mapped layer -> cosine and, in all but the oldest files, L1."""
    for layer in found:
        if not (layer.isdecimal() and layer.isascii()):
            raise Unusable(f"{at}{one_line(layer, 40)} is no layer")
        row = inner(found, layer, at=at)
        number(row, "cosine", -1 - ROUNDING, 1 + ROUNDING, at=f"{at}{layer}.")
        if row.get("l1") is not None:
            number(row, "l1", 0, at=f"{at}{layer}.")


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
    found, problem = [], ""
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(_log_line(json.loads(line.decode("utf-8"))))
        except Unusable as error:
            problem = problem or f"line {place}: {error}"
        except (ValueError, RecursionError):
            problem = problem or f"line {place} is no JSON"
    return found, problem


def _log_line(line: Any) -> Facts:
    if not isinstance(line, dict):
        raise Unusable("it holds no object")
    stage = text(line, "stage")
    count(line, "update")
    number(line, "loss")
    if stage == "stage1":
        for key in ("sparsity", "target", "shrinks"):
            number(line, key)
        for key in line:
            if key.startswith("open."):
                number(line, key, -ROUNDING, 1 + ROUNDING)
    return line


def _scores(facts: Facts) -> Facts:
    """What `sslim evaluate` wrote, of one task or of several."""
    found = rows(facts, "results")
    checked = [_score(row, f"results[{place}].") for place, row in enumerate(found)]
    first: dict[str, Facts] = {}
    seen: set[tuple[str, str]] = set()
    for row in checked:
        lead = first.setdefault(row["task"], row)
        name = (row["task"], row["model"])
        if name in seen:
            raise Unusable(f"there are two rows of {row['model']} in {row['task']}")
        seen.add(name)
        if (row["metric"], row["higher_is_better"]) != (lead["metric"], lead["higher_is_better"]):
            raise Unusable(f"the rows of {row['task']} have different metrics")
        if abs(row["difference"] - (row["score"] - lead["score"])) > 1e-3:
            raise Unusable(f"the difference of {row['model']} is not that of its scores")
    groups = [
        _groups(report, f"groups[{place}].")
        for place, report in enumerate(rows({"groups": facts.get("groups", [])}, "groups"))
    ]
    return {
        "results": checked,
        "groups": groups,
        "random_labels": facts.get("random_labels") not in (None, False),
    }


def _score(row: Facts, at: str) -> Facts:
    up = truth(row, "higher_is_better", at=at)
    # A share of what is right ends at 1 (MTWV may be negative); a rate of errors begins at 0.
    low, high = (-100.0, 1.0) if up else (0.0, 100.0)
    conditions = inner(row, "conditions", at=at) if row.get("conditions") is not None else {}
    if len(conditions) > MOST_ROWS:
        raise Unusable(f"{at}conditions has {len(conditions):,} entries")
    return {
        "model": text(row, "model", at=at),
        "task": text(row, "task", at=at),
        "metric": text(row, "metric", at=at),
        "higher_is_better": up,
        "score": number(row, "score", low, high, at=at),
        "interval": span(row, "interval", low, high, at=at),
        "difference": number(row, "difference", -101, 101, at=at),
        "difference_interval": span(row, "difference_interval", -101, 101, at=at),
        "parameters": count(row, "parameters", at=at),
        "macs_per_second": count(row, "macs_per_second", at=at),
        "chance": number(row, "chance", low, high, at=at),
        "conditions": {
            one_line(name): {
                "score": number(inner(conditions, name, at=at), "score", low, high, at=at)
            }
            for name in conditions
        },
        **identities(row),
    }


def _groups(report: Facts, at: str) -> Facts:
    scores = inner(report, "scores", at=at)
    found: dict[str, dict[str, Facts]] = {}
    for model in scores:
        cells = inner(scores, model, at=at)
        if len(cells) > MOST_ROWS:
            raise Unusable(f"{at}scores has {len(cells):,} entries")
        found[one_line(model)] = {
            one_line(value): _cell(inner(cells, value, at=at), at) for value in cells
        }
    sentences = report.get("sentences", [])
    if not isinstance(sentences, list) or not all(isinstance(said, str) for said in sentences):
        raise Unusable(f"{at}sentences is not a list of texts")
    return {
        "column": text(report, "column", at=at),
        "scores": found,
        "sentences": [one_line(said, 1000) for said in sentences[:MOST_ROWS]],
    }


def _cell(cell: Facts, at: str) -> Facts:
    return {
        "clips": count(cell, "clips", at=at),
        "score": number(cell, "score", -100, 100, at=at),
        "interval": span(cell, "interval", -100, 100, at=at),
    }


def _bench(facts: Facts) -> Facts:
    """What `sslim bench` wrote."""
    found = rows(facts, "results")
    if not found:
        raise Unusable("results is empty")
    price = facts.get("price_per_hour")
    return {
        "machine": _machine(inner(facts, "machine")),
        "price_per_hour": None if price is None else number(facts, "price_per_hour", 0, 1e9),
        "results": [_timing(row, f"results[{place}].") for place, row in enumerate(found)],
    }


def _timing(row: Facts, at: str) -> Facts:
    seconds = number(row, "seconds", 1e-3, 1e7, at=at)
    median = number(row, "median", 1e-9, 1e9, at=at)
    factor = number(row, "real_time_factor", 1e-12, 1e9, at=at)
    if abs(factor * seconds - median) > 0.01 * median:
        raise Unusable(f"{at}real_time_factor is not the time per second of audio")
    return {
        "model": text(row, "model", at=at),
        "runtime": text(row, "runtime", at=at),
        "threads": count(row, "threads", 1, at=at),
        "seconds": seconds,
        "median": median,
        "ratio": number(row, "ratio", 1e-9, 1e9, at=at),
        "real_time_factor": factor,
        "peak_bytes": count(row, "peak_bytes", at=at),
        "file_bytes": count(row, "file_bytes", at=at),
        "noisy": truth(row, "noisy", at=at),
        **identities(row),
    }


def _machine(found: Facts) -> Facts:
    """What is said of the processor; older files say its name alone."""
    at = "machine."
    known: Facts = {"processor": "", "vector_units": [], "rates": {}}
    if found.get("processor"):
        known["processor"] = text(found, "processor", at=at)
    units = found.get("vector_units") or []
    if not isinstance(units, list) or not all(isinstance(unit, str) for unit in units):
        raise Unusable(f"{at}vector_units is not a list of texts")
    known["vector_units"] = [one_line(unit, 40) for unit in units[:20]]
    rates = inner(found, "rates", at=at) if found.get("rates") is not None else {}
    known["rates"] = {
        name: number(rates, name, 0, at=f"{at}rates.")
        for name in RATES
        if rates.get(name) is not None
    }
    for name in ("load_before", "load_after", "cores"):
        if found.get(name) is not None:
            known[name] = number(found, name, 0, at=at)
    return known


def _export(facts: Facts) -> Facts:
    """What `sslim export` wrote beside a file."""
    cosine = facts.get("worst_cosine")
    return {
        "file": text(facts, "file"),
        "format": text(facts, "format"),
        "bytes": count(facts, "bytes", 1),
        "passed": truth(facts, "passed"),
        "worst_cosine": None
        if cosine is None
        else number(facts, "worst_cosine", -1 - ROUNDING, 1 + ROUNDING),
        **identities(facts),
    }


def _fidelity(facts: Facts) -> Facts:
    """What `sslim evaluate --task fidelity` wrote."""
    checked = []
    for place, row in enumerate(rows(facts, "results")):
        at = f"results[{place}]."
        found = rows(row, "layers", at=at)
        if not found:
            raise Unusable(f"{at}layers is empty")
        one: Facts = {
            "model": text(row, "model", at=at),
            "utterances": count(row, "utterances", 1, at=at),
            "layers": [
                {
                    "layer": count(layer, "layer", at=at),
                    "cosine": number(layer, "cosine", -1 - ROUNDING, 1 + ROUNDING, at=at),
                }
                for layer in found
            ],
            **identities(row),
        }
        for name in ("teacher_fingerprint", "teacher_model_fingerprint"):
            if row.get(name) is not None:
                one[name] = text(row, name, at=at)
        checked.append(one)
    return {"results": checked}


KINDS: Mapping[str, Callable[[Facts], Facts]] = {
    "scores": _scores,
    "fidelity": _fidelity,
    "bench": _bench,
    "export": _export,
}


def kind_of(facts: Facts) -> str:
    """The kind of a file of evidence, told by what it holds.

    Raises:
        Unusable: it is of none.
    """
    results = facts.get("results")
    first: Any = results[0] if isinstance(results, list) and results else None
    if "machine" in facts and isinstance(results, list):
        return "bench"
    if "format" in facts and "passed" in facts:
        return "export"
    if isinstance(first, dict) and "layers" in first:
        return "fidelity"
    if isinstance(first, dict) and "task" in first:
        return "scores"
    if isinstance(results, list) and not results:
        raise Unusable("results is empty")
    raise Unusable("it is not what evaluate, bench or export writes")


def checked(facts: Facts) -> tuple[str, Facts]:
    """Kind and contents of a file of evidence.

    Raises:
        Unusable: it is of no kind, or not what its kind promises.
    """
    kind = kind_of(facts)
    found = KINDS[kind](facts)
    found["computation"] = facts.get("computation")
    return kind, found


def names(found: Iterable[Mapping[str, Any]]) -> str:
    """The models of some rows, each once."""
    return ", ".join(dict.fromkeys(str(row["model"]) for row in found))
