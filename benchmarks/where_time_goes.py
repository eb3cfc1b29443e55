"""Where the time of an exported file goes, part by part and operator by operator, in onnxruntime's profiler.

    python benchmarks/where_time_goes.py [MODEL.onnx ...] [--seconds 10] [--rounds 3] [--json FILE]

Without MODEL: float32 and int8 of DPHuBERT's shape (`latency.py`). One thread. The core's own rate of large
products is measured before each profile. Prints two tables for docs/deploy.md. Profiling adds a few percent,
most of it where operators are small and many.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from latency import SMOOTH, make_models

from sslim.deploy.export import export
from sslim.deploy.parts import Node, by_part, combined, profile
from sslim.deploy.processor import load_now, machine, named
from sslim.deploy.rates import FORMATS, products, rates, timed
from sslim.deploy.worker import waveform
from sslim.files import write_json
from sslim.measurements import Rates
from sslim.records import to_json

SHOWN = 12
"""Operators with a row of their own."""
LOOP = "(the loop's own work)"


def measured(path: Path, seconds: float, rounds: int) -> tuple[list[Node], Rates]:
    """The fastest of some profiles, and the core's rate beside them."""
    ready = products(1)
    profiles: list[list[Node]] = []
    beside = []
    for _ in range(rounds):
        beside.append(timed(ready))
        profiles.append(profile(path, waveform(seconds)))
    best = min(profiles, key=lambda nodes: combined(by_part(nodes)).seconds)
    return best, rates(beside)


def by_operator(nodes: list[Node]) -> dict[str, tuple[float, float]]:
    """Operator -> seconds and calls; of the loop, what the nodes inside it do not account for."""
    operators: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    inside = sum(node.seconds for node in nodes if node.inside)
    for node in nodes:
        seconds, calls = operators[node.kind]
        operators[node.kind] = (seconds + node.seconds, calls + node.calls)
    if "Loop" in operators:
        seconds, calls = operators.pop("Loop")
        operators[LOOP] = (max(0.0, seconds - inside), calls)
    return dict(operators)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    before = load_now()
    with tempfile.TemporaryDirectory() as temporary:
        folder, paths = Path(temporary), list(arguments.models)
        if not paths:
            make_models(folder, (410, 4, 366))
            for format in ("onnx", "onnx-int8"):
                made = export(
                    folder / SMOOTH,
                    folder / f"{format}.onnx",
                    format=format,
                    force=True,
                    card=False,
                )
                paths.append(made.path)
        profiles = {
            path.name: measured(path, arguments.seconds, arguments.rounds) for path in paths
        }
    loads = {"load_before": before, "load_after": load_now()}
    print(named(machine()), loads)
    for name, (nodes, core) in profiles.items():
        parts = by_part(nodes)
        total = combined(parts).seconds
        print(
            f"\n{name}: {1e3 * total:.0f} ms under the profiler for {arguments.seconds:g} s of audio"
        )
        print({kind: getattr(core, kind) for kind in FORMATS}, core.libraries)
        print(
            "\n| part | time | share | float32 | int8 | of the core's rate |\n|---|---|---|---|---|---|"
        )
        for part_name, part in {**parts, "whole": combined(parts)}.items():
            reached = part.of_rate(core)
            print(
                f"| {part_name.replace('_', '-')} | {1e3 * part.seconds:.0f} ms | {part.seconds / total:.0%} "
                f"| {part.float_operations / 1e9:.1f} GFLOP | {part.integer_operations / 1e9:.1f} GOP "
                f"| {'' if reached is None else f'{reached:.0%}'} |"
            )
        operators = sorted(by_operator(nodes).items(), key=lambda item: -item[1][0])
        print("\n| operator | time | share | calls |\n|---|---|---|---|")
        for kind, (seconds, calls) in operators[:SHOWN]:
            print(f"| {kind} | {1e3 * seconds:.0f} ms | {seconds / total:.0%} | {calls:g} |")
        rest = np.sum([seconds for _, (seconds, _) in operators[SHOWN:]])
        print(f"| {len(operators) - SHOWN} others | {1e3 * rest:.0f} ms | {rest / total:.0%} | |")
    if arguments.json:
        facts = {
            name: {
                "rates": core,
                "parts": {part: totals.time(core) for part, totals in by_part(nodes).items()},
                "operators": {
                    kind: {"seconds": seconds, "calls": calls}
                    for kind, (seconds, calls) in by_operator(nodes).items()
                },
            }
            for name, (nodes, core) in profiles.items()
        }
        about = to_json(machine()) | loads
        whole_facts = {"machine": about, "seconds": arguments.seconds, "files": facts}
        write_json(arguments.json, to_json(whole_facts))


if __name__ == "__main__":
    main()
