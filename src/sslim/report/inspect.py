"""What a model keeps, layer by layer, beside the dense model it came from.

Reads `config.json` alone: no weights are loaded, so it is instant even for the largest models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console
from rich.table import Table

from sslim.cost import MACS_SECONDS, macs, parameters
from sslim.errors import OutputError
from sslim.layout import ModelShape, layout_of
from sslim.plan import PruningPlan
from sslim.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR = 16
"""Characters of a full bar."""


@dataclass(frozen=True)
class Inspection:
    """A model's shape and plan, ready to be shown."""

    name: str
    shape: ModelShape
    plan: PruningPlan

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
        parts = self.parts()
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
        }

    def facts(self) -> InspectionFacts:
        """The same as a file says it."""
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
        for table in (convolutions, layers, parts):
            console.print(table)

    def save_png(self, path: str | Path) -> None:
        """Draws the kept units as a picture.

        Raises:
            OutputError: matplotlib is missing, or the file cannot be written.
        """
        figure = self.figure()
        try:
            figure.savefig(path, dpi=150, format="png")
        except OSError as error:
            raise OutputError(
                f"'{path}' cannot be written: {error.strerror}", "name another file"
            ) from error

    def figure(self) -> Figure:
        """Bars of what is kept, for a picture file (needs matplotlib)."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise OutputError(
                "pictures need matplotlib, which is not installed",
                "install it with pip install 'sslim[plot]'",
            ) from error
        facts = self.to_dict()
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        front, heads, ffn = figure.subplots(1, 3, width_ratios=(1, 1.4, 1.4))
        rows = facts["convolutions"]
        _columns(
            front, "conv channels", [r["channels"] for r in rows], [r["dense"] for r in rows], 0
        )
        rows = facts["layers"]
        _columns(
            heads,
            "attention heads",
            [r["heads"] or 0 for r in rows],
            [r["dense_heads"] for r in rows],
            1,
        )
        _columns(ffn, "FFN units", [r["ffn"] or 0 for r in rows], [r["dense_ffn"] for r in rows], 1)
        share = facts["parameters"] / facts["dense_parameters"]
        figure.suptitle(
            f"{facts['parameters']:,} of {facts['dense_parameters']:,} parameters ({share:.1%})"
        )
        return figure


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


def _columns(axes: Any, title: str, kept: list[int], dense: list[int], first: int) -> None:
    places = range(first, first + len(kept))
    axes.bar(places, dense, color="#d9dde3", label="dense")
    axes.bar(places, kept, color="#2563a8", label="kept")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("convolution" if first == 0 else "layer", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


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
        plan=PruningPlan.dense(shape) if plan is None else PruningPlan.from_dict(plan),
    )
