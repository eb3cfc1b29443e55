"""Ways to compute one strided convolution in ONNX Runtime, and what each costs: why exports are as they are.

    python benchmarks/convolutions.py [--channels 410] [--frames 512] [--rounds 60]

Kernel 3, stride 2, on chunks that stay in the processor's cache, one thread; variants run in turn. Prints
milliseconds per second of audio at the second layer's rate (1,600 frames per second).
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import onnxruntime
from onnx import numpy_helper

from sslim.deploy.arithmetic import Float32, Int8
from sslim.deploy.graph import FLOAT, RUNTIME_DOMAIN, Graph


class PlainConvolution(Float32):
    """The runtime's own convolution, channels first."""

    def _three_taps(self, graph, x, frames, weight, bias):  # type: ignore[no-untyped-def]
        x = graph.op("Transpose", x, perm=[0, 2, 1])
        x = graph.op("Conv", x, weight, bias, strides=[2])
        return graph.op("Transpose", x, perm=[0, 2, 1])


class GatherAndProduct(Float32):
    """One gather and one float32 matrix product."""

    def convolve(self, graph, x, frames, weight, bias, stride, key):  # type: ignore[no-untyped-def]
        x = gathered(graph, x, frames, weight)
        return graph.op("MatMul", x, flat(weight))


class OneScale(Int8):
    """int8 with one range for the whole tensor: quick, but quiet frames are lost."""

    def convolve(self, graph, x, frames, weight, bias, stride, key):  # type: ignore[no-untyped-def]
        x = self._quantise(graph, x, 0.05, 128)
        return self._product(
            graph, gathered(graph, x, frames, weight), 0.05, 128, flat(weight), None
        )


class BlockScales(Float32):
    """The runtime's MatMulNBits with 8-bit weights and inputs, a scale per 128 values."""

    def convolve(self, graph, x, frames, weight, bias, stride, key):  # type: ignore[no-untyped-def]
        columns = flat(weight)
        size, (inner, outer) = 128, columns.shape
        count = -(-inner // size)
        padded = np.zeros((count * size, outer), np.float32)
        padded[:inner] = columns
        blocks = padded.T.reshape(outer, count, size)
        scales = np.abs(blocks).max(-1) / 127
        codes = (np.round(blocks / scales[..., None]) + 128).astype(np.uint8)
        return graph.op(
            "MatMulNBits",
            gathered(graph, x, frames, weight),
            codes,
            scales.astype(np.float32).reshape(-1),
            domain=RUNTIME_DOMAIN,
            K=inner,
            N=outer,
            bits=8,
            block_size=size,
            accuracy_level=4,
        )


def flat(weight: np.ndarray) -> np.ndarray:
    """(O, I, 3) -> (3 * I, O)."""
    return np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(-1, weight.shape[0]))


def gathered(graph: Graph, x: str, frames: str, weight: np.ndarray) -> str:
    """What each step reads, (1, frames, 3 * I)."""
    count = int(numpy_helper.to_array(next(t for t in graph.initializers if t.name == frames)))
    index = 2 * np.arange(count)[:, None] + np.arange(3)
    return graph.op("Reshape", graph.op("Gather", x, index, axis=1), [1, count, -1])


def session(
    arithmetic: Float32 | Int8, weight: np.ndarray, frames: int
) -> onnxruntime.InferenceSession:
    """A graph of this one convolution."""
    graph = Graph()
    y = arithmetic.convolve(graph, "x", graph.constant(frames), weight, None, 2, "")
    model = graph.model(
        {"x": (FLOAT, [1, 2 * frames + 1, weight.shape[1]])},
        {"y": (y, FLOAT, [1, frames, weight.shape[0]])},
        {},
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=410)
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    weight = random.standard_normal((arguments.channels, arguments.channels, 3)).astype(np.float32)
    x = random.standard_normal((1, 2 * arguments.frames + 1, arguments.channels)).astype(np.float32)
    variants = {
        "float32, the runtime's convolution": PlainConvolution(),
        "float32, gather and product": GatherAndProduct(),
        "float32, fast FIR (exported)": Float32(),
        "int8, one scale": OneScale({}),
        "int8, a scale per step (exported)": Int8({}),
        "int8, MatMulNBits": BlockScales(),
    }
    sessions = {name: session(kind, weight, arguments.frames) for name, kind in variants.items()}
    wanted = next(iter(sessions.values())).run(None, {"x": x})[0]
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(arguments.rounds):
        for name, kernel in sessions.items():
            start = time.perf_counter()
            kernel.run(None, {"x": x})
            times[name].append(time.perf_counter() - start)
    for name, spent in times.items():
        got = sessions[name].run(None, {"x": x})[0]
        error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        per_second = 1e3 * statistics.median(spent[5:]) * 1600 / arguments.frames
        print(f"{name:36} {per_second:6.2f} ms per second of audio, relative error {error:.1e}")


if __name__ == "__main__":
    main()
