"""What a model keeps, layer by layer, beside the dense model it came from.

Reads `config.json` alone: no weights are loaded, so it is instant even for the largest models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.table import Table

from sslim.cost import MACS_SECONDS, macs, parameters
from sslim.layout import KINDS, ModelShape, layout_of
from sslim.plan import PruningPlan
from sslim.records import Record

BAR = 16
"""Characters of a full bar."""


@dataclass(frozen=True)
class KeptUnits:
    """What is left of one convolution's channels, or of one layer's heads or feed-forward units."""

    index_of: str
    """What is numbered: `convolution` or `layer`."""
    number: int
    """Convolutions count from 0, layers from 1."""
    dense: int
    kept: tuple[int, ...] | None
    """Indices in the dense model; None: the whole block is gone."""


@dataclass(frozen=True)
class Inspection:
    """A model's shape and plan, ready to be shown."""

    name: str
    shape: ModelShape
    plan: PruningPlan

    def kept_units(self) -> dict[str, list[KeptUnits]]:
        """Kind of units -> what is kept wherever there are such units; blocks, single units, are left out."""
        rows: dict[str, list[KeptUnits]] = {}
        for axis in layout_of(self.shape).axes:
            if axis.size == 1:
                continue
            gone = axis.inside is not None and not self.plan.kept[axis.inside]
            kept = None if gone else self.plan.kept[axis.name]
            number = axis.layer + (axis.index_of == "layer")
            units = KeptUnits(axis.index_of, number, axis.size, kept)
            rows.setdefault(axis.kind, []).append(units)
        return rows

    def parts(self) -> dict[str, dict[str, int]]:
        """Part of the model -> parameters and MACs per second of audio, now and dense."""
        layout = layout_of(self.shape)
        now, dense = self.plan.widths, PruningPlan.dense(self.shape).widths
        sizes = [parameters(layout).by_part(widths) for widths in (now, dense)]
        products = [macs(layout).by_part(widths) for widths in (now, dense)]
        return {
            part: {
                "parameters": sizes[0][part],
                "dense_parameters": sizes[1][part],
                "macs_per_second": round(products[0].get(part, 0) / MACS_SECONDS),
                "dense_macs_per_second": round(products[1].get(part, 0) / MACS_SECONDS),
            }
            for part in sizes[0]
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything that is shown, for scripts."""
        parts, axis = self.parts(), layout_of(self.shape).axis
        names = ("parameters", "dense_parameters", "macs_per_second", "dense_macs_per_second")
        return {
            "model": self.name,
            "family": self.shape.family,
            **{name: sum(part[name] for part in parts.values()) for name in names},
            "parts": parts,
            "convolutions": [
                {"channels": len(kept), "dense": size}
                for kept, size in zip(self.plan.conv, self.shape.conv_channels, strict=True)
            ],
            "layers": [
                {
                    "heads": None if layer.heads is None else len(layer.heads),
                    "kept_heads": None if layer.heads is None else list(layer.heads),
                    "dense_heads": self.shape.heads,
                    "ffn": None if layer.ffn is None else len(layer.ffn),
                    "dense_ffn": self.shape.intermediate_size,
                }
                for layer in self.plan.layers
            ],
            "axes": {
                name: {"kept": len(units), "kept_units": list(units), "dense": axis[name].size}
                for name, units in self.plan.others.items()
            },
        }

    def record(self) -> InspectionFacts:
        """The same as a record, to be written to a file."""
        return InspectionFacts.from_dict(self.to_dict())

    def render(self, console: Console) -> None:
        """Prints tables with bars."""
        facts = self.to_dict()
        convolutions = Table(title="Front-end", title_justify="left")
        for column in ("convolution", "channels kept", ""):
            convolutions.add_column(column)
        for index, row in enumerate(facts["convolutions"]):
            convolutions.add_row(str(index), *_bar(row["channels"], row["dense"]))
        layers = Table(title="Encoder", title_justify="left")
        for column in ("layer", "heads kept", "", "FFN units kept", ""):
            layers.add_column(column)
        for index, row in enumerate(facts["layers"], start=1):
            heads = _bar(row["heads"], row["dense_heads"])
            layers.add_row(str(index), *heads, *_bar(row["ffn"], row["dense_ffn"]))
        others = Table(title="Others", title_justify="left")
        for column in ("units", "kept", ""):
            others.add_column(column)
        for name, row in facts["axes"].items():
            kind, _, index = name.partition(".")
            others.add_row(f"{KINDS[kind]} {index}", *_bar(row["kept"], row["dense"]))
        parts = Table(title="Parts", title_justify="left")
        for column in ("part", "parameters", "kept", "", "MACs/s", "kept", ""):
            parts.add_column(column, justify="left" if column in ("part", "") else "right")
        rows = [*facts["parts"].items(), ("total", facts)]
        for name, part in rows:
            parts.add_row(
                name.replace("_", " "),
                _short(part["parameters"]),
                *_share(part["parameters"], part["dense_parameters"]),
                _short(part["macs_per_second"]),
                *_share(part["macs_per_second"], part["dense_macs_per_second"]),
                end_section=name == rows[-2][0],
            )
        # A folder may be called [red].
        console.print(f"{facts['model']}: {facts['family']}", highlight=False, markup=False)
        for table in (convolutions, layers, others, parts):
            if table.row_count:
                console.print(table)


@dataclass(frozen=True)
class PartSizes:
    """A part of a model beside that of the dense model."""

    parameters: int
    dense_parameters: int
    macs_per_second: int
    dense_macs_per_second: int


@dataclass(frozen=True)
class KeptChannels:
    """One convolution of the front-end."""

    channels: int
    dense: int


@dataclass(frozen=True)
class KeptLayer:
    """One layer of the encoder; None where a whole block is gone."""

    heads: int | None
    kept_heads: tuple[int, ...] | None
    """Indices in the dense model."""
    dense_heads: int
    ffn: int | None
    dense_ffn: int


@dataclass(frozen=True)
class KeptAxis:
    """Units of any other kind."""

    kept: int
    kept_units: tuple[int, ...]
    """Indices in the dense model."""
    dense: int


@dataclass(frozen=True)
class InspectionFacts(Record):
    """What `sslim inspect --json` writes."""

    KIND: ClassVar[str] = "inspection"

    model: str
    family: str
    parameters: int
    dense_parameters: int
    macs_per_second: int
    """Per second of audio, in an utterance of 10 s."""
    dense_macs_per_second: int
    parts: dict[str, PartSizes]
    convolutions: tuple[KeptChannels, ...]
    layers: tuple[KeptLayer, ...]
    axes: dict[str, KeptAxis]
    """All others that have lost units."""


def _bar(kept: int | None, size: int) -> tuple[str, str]:
    if kept is None:
        return f"- / {size}", "[dim]block removed[/dim]"
    full = round(BAR * kept / size)
    return f"{kept} / {size}", "█" * full + "░" * (BAR - full)


def _share(part: int, whole: int) -> tuple[str, str]:
    if not whole:
        return "-", ""
    width = BAR // 2
    full = round(width * part / whole)
    return f"{part / whole:.1%}", "█" * full + "░" * (width - full)


def _short(count: int) -> str:
    """Three digits and a unit: 1.78M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def inspect_model(model: str | Path, *, revision: str | None = None) -> Inspection:
    """Inspects a folder, a hub id or a checkpoint file, dense or compressed.

    Raises:
        TeacherError: it cannot be read, is of an unknown family, or its plan does not fit it.
    """
    from sslim.backbone.loading import load_config

    config = load_config(model, revision=revision)
    shape = ModelShape.from_config(config)
    plan = getattr(config, "plan", None)
    return Inspection(
        name=str(model) if revision is None else f"{model}@{revision}",
        shape=shape,
        plan=PruningPlan.dense(shape) if plan is None else PruningPlan.from_dict(plan, shape),
    )
