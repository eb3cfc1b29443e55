"""What is kept: which units of each axis of a dense model survive.

Pure Python (no torch), because four readers share it: gates write a plan, surgery obeys it, the saved
config carries it, the report draws it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sslim.cost import COSTS, macs
from sslim.cost import MACS_SECONDS as MACS_SECONDS
from sslim.errors import BudgetError
from sslim.layout import SAMPLING_RATE as SAMPLING_RATE
from sslim.layout import ModelShape, layout_of


@dataclass(frozen=True)
class LayerPlan:
    """What one encoder layer keeps. `None`: the whole block is gone; `()`: only its output bias is left."""

    heads: tuple[int, ...] | None
    ffn: tuple[int, ...] | None


@dataclass(frozen=True)
class PruningPlan:
    """The kept indices of every axis, in the numbering of the dense model, ascending.

    A block that is gone keeps `()` of its one unit, and so do the units inside it.
    """

    kept: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, conv: Sequence[tuple[int, ...]], layers: Sequence[LayerPlan]) -> PruningPlan:
        """A plan from what each convolution and each layer keeps."""
        kept: dict[str, tuple[int, ...]] = {}
        for index, channels in enumerate(conv):
            kept[f"conv.{index}"] = channels
        for index, layer in enumerate(layers):
            kept[f"head.{index}"] = layer.heads or ()
            kept[f"attention_block.{index}"] = () if layer.heads is None else (0,)
            kept[f"ffn.{index}"] = layer.ffn or ()
            kept[f"ffn_block.{index}"] = () if layer.ffn is None else (0,)
        return cls(kept)

    @classmethod
    def dense(cls, shape: ModelShape) -> PruningPlan:
        """The plan that keeps everything."""
        return cls({axis.name: tuple(range(axis.size)) for axis in layout_of(shape).axes})

    def floor(self, shape: ModelShape, kinds: Iterable[str]) -> PruningPlan:
        """The smallest plan within this one that pruning only these kinds can reach."""
        wanted = set(kinds)
        return self.replaced(
            {
                axis.name: self.kept[axis.name][: axis.at_least]
                for axis in layout_of(shape).axes
                if axis.kind in wanted
            },
            shape,
        )

    def replaced(self, kept: Mapping[str, tuple[int, ...]], shape: ModelShape) -> PruningPlan:
        """This plan with some axes kept otherwise; what lies inside a block that is gone goes with it."""
        merged = {**self.kept, **kept}
        for axis in layout_of(shape).axes:
            if axis.inside and not merged[axis.inside]:
                merged[axis.name] = ()
        return PruningPlan(merged)

    @property
    def widths(self) -> dict[str, int]:
        """Axis -> number of kept units."""
        return {name: len(units) for name, units in self.kept.items()}

    @property
    def conv(self) -> tuple[tuple[int, ...], ...]:
        """Kept channels of each convolution."""
        return tuple(units for name, units in self.kept.items() if name.startswith("conv."))

    @property
    def layers(self) -> tuple[LayerPlan, ...]:
        """What each encoder layer keeps."""

        def inside(block: str, units: str, index: int) -> tuple[int, ...] | None:
            return self.kept[f"{units}.{index}"] if self.kept[f"{block}.{index}"] else None

        count = sum(name.startswith("attention_block.") for name in self.kept)
        return tuple(
            LayerPlan(inside("attention_block", "head", index), inside("ffn_block", "ffn", index))
            for index in range(count)
        )

    def parameters(self, shape: ModelShape) -> int:
        """Exact number of parameters of the backbone that this plan describes."""
        return self.count(shape, "parameters")

    def macs(self, shape: ModelShape, seconds: float = MACS_SECONDS) -> int:
        """Multiply-accumulates of one utterance of `seconds`."""
        return int(macs(layout_of(shape), seconds).total(self.widths))

    def count(self, shape: ModelShape, quantity: str) -> int:
        """`parameters` or `macs` (see `cost.COSTS`)."""
        return int(COSTS[quantity](layout_of(shape)).total(self.widths))

    def validate(self, shape: ModelShape) -> None:
        """Raises BudgetError unless the plan fits the shape and leaves a working front-end."""
        layout = layout_of(shape)
        if set(self.kept) != set(layout.axis):
            raise BudgetError(
                f"the plan has {len(self.conv)} convolutions and {len(self.layers)} layers, "
                f"the model {len(shape.conv_channels)} and {shape.layers}",
                "use the plan with the model it was made for",
            )
        for axis in layout.axes:
            kept = self.kept[axis.name]
            ascending = all(a < b for a, b in pairwise(kept))
            if not ascending or (kept and not (0 <= kept[0] and kept[-1] < axis.size)):
                raise BudgetError(
                    f"the plan's units of {axis.name} must be ascending indices below {axis.size}, "
                    f"got {list(kept)[:8]}",
                    "write the plan again from the model it belongs to",
                )
            if len(kept) < axis.at_least:
                raise BudgetError(
                    f"the plan keeps {len(kept)} units of {axis.name}, which needs {axis.at_least}",
                    "keep at least one channel in every convolution",
                )

    def within(self, other: PruningPlan) -> bool:
        """Whether everything this plan keeps is also kept by `other`."""
        return self.kept.keys() == other.kept.keys() and all(
            set(units) <= set(other.kept[name]) for name, units in self.kept.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form: `{"conv": [[...]], "layers": [{"heads": [...] or null, "ffn": [...] or null}]}`."""

        def plain(kept: tuple[int, ...] | None) -> list[int] | None:
            return None if kept is None else list(kept)

        return {
            "conv": [list(kept) for kept in self.conv],
            "layers": [
                {"heads": plain(layer.heads), "ffn": plain(layer.ffn)} for layer in self.layers
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruningPlan:
        """Inverse of `to_dict`."""

        def kept(values: Sequence[int] | None) -> tuple[int, ...] | None:
            return None if values is None else tuple(int(value) for value in values)

        return cls.of(
            [tuple(int(value) for value in values) for values in data["conv"]],
            [LayerPlan(kept(layer["heads"]), kept(layer["ffn"])) for layer in data["layers"]],
        )
