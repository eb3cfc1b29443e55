"""Where an exported file's time goes: nodes of a profile, summed by part of the model or by operator.

Operations are counted from the shapes that each node saw, so they are those that the file really does (a fast
FIR algorithm saves some). A part's share of the core's rate is the time that its products would take at that
rate, float and integer ones each at theirs, over the time that the part takes.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslim.measurements import PartTime, Rates

PARTS = ("front_end", "projection", "positional", "attention", "ffn", "rest")
INSIDE = "chunk"
"""Prefix of the nodes inside the front-end's loop, which the loop's own time holds already."""
FUSED = {"BiasGelu": "ffn", "FastGelu": "ffn"}
"""Operators that onnxruntime makes of several and names anew; where they can only be of one part."""
INTEGER = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "ConvInteger")
RUNS = 3


@dataclass(frozen=True)
class Node:
    """One operator of the file, over one run."""

    part: str
    kind: str
    """The operator."""
    inside: bool
    """Whether it runs inside the loop, whose own node is counted, too."""
    seconds: float
    calls: float
    float_operations: float
    integer_operations: float


@dataclass
class Part:
    """A part of the model, over one run."""

    seconds: float = 0.0
    float_operations: float = 0.0
    integer_operations: float = 0.0

    def of_rate(self, rates: Rates) -> float | None:
        """Share of the core's rate; None where the rate is not known or the part has no product."""
        if not self.seconds or not self.float_operations + self.integer_operations:
            return None
        ideal = 0.0
        for count, rate in (
            (self.float_operations, rates.float32),
            (self.integer_operations, rates.int8),
        ):
            if count:
                if not rate:
                    return None
                ideal += count / (1e9 * rate)
        return ideal / self.seconds

    def time(self, rates: Rates) -> PartTime:
        """As a benchmark says it."""
        return PartTime(
            self.seconds,
            self.float_operations / 1e9,
            self.integer_operations / 1e9,
            self.of_rate(rates),
        )


def profile(path: str | Path, audio: np.ndarray, threads: int = 1) -> list[Node]:
    """Runs an exported file under onnxruntime's profiler.

    Args:
        path: the file.
        audio: (samples,) float32.
        threads: of one product.

    Returns:
        its nodes, each with what it took in one run (the median of `RUNS` after one to warm up).
    """
    from sslim.backbone.exported import onnxruntime

    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # as `ExportedModel` does
    options.enable_profiling = True
    options.log_severity_level = 3
    feed = {"waveform": audio[None], "lengths": np.array([len(audio)])}
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(1 + RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return list(_nodes(events))


def _nodes(events: list[dict[str, Any]]) -> Iterator[Node]:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            by_name.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event)
    for name, calls_of_node in by_name.items():
        # Runs one after the other, each with the same number of calls.
        calls = max(1, len(calls_of_node) // (1 + RUNS))
        runs = [
            calls_of_node[start : start + calls]
            for start in range(0, len(calls_of_node) - calls + 1, calls)
        ]
        spent = [sum(event["dur"] for event in run) for run in runs[1:] or runs]
        first = calls_of_node[0]["args"]
        prefix = name.split("/")[0] if "/" in name else ""
        part = "front_end" if prefix == INSIDE else prefix
        kind = first["op_name"]
        if part not in PARTS:
            part = FUSED.get(kind, "rest")
        operations = sum(_operations(event["args"]) for event in runs[-1])
        integer = kind in INTEGER
        yield Node(
            part,
            kind,
            prefix == INSIDE,
            float(np.median(spent)) / 1e6,
            calls,
            0.0 if integer else operations,
            operations if integer else 0.0,
        )


def _operations(arguments: dict[str, Any]) -> float:
    """Additions and multiplications of a product, from the shapes it saw; 0 for what is none."""
    kind = arguments["op_name"]
    inputs, outputs = _shapes(arguments, "input"), _shapes(arguments, "output")
    if kind in ("MatMul", "FusedMatMul", "Gemm", *INTEGER[:3]):
        inner = inputs[0][-1]
        if kind in ("FusedMatMul", "Gemm"):  # the left side may be transposed
            inner = math.prod(inputs[0][-2:]) // max(1, outputs[0][-2])
        return 2.0 * math.prod(outputs[0]) * inner
    if kind in ("Conv", "FusedConv", "ConvInteger"):
        return 2.0 * math.prod(outputs[0]) * math.prod(inputs[1][1:])
    return 0.0


def _shapes(arguments: dict[str, Any], side: str) -> list[list[int]]:
    return [next(iter(shape.values()), []) for shape in arguments[f"{side}_type_shape"]]


def by_part(nodes: list[Node]) -> dict[str, Part]:
    """Seconds and operations of each part; nodes inside the loop give operations, the loop the time."""
    parts = {name: Part() for name in PARTS}
    for node in nodes:
        part = parts[node.part]
        part.seconds += 0.0 if node.inside else node.seconds
        part.float_operations += node.float_operations
        part.integer_operations += node.integer_operations
    return parts


def combined(parts: Mapping[str, Part]) -> Part:
    """All parts together."""
    return Part(
        sum(part.seconds for part in parts.values()),
        sum(part.float_operations for part in parts.values()),
        sum(part.integer_operations for part in parts.values()),
    )
