"""Pictures that stand on their own: the method at a glance, and the curves of a run.

Needs matplotlib (`pip install 'sslim[plot]'`). Colours are told apart by colour-blind readers, and every
picture has its own white ground, so it can be read on a dark page.
"""

from __future__ import annotations

from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslim.errors import OutputError
from sslim.layout import KINDS
from sslim.report.formats import log as read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY, INK = "#2563a8", "#d9730d", "#2e7d5b", "#d9dde3", "#1f2933"


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OutputError(
            "pictures need matplotlib, which is not installed",
            "install it with pip install 'sslim[plot]'",
        ) from error
    return Figure(figsize=(width, height), facecolor="white")


def draw_curves(run: str | Path, out: str | Path) -> None:
    """Draws the log of a run: losses, expected and target sparsity, open gates, shrinks.

    Args:
        run: the `run` folder inside a compressed model's folder (it holds `metrics.jsonl`).
        out: PNG or SVG file.

    Raises:
        OutputError: there is no log, or the picture cannot be written.
    """
    log = Path(run) / "metrics.jsonl"
    if not log.is_file():
        raise OutputError(f"{run} has no metrics.jsonl", "give the run folder of a finished run")
    lines, _ = read_log(log)
    joint = [line for line in lines if line["stage"] == "stage1"]
    recovery = [line for line in lines if line["stage"] == "stage2"]
    figure = _figure(9, 6)
    loss, sparsity, gates = figure.subplots(3, 1, sharex=True)
    steps = [line["update"] for line in joint]
    offset = steps[-1] if steps else 0
    later = [offset + line["update"] for line in recovery]
    loss.plot(steps, [line["loss"] for line in joint], color=BLUE, label="joint stage")
    loss.plot(later, [line["loss"] for line in recovery], color=GREEN, label="recovery stage")
    loss.set_ylabel("distillation loss")
    if joint:
        sparsity.plot(steps, [line["target"] for line in joint], color=GREY, lw=3, label="target")
        sparsity.plot(steps, [line["sparsity"] for line in joint], color=BLUE, label="expected")
        colours = (BLUE, ORANGE, GREEN, "#8a4fbf", "#6b7280")
        for (kind, label), colour in zip(KINDS.items(), cycle(colours), strict=False):
            known = [line for line in joint if f"open.{kind}" in line]
            if known:
                values = [line[f"open.{kind}"] for line in known]
                gates.plot([line["update"] for line in known], values, color=colour, label=label)
    sparsity.set_ylabel("sparsity")
    gates.set_ylabel("mean open probability\nof the units left")
    gates.set_xlabel("update")
    for axes in (loss, sparsity, gates):
        for before, line in pairwise(joint):
            if line["shrinks"] > before["shrinks"]:
                axes.axvline(line["update"], color="#8a4fbf", lw=0.8, ls=":")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="best")
    figure.tight_layout()
    _save(figure, out)


def draw_method(out: str | Path) -> None:
    """Draws the method at a glance.

    Raises:
        OutputError: the picture cannot be written.
    """
    figure = _figure(11, 5.0)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 110)
    axes.set_ylim(0, 50)
    axes.axis("off")

    def box(x: float, y: float, w: float, h: float, text: str, face: str, **more: Any) -> None:
        from matplotlib.patches import FancyBboxPatch

        style = "round,pad=0,rounding_size=0.8"
        axes.add_patch(
            FancyBboxPatch((x, y), w, h, style, fc=face, ec=more.pop("edge", INK), lw=1.1)
        )
        axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", color=INK, **more)

    def arrow(x: float, y: float, to_x: float, to_y: float, colour: str = INK, **more: Any) -> None:
        axes.annotate(
            "",
            xy=(to_x, to_y),
            xytext=(x, y),
            arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.4, **more},
        )

    axes.text(2, 47, "1  distil and prune together", fontsize=12, weight="bold", color=INK)
    axes.text(60, 47, "2  cut", fontsize=12, weight="bold", color=INK)
    axes.text(79, 47, "3  distil again, save", fontsize=12, weight="bold", color=INK)
    box(2, 22, 10, 7, "your\naudio", "white", fontsize=10)
    names = ("conv\nfront-end", "layers\n1-4", "layers\n5-8", "layers\n9-12")
    for index, name in enumerate(names):
        x = 17 + 10 * index
        box(x, 35, 8, 7, name, GREY, fontsize=9)
        box(x, 8, 8, 7, name, "#dbe8f6", fontsize=9, edge=BLUE)
        if index:
            arrow(x - 2, 38.5, x, 38.5)
            arrow(x - 2, 11.5, x, 11.5)
        arrow(x + 4, 35, x + 4, 15.4, ORANGE)
        axes.text(x + 4.7, 25, f"layer {4 * index}", fontsize=8, color=ORANGE, va="center")
        for mark in range(4):
            open_ = (mark + index) % 3 != 1
            axes.plot(x + 1.3 + 1.8 * mark, 6, "s", ms=6, mec=BLUE, mfc=BLUE if open_ else "white")
    arrow(12, 27, 17, 37)
    arrow(12, 24, 17, 13)
    axes.text(57, 38.5, "teacher\n(frozen)", fontsize=9, color=INK, va="center")
    axes.text(57.5, 6.5, "student", fontsize=9, color=BLUE, va="center")
    axes.text(
        17,
        2.0,
        "gates on conv channels, heads and FFN units,\npushed towards your budget",
        fontsize=9,
        color=BLUE,
        va="center",
    )
    box(61, 21, 12, 8, "plan:\nwhat is kept", "white", fontsize=10)
    arrow(54.5, 8, 62, 20.5, BLUE)
    for index, height in enumerate((4.5, 3.0, 4.0, 2.2)):
        left = 79 + 4.6 * index
        box(left, 25 - height / 2, 3.4, height, "", "#dbe8f6", edge=BLUE)
    arrow(73, 25, 78.5, 25)
    axes.text(87.5, 30, "small student", fontsize=9, color=BLUE, ha="center")
    axes.text(87.5, 37.5, "teacher's layers again", fontsize=9, color=ORANGE, ha="center")
    arrow(87.5, 36.4, 87.5, 32, ORANGE)
    arrow(97.5, 25, 100.5, 25)
    box(100.7, 20, 8.6, 10, "folder\nthat loads\nanywhere", "#e3f1ea", fontsize=9, edge=GREEN)
    _save(figure, out)


def _save(figure: Figure, out: str | Path) -> None:
    try:
        figure.savefig(out, dpi=150)
    except OSError as error:
        raise OutputError(
            f"'{out}' cannot be written: {error.strerror}", "name another file"
        ) from error
