"""What a model keeps, as a picture file for slides and papers (`sslim inspect --png`).

plotly, which draws the report, would need a browser to write one. Needs matplotlib
(`pip install 'sslim[plot]'`).
"""

from __future__ import annotations

from pathlib import Path

from sslim.errors import OutputError
from sslim.report.inspect import Inspection
from sslim.report.words import Words


def save_png(inspection: Inspection, path: str | Path) -> None:
    """Draws the kept units of every convolution and layer as bars.

    Raises:
        OutputError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OutputError(
            "pictures need matplotlib, which is not installed",
            "install it with pip install 'sslim[plot]'",
        ) from error
    say = Words("en").say
    units = inspection.kept_units()
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    ratios = [1.0, *[1.4] * (len(units) - 1)]
    for axes, (kind, rows) in zip(
        figure.subplots(1, len(units), width_ratios=ratios), units.items(), strict=True
    ):
        numbers = [row.number for row in rows]
        axes.bar(numbers, [row.dense for row in rows], color="#d9dde3", label="dense")
        axes.bar(numbers, [len(row.kept or ()) for row in rows], color="#2563a8", label="kept")
        axes.set_title(Words("en").kind(kind), fontsize=10)
        axes.set_xlabel(say(rows[0].index_of).lower(), fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    facts = inspection.to_dict()
    kept, dense = facts["parameters"], facts["dense_parameters"]
    figure.suptitle(f"{kept:,} of {dense:,} parameters ({kept / dense:.1%})")
    try:
        figure.savefig(path, dpi=150, format="png")
    except OSError as error:
        raise OutputError(
            f"'{path}' cannot be written: {error.strerror}", "name another file"
        ) from error
