"""Draws the pictures of README and docs again: `make pictures`.

    python docs/pictures.py [COMPRESSED_FOLDER]

Without a folder only the method is drawn; with one, also its curves and what it keeps.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sslim.report.inspect import inspect_model
from sslim.report.pictures import draw_curves, draw_method

HERE = Path(__file__).parent / "pictures"


def main(folders: list[str]) -> None:
    """Draws everything that can be drawn from what is given."""
    HERE.mkdir(exist_ok=True)
    draw_method(HERE / "method.png")
    for folder in folders:
        draw_curves(Path(folder) / "run", HERE / "curves.png")
        inspect_model(folder).save_png(HERE / "kept.png")


if __name__ == "__main__":
    main(sys.argv[1:])
