"""Draws the pictures of README and docs again: `make pictures`.

    python docs/pictures.py [COMPRESSED_FOLDER]

Without a folder only the method is drawn; with one, also what it keeps, and its report as a browser shows it
(needs Chromium: `make browser`). Colours are told apart by colour-blind readers, and every picture has its
own white ground, so that it can be read on a dark page.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from sslim.report.inspect import inspect_model
from sslim.report.page import write_report
from sslim.report.pictures import save_png

HERE = Path(__file__).parent / "pictures"
BLUE, ORANGE, GREEN, GREY, INK = "#2563a8", "#d9730d", "#2e7d5b", "#d9dde3", "#1f2933"


def main(folders: list[str]) -> None:
    """Draws everything that can be drawn from what is given."""
    HERE.mkdir(exist_ok=True)
    draw_method(HERE / "method.png")
    for folder in folders:
        save_png(inspect_model(folder), HERE / "kept.png")
        photograph(write_report([folder], Path(folder) / "report.html"))


def photograph(report: Path) -> None:
    """The top of a report, and its curves of the training."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("no Chromium: report.png and curves.png stay as they are")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 860})
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("body[data-drawn]")
        page.screenshot(path=HERE / "report.png")
        page.locator("#training").screenshot(path=HERE / "curves.png")
        browser.close()


def draw_method(out: Path) -> None:
    """The method at a glance."""
    figure = Figure(figsize=(11, 5.0), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 110)
    axes.set_ylim(0, 50)
    axes.axis("off")

    def box(x: float, y: float, w: float, h: float, text: str, face: str, **more: Any) -> None:
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
        label = f"layer {4 * index}" if index else "front"
        axes.text(x + 4.7, 25, label, fontsize=8, color=ORANGE, va="center")
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
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1:])
