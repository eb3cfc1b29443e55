"""How the heavy products of an exported model are computed: in float32, or in 8-bit integers.

Both take and give channels-last tensors (B, T, C). In float32 the wide convolutions and the positional one
save products by fast FIR algorithms, and the narrow ones stay ONNX Runtime's own. In int8 a strided
convolution becomes a gather of frames and one 8-bit product, and the positional one a product per group over
blocks of `POSITIONAL_BLOCK` frames. `benchmarks/convolutions.py` times what there is to choose from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from onnx import numpy_helper

from sslim.deploy.graph import RUNTIME_DOMAIN, Graph

POSITIONAL_BLOCK = 2
"""Frames that one row of the int8 positional product computes. The weight is stored once per frame of a
block; 4 is a fifth faster and doubles that once more."""


class Arithmetic(Protocol):
    """What `network.py` asks of a number format."""

    def linear(
        self, graph: Graph, x: str, weight: np.ndarray, bias: np.ndarray | None, key: str
    ) -> str:
        """(B, T, I) -> (B, T, O); `weight` (O, I); `key` names the product in the torch model."""

    def convolve(
        self,
        graph: Graph,
        x: str,
        frames: str,
        weight: np.ndarray,
        bias: np.ndarray | None,
        stride: int,
        key: str,
    ) -> str:
        """(B, T, I) -> (B, `frames`, O) with `weight` (O, I, kernel) and no padding."""

    def positional(
        self,
        graph: Graph,
        x: str,
        frames: str,
        weight: np.ndarray,
        bias: np.ndarray,
        groups: int,
        before: int,
        key: str,
    ) -> str:
        """(B, `frames`, D) -> the same with `weight` (D, D / groups, kernel), whose first tap reads `before`
        frames back, 0 to kernel - 1."""


class Float32:
    """Standard operators on float32."""

    def linear(
        self, graph: Graph, x: str, weight: np.ndarray, bias: np.ndarray | None, key: str
    ) -> str:
        product = graph.op("MatMul", x, np.ascontiguousarray(weight.T))
        return product if bias is None else graph.op("Add", product, bias)

    def convolve(
        self,
        graph: Graph,
        x: str,
        frames: str,
        weight: np.ndarray,
        bias: np.ndarray | None,
        stride: int,
        key: str,
    ) -> str:
        if weight.shape[2] == 3 and stride == 2:
            return self._three_taps(graph, x, frames, weight, bias)
        x = graph.op("Transpose", x, perm=[0, 2, 1])
        x = graph.op("Conv", x, weight, bias, strides=[stride])
        return graph.op("Transpose", x, perm=[0, 2, 1])

    def _three_taps(
        self, graph: Graph, x: str, frames: str, weight: np.ndarray, bias: np.ndarray | None
    ) -> str:
        """Kernel 3, stride 2 in five products for two frames instead of six (a fast FIR algorithm, Winograd
        1980): with frames f0 to f4 and taps a, b, c,

            a f0 + b f1 + c f2 = a (f0 - f2) + b f1 + m        where m = (a + c) f2
            a f2 + b f3 + c f4 = c (f4 - f2) + b f3 + m
        """
        channels, incoming, _ = weight.shape
        pairs = graph.op("Div", graph.op("Add", frames, 1), 2)
        length = graph.op("Gather", graph.op("Shape", x), 1)
        short = graph.op("Sub", graph.op("Add", graph.op("Mul", pairs, 4), 4), length)
        short = graph.op("Reshape", graph.op("Max", short, 0), [1])
        x = graph.op("Pad", x, graph.op("Concat", [0, 0, 0, 0], short, [0], axis=0))
        end = graph.op("Reshape", graph.op("Add", graph.op("Mul", pairs, 4), 4), [1])
        x = graph.op("Reshape", graph.op("Slice", x, [0], end, [1]), [0, -1, 4, incoming])
        quarters, ends = [], graph.op("Reshape", pairs, [1])
        for number in range(4):
            part = graph.op("Gather", x, number, axis=2)
            quarters.append(graph.op("Slice", part, [0], ends, [1]))
            if number == 0:
                next_first = graph.op("Slice", part, [1], graph.op("Add", ends, 1), [1])
        first, second, third, fourth = quarters
        a, b, c = (graph.constant(np.ascontiguousarray(weight[:, :, tap].T)) for tap in range(3))
        # Sums of weights are taken when the file is opened, so they do not double it.
        shared = graph.op("MatMul", third, graph.op("Add", a, c))
        if bias is not None:
            shared = graph.op("Add", shared, bias)
        halves = []
        for other, odd, tap in ((first, second, a), (next_first, fourth, c)):
            joined = graph.op("Concat", graph.op("Sub", other, third), odd, axis=2)
            product = graph.op("MatMul", joined, graph.op("Concat", tap, b, axis=0))
            halves.append(graph.op("Unsqueeze", graph.op("Add", product, shared), [2]))
        x = graph.op("Reshape", graph.op("Concat", *halves, axis=2), [0, -1, channels])
        return graph.op("Slice", x, [0], graph.op("Reshape", frames, [1]), [1])

    def positional(
        self,
        graph: Graph,
        x: str,
        frames: str,
        weight: np.ndarray,
        bias: np.ndarray,
        groups: int,
        before: int,
        key: str,
    ) -> str:
        kernel = weight.shape[2]
        x = graph.op("Transpose", x, perm=[0, 2, 1])
        if kernel % 2:
            x = graph.op("Conv", x, weight, bias, group=groups, pads=[before, kernel - 1 - before])
            return graph.op("Transpose", x, perm=[0, 2, 1])
        # Three convolutions of half the taps at half the rate instead of four (fast FIR, as above): of even
        # frames e and odd frames o, with even taps p and odd taps q,
        #     even[t] = p*e[t] + q*o[t]      odd[t] = (p + q)*(o + e[+1])[t] - p*e[t + 1] - q*o[t]
        pairs = graph.op("Div", graph.op("Add", frames, 1), 2)
        after = graph.op("Sub", graph.op("Add", graph.op("Mul", pairs, 2), kernel - before), frames)
        pads = graph.op("Concat", [0, 0, before, 0, 0], graph.op("Reshape", after, [1]), axis=0)
        x = graph.op("Pad", x, pads)
        even = graph.op("Slice", x, [0], [2**31], [2], [2])
        odd = graph.op("Slice", x, [1], [2**31], [2], [2])
        p, q = (graph.constant(np.ascontiguousarray(weight[:, :, tap::2])) for tap in (0, 1))
        first = graph.op("Conv", even, p, group=groups)  # one more than there are pairs
        second = graph.op("Conv", odd, q, bias, group=groups)
        later = graph.op("Slice", even, [1], [2**31], [2])
        ends = graph.op("Reshape", pairs, [1])
        whole = graph.op("Slice", odd, [0], graph.op("Shape", later, start=2), [2])
        both = graph.op("Conv", graph.op("Add", whole, later), graph.op("Add", p, q), group=groups)
        here = graph.op("Slice", first, [0], ends, [2])
        there = graph.op("Slice", first, [1], graph.op("Add", ends, 1), [2])
        second = graph.op("Slice", second, [0], ends, [2])
        made_even = graph.op("Add", here, second)
        made_odd = graph.op("Sub", graph.op("Slice", both, [0], ends, [2]), there)
        # `second` holds the bias once: taken away with it, it is added twice.
        made_odd = graph.op("Add", graph.op("Sub", made_odd, second), (2 * bias)[:, None])
        x = graph.op(
            "Concat",
            graph.op("Unsqueeze", made_even, [3]),
            graph.op("Unsqueeze", made_odd, [3]),
            axis=3,
        )
        x = graph.op("Transpose", x, perm=[0, 2, 3, 1])
        x = graph.op("Reshape", x, [0, -1, weight.shape[0]])
        return graph.op("Slice", x, [0], graph.op("Reshape", frames, [1]), [1])


class Int8:
    """8-bit inputs times 8-bit weights (symmetric, one scale per output channel), summed in 32 bits.

    In the encoder, where norms keep values in bounds, the range of each input is fixed at export. Between the
    convolutions nothing does: loud frames are ten thousand times quiet ones, and one scale for both leaves
    nothing of the quiet ones. There each step of the convolution has a scale of its own, the largest value
    that it reads. Neither depends on what else is in the batch.

    Args:
        ranges: key of a product -> smallest and largest value of its input in calibration.
        weight_levels: 127, or 63 for processors without VNNI, whose 16-bit sums could overflow.
    """

    def __init__(self, ranges: Mapping[str, tuple[float, float]], weight_levels: int = 127) -> None:
        self.ranges = ranges
        self.levels = weight_levels
        self._quantised: dict[tuple[str, float, int], str] = {}

    def _range(self, key: str) -> tuple[float, int]:
        """Scale and zero point; zero is exact."""
        low, high = min(0.0, self.ranges[key][0]), max(0.0, self.ranges[key][1])
        scale = max(high - low, 1e-12) / 255
        return scale, int(np.clip(round(-low / scale), 0, 255))

    def _quantise(self, graph: Graph, x: str, scale: float, zero: int) -> str:
        key = (x, scale, zero)
        if key not in self._quantised:
            self._quantised[key] = graph.op("QuantizeLinear", x, np.float32(scale), np.uint8(zero))
        return self._quantised[key]

    def _weights(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(..., K, N) -> int8 and the scale of each column, (..., 1, N)."""
        scale = np.maximum(np.abs(weight).max(-2, keepdims=True), 1e-12) / self.levels
        return np.round(weight / scale).astype(np.int8), scale.astype(np.float32)

    def _product(
        self,
        graph: Graph,
        x: str,
        scale: float,
        zero: int,
        weight: np.ndarray,
        bias: np.ndarray | None,
    ) -> str:
        integers, scales = self._weights(weight)
        return graph.op(
            "MatMulIntegerToFloat",
            x,
            integers,
            np.float32(scale),
            scales.reshape(-1),
            np.uint8(zero),
            None,
            bias,
            domain=RUNTIME_DOMAIN,
        )

    def linear(
        self, graph: Graph, x: str, weight: np.ndarray, bias: np.ndarray | None, key: str
    ) -> str:
        scale, zero = self._range(key)
        x = self._quantise(graph, x, scale, zero)
        return self._product(graph, x, scale, zero, weight.T, bias)

    def convolve(
        self,
        graph: Graph,
        x: str,
        frames: str,
        weight: np.ndarray,
        bias: np.ndarray | None,
        stride: int,
        key: str,
    ) -> str:
        channels, incoming, kernel = weight.shape
        index = _steps(graph, frames, kernel, stride)
        high, low = (graph.op(f"Reduce{kind}", x, [2], keepdims=0) for kind in ("Max", "Min"))
        largest = graph.op("Max", high, graph.op("Neg", low))  # of each frame, (B, T)
        largest = graph.op("ReduceMax", graph.op("Gather", largest, index, axis=1), [2], keepdims=1)
        scale = graph.op(
            "Mul", graph.op("Max", largest, 1e-9), np.float32(1 / 127)
        )  # (B, frames, 1)
        x = graph.op("Reshape", graph.op("Gather", x, index, axis=1), [-1, kernel * incoming])
        rows = graph.op("Reshape", scale, [-1])
        middle = graph.op(
            "ConstantOfShape",
            graph.op("Shape", rows),
            value=numpy_helper.from_array(np.array([128], np.uint8)),
        )
        x = graph.op("QuantizeLinear", x, rows, middle, axis=0)
        shape = graph.op("Concat", graph.op("Shape", scale, end=2), [kernel * incoming], axis=0)
        x = graph.op("Reshape", x, shape)
        flat = weight.transpose(2, 1, 0).reshape(kernel * incoming, channels)
        x = graph.op("Mul", self._product(graph, x, 1.0, 128, flat, None), scale)
        return x if bias is None else graph.op("Add", x, bias)

    def positional(
        self,
        graph: Graph,
        x: str,
        frames: str,
        weight: np.ndarray,
        bias: np.ndarray,
        groups: int,
        before: int,
        key: str,
    ) -> str:
        scale, zero = self._range(key)
        x = self._quantise(graph, x, scale, zero)
        block = POSITIONAL_BLOCK
        width, incoming, kernel = weight.shape
        outgoing = width // groups
        reach = -(-(block + kernel - 1) // block)  # blocks that a block of output frames looks at
        # Pad with the code of zero, to whole blocks.
        blocks = graph.op("Div", graph.op("Add", frames, block - 1), block)
        after = graph.op("Sub", graph.op("Mul", graph.op("Add", blocks, reach - 1), block), frames)
        after = graph.op("Sub", after, before)
        pads = graph.op(
            "Concat",
            [0, before, 0, 0],
            graph.op("Reshape", after, [1]),
            [0],
            axis=0,
        )
        x = graph.op("Pad", x, pads, np.uint8(zero))
        x = graph.op("Reshape", x, [0, -1, block, groups, incoming])
        x = graph.op("Transpose", x, perm=[0, 3, 1, 2, 4])
        rows = graph.op("Unsqueeze", graph.op("Range", 0, blocks, 1), [1])
        index = graph.op("Add", rows, np.arange(reach, dtype=np.int64)[None])
        x = graph.op("Gather", x, index, axis=2)  # (B, groups, blocks, reach, block, incoming)
        x = graph.op("Reshape", x, [0, 0, -1, reach * block * incoming])
        spread = np.zeros((groups, reach * block, incoming, block, outgoing), np.float32)
        taps = weight.reshape(groups, outgoing, incoming, kernel).transpose(0, 3, 2, 1)
        for frame in range(block):
            spread[:, frame : frame + kernel, :, frame] = taps
        flat = spread.reshape(groups, reach * block * incoming, block * outgoing)
        whole, scales = self._weights(flat)
        x = graph.op("MatMulInteger", x, whole, np.uint8(zero))
        x = graph.op("Mul", graph.op("Cast", x, to=1), scales * np.float32(scale))
        x = graph.op("Reshape", x, [0, groups, -1, block, outgoing])
        x = graph.op("Transpose", x, perm=[0, 2, 3, 1, 4])
        x = graph.op("Reshape", x, [0, -1, width])
        x = graph.op("Slice", x, [0], graph.op("Reshape", frames, [1]), [1])
        return graph.op("Add", x, bias)


def _steps(graph: Graph, frames: str, kernel: int, stride: int) -> str:
    """Indices of what each step of a strided convolution reads, (`frames`, kernel)."""
    starts = graph.op("Mul", graph.op("Range", 0, frames, 1), stride)
    return graph.op(
        "Add", graph.op("Unsqueeze", starts, [1]), np.arange(kernel, dtype=np.int64)[None]
    )


def windows(graph: Graph, x: str, frames: str, kernel: int, stride: int) -> str:
    """(B, T) -> (B, `frames`, kernel): what each step of a strided convolution reads."""
    return graph.op("Gather", x, _steps(graph, frames, kernel, stride), axis=1)
