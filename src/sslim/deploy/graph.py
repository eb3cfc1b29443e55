"""Writing an ONNX graph: nodes one after the other, constants by value, names by themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
"""The first with a Gelu of its own; ONNX Runtime reads it since 1.17."""
IR_VERSION = 10
RUNTIME_DOMAIN = "com.microsoft"
"""Operators that ONNX Runtime adds to the standard's."""

FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64

Value = str | int | float | list[int] | np.ndarray | np.generic
"""An input of a node: the name of another's output, or a constant (int: int64, float: float32)."""


class Graph:
    """A graph under construction. Methods return the names of what they add."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._small: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0
        self._beyond_standard = False
        self.part = ""
        """In front of the names of nodes, so that a profile can tell parts of the model apart."""

    @contextlib.contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Nodes that are added inside belong to a part of the model."""
        outside, self.part = self.part, f"{part}/"
        try:
            yield
        finally:
            self.part = outside

    def constant(self, value: Any) -> str:
        """A constant; small ones of equal value are one."""
        array = np.asarray(value)
        if not isinstance(value, np.ndarray | np.generic):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        array = np.ascontiguousarray(array).reshape(array.shape)  # the former makes scalars vectors
        key = (array.dtype.str, array.shape, array.tobytes() if array.size <= 4096 else b"")
        if array.size <= 4096 and key in self._small:
            return self._small[key]
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        if array.size <= 4096:
            self._small[key] = name
        return name

    def op(self, kind: str, *inputs: Value | None, **attributes: Any) -> str:
        """A node with one output; None leaves an optional input out."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(
        self,
        kind: str,
        outputs: int,
        *inputs: Value | None,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """A node with several outputs."""
        names = []
        for value in inputs:
            if value is None:
                names.append("")
            else:
                names.append(value if isinstance(value, str) else self.constant(value))
        self._beyond_standard |= bool(domain)
        made = [self._name() for _ in range(outputs)]
        name = f"{self.part}{kind}_{self._count}"
        self.nodes.append(helper.make_node(kind, names, made, name, domain=domain, **attributes))
        return made

    def over_chunks(self, count: str, body: Callable[[str], str]) -> str:
        """What `body` gives for chunk numbers 0 to `count` - 1, stacked along a new first axis.

        The body may use everything written before. Its intermediate tensors exist for one chunk only, so they
        stay in the processor's cache.
        """
        outside, self.nodes = self.nodes, []
        part, self.part = self.part, "chunk/"
        number, condition = self._name(), self._name()
        result = body(number)
        go_on = self.op("Identity", condition)
        inside, self.nodes, self.part = self.nodes, outside, part
        graph = helper.make_graph(
            inside,
            f"chunk{number}",
            [
                helper.make_tensor_value_info(number, INT64, []),
                helper.make_tensor_value_info(condition, TensorProto.BOOL, []),
            ],
            [
                helper.make_tensor_value_info(go_on, TensorProto.BOOL, []),
                helper.make_tensor_value_info(result, FLOAT, None),
            ],
        )
        return self.op("Loop", count, None, body=graph)

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count - 1}"

    def model(
        self,
        inputs: dict[str, tuple[int, list[str | int]]],
        outputs: dict[str, tuple[str, int, list[str | int]]],
        metadata: dict[str, str],
    ) -> onnx.ModelProto:
        """The finished model.

        Args:
            inputs: name -> element type and shape (a string is a dynamic dimension).
            outputs: name -> name of the value inside, element type and shape.
            metadata: what travels in the file.
        """
        last = [
            helper.make_node("Identity", [value], [name]) for name, (value, _, _) in outputs.items()
        ]
        graph = helper.make_graph(
            [*self.nodes, *last],
            "sslim",
            [
                helper.make_tensor_value_info(name, *type_and_shape)
                for name, type_and_shape in inputs.items()
            ],
            [
                helper.make_tensor_value_info(n, kind, shape)
                for n, (_, kind, shape) in outputs.items()
            ],
            self.initializers,
        )
        imports = [helper.make_opsetid("", OPSET)]
        if self._beyond_standard:
            imports.append(helper.make_opsetid(RUNTIME_DOMAIN, 1))
        model = helper.make_model(graph, opset_imports=imports, producer_name="sslim")
        model.ir_version = IR_VERSION
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model
