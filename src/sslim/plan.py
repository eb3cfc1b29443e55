"""What is kept: which units of each axis of a dense model survive.

Pure Python (no torch), because four readers share it: gates write a plan, surgery obeys it, the saved
config carries it, the report draws it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sslim.cost import COSTS, macs
from sslim.cost import MACS_SECONDS as MACS_SECONDS
from sslim.errors import BudgetError
from sslim.layout import KINDS, ModelShape, layout_of
from sslim.layout import SAMPLING_RATE as SAMPLING_RATE


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

    @property
    def others(self) -> dict[str, tuple[int, ...]]:
        """What is kept of every axis that `conv` and `layers` do not show."""
        shown = ("conv", "head", "attention_block", "ffn", "ffn_block")
        return {name: units for name, units in self.kept.items() if name.split(".")[0] not in shown}

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
        unshared = self.kept.keys() ^ layout.axis.keys()
        if unshared:
            raise BudgetError(
                "the plan and the model do not have the same axes: "
                f"{', '.join(name[:40] for name in sorted(unshared)[:4])}",
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
                    f"keep more {KINDS[axis.kind]} there",
                )

    def within(self, other: PruningPlan) -> bool:
        """Whether everything this plan keeps is also kept by `other`."""
        return self.kept.keys() == other.kept.keys() and all(
            set(units) <= set(other.kept[name]) for name, units in self.kept.items()
        )

    def to_dict(self, shape: ModelShape) -> dict[str, Any]:
        """JSON form of a plan for a model of this shape.

        `{"conv": [[...]], "layers": [{"heads": [...] or null, "ffn": [...] or null}]}`, which is all that
        version 0.1 knew, and `"axes": {name: [...]}` for any other axis that is not kept whole.
        """

        def plain(kept: tuple[int, ...] | None) -> list[int] | None:
            return None if kept is None else list(kept)

        data: dict[str, Any] = {
            "conv": [list(kept) for kept in self.conv],
            "layers": [
                {"heads": plain(layer.heads), "ffn": plain(layer.ffn)} for layer in self.layers
            ],
        }
        unsaid = PruningPlan.from_dict(data, shape).kept
        axes = {name: list(kept) for name, kept in self.kept.items() if kept != unsaid[name]}
        return data | ({"axes": axes} if axes else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], shape: ModelShape) -> PruningPlan:
        """Inverse of `to_dict`: whatever the data does not mention is kept whole.

        Raises:
            BudgetError: there are more or fewer convolutions or layers than in the model.
            LookupError, TypeError, ValueError: the data is no plan.
        """
        conv, layers = data["conv"], data["layers"]
        if (len(conv), len(layers)) != (len(shape.conv_channels), shape.layers):
            raise BudgetError(
                f"the plan has {len(conv)} convolutions and {len(layers)} layers, "
                f"the model {len(shape.conv_channels)} and {shape.layers}",
                "use the plan with the model it was made for",
            )
        kept = {f"conv.{index}": channels for index, channels in enumerate(conv)}
        for index, layer in enumerate(layers):
            heads, units = layer["heads"], layer["ffn"]
            kept[f"head.{index}"] = heads or ()
            kept[f"attention_block.{index}"] = () if heads is None else (0,)
            kept[f"ffn.{index}"] = units or ()
            kept[f"ffn_block.{index}"] = () if units is None else (0,)
        others = data.get("axes", {})
        if kept.keys() & others.keys():
            raise ValueError("the plan says twice what is kept of an axis")
        integers = {name: tuple(map(int, units)) for name, units in (kept | others).items()}
        return cls.dense(shape).replaced(integers, shape)
