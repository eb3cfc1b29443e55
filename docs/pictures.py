"""Draws the pictures of README and docs again: `make pictures`.

    python docs/pictures.py [COMPRESSED_FOLDER]

Without a folder only the method is drawn; with one, also its curves and what it keeps.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from sslim.report.inspect import inspect_model
from sslim.report.page import write_report
from sslim.report.pictures import draw_curves, draw_method

HERE = Path(__file__).parent / "pictures"


def main(folders: list[str]) -> None:
    """Draws everything that can be drawn from what is given."""
    HERE.mkdir(exist_ok=True)
    draw_method(HERE / "method.png")
    for folder in folders:
        draw_curves(Path(folder) / "run", HERE / "curves.png")
        inspect_model(folder).save_png(HERE / "kept.png")
        draw_report(Path(folder))


def draw_report(folder: Path) -> None:
    """The top of a folder's report as a browser shows it (needs Chromium: `make browser`)."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("no Chromium: the picture of the report stays as it is")
        return
    from playwright.sync_api import sync_playwright

    report = write_report([folder], folder / "report.html")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 860})
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("body[data-drawn]")
        page.screenshot(path=HERE / "report.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
