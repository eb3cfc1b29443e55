"""What a core reaches at best: large matrix products in the number formats that models are run in.

A model's time says little without it: the same file takes twice as long on a core that multiplies half as
fast.
Measured in a process of its own, in turn with the models (`worker.py`, kind `rates`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sslim.measurements import Rates

ROWS, INNER, COLUMNS = 1024, 1024, 1024
OPERATIONS = 2 * ROWS * INNER * COLUMNS
FORMATS = ("float32", "bfloat16", "int8")
LIBRARIES = {
    "float32": ("onnxruntime MatMul", "torch linear"),
    "bfloat16": ("torch linear",),
    "int8": ("onnxruntime MatMulIntegerToFloat", "torch._int_mm"),
}
"""What is timed for each format; the int8 exports are made of the first of theirs."""

Product = Callable[[], Any]


def products(threads: int) -> dict[str, dict[str, Product]]:
    """Format -> library -> one large product, ready to run; libraries that are not installed are left out."""
    ready: dict[str, dict[str, Product]] = {name: {} for name in FORMATS}
    for add in (_in_onnxruntime, _in_torch):
        try:
            add(ready, threads)
        except ImportError:
            continue
    return {name: libraries for name, libraries in ready.items() if libraries}


def _in_onnxruntime(ready: dict[str, dict[str, Product]], threads: int) -> None:
    import onnxruntime
    from onnx import TensorProto

    from sslim.deploy.graph import FLOAT, RUNTIME_DOMAIN, Graph

    random = np.random.default_rng(0)
    weight = random.standard_normal((INNER, COLUMNS)).astype(np.float32)
    integers = np.clip(np.round(40 * weight), -127, 127).astype(np.int8)
    rows = random.standard_normal((ROWS, INNER)).astype(np.float32)
    codes = np.clip(np.round(40 * rows) + 128, 0, 255).astype(np.uint8)

    def session(name: str, kind: int, x: np.ndarray, write: Callable[[Graph], str]) -> Product:
        graph = Graph()
        model = graph.model(
            {"x": (kind, [ROWS, INNER])}, {"y": (write(graph), FLOAT, [ROWS, COLUMNS])}, {}
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        made = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return lambda: made.run(None, {"x": x})

    float32, int8 = (LIBRARIES[name][0] for name in ("float32", "int8"))
    ready["float32"][float32] = session(
        float32, FLOAT, rows, lambda graph: graph.op("MatMul", "x", weight)
    )
    scales = np.full(COLUMNS, 0.02, np.float32)
    ready["int8"][int8] = session(
        int8,
        TensorProto.UINT8,
        codes,
        lambda graph: graph.op(
            "MatMulIntegerToFloat",
            *("x", integers, np.float32(0.02), scales, np.uint8(128)),
            domain=RUNTIME_DOMAIN,
        ),
    )


def _in_torch(ready: dict[str, dict[str, Product]], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, INNER, generator=generator)
    weight = torch.randn(COLUMNS, INNER, generator=generator)

    def linear(kind: torch.dtype) -> Product:
        x, w = rows.to(kind), weight.to(kind)
        return torch.inference_mode()(lambda: torch.nn.functional.linear(x, w))

    ready["float32"][LIBRARIES["float32"][1]] = linear(torch.float32)
    ready["bfloat16"][LIBRARIES["bfloat16"][0]] = linear(torch.bfloat16)
    x, w = (torch.clamp(40 * t, -127, 127).to(torch.int8) for t in (rows, weight.t().contiguous()))
    ready["int8"][LIBRARIES["int8"][1]] = torch.inference_mode()(lambda: torch._int_mm(x, w))


def timed(ready: dict[str, dict[str, Product]]) -> dict[str, dict[str, float]]:
    """Format -> library -> seconds that its product takes now; what a library refuses is left out."""
    seconds: dict[str, dict[str, float]] = {}
    for name, libraries in ready.items():
        for library, product in list(libraries.items()):
            try:
                product()  # brings weights and code into the caches
                start = time.perf_counter()
                product()
                spent = time.perf_counter() - start
            except Exception:  # of whatever kind: this processor, or version, cannot
                del libraries[library]
                continue
            seconds.setdefault(name, {})[library] = spent
    return seconds


def rates(rounds: list[dict[str, dict[str, float]]]) -> Rates:
    """Of several rounds of `timed`: the medians, and the fastest library of each format."""
    every: dict[str, dict[str, float]] = {}
    for name in FORMATS:
        for library in LIBRARIES[name]:
            spent = [r[name][library] for r in rounds if library in r.get(name, {})]
            if spent:
                rate = OPERATIONS / float(np.median(spent)) / 1e9
                every.setdefault(name, {})[library] = round(rate, 1)
    best = {name: max(rate_of, key=rate_of.__getitem__) for name, rate_of in every.items()}
    reached = {name: every[name][library] for name, library in best.items()}
    return Rates(**reached, libraries=best, all=every)
