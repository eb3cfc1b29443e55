"""The pictures of a report, drawn with plotly; each has the table of its figures behind it.

Colours are told apart by colour-blind readers (Okabe and Ito). Ink and grid are left to the page, which knows
whether it is light or dark.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any

from sslim.layout import KINDS
from sslim.measurements import Result, Timing
from sslim.report.evidence import Evidence
from sslim.report.quoting import label as shown
from sslim.report.quoting import script_json
from sslim.report.words import Words

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Drawing

BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
GREY = "rgba(140,140,140,0.35)"
MOST_POINTS = 2000
"""Of a curve; a longer log is thinned, its last line kept."""
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY)


@dataclass(frozen=True)
class Table:
    """The figures of a picture."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """One picture, as plotly's JSON, and its table."""

    key: str
    label: str
    """For those who do not see it."""
    data: str
    table: Table
    height: int


def _graphs() -> Any:
    from plotly import graph_objects

    return graph_objects


def plotly_source() -> str:
    """plotly's own JavaScript, to stand in the page."""
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def _picture(key: str, label: str, figure: Drawing, table: Table, height: int = 320) -> Picture:
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 56, "r": 16, "t": 64, "b": 48},
        height=height,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1.0, "xanchor": "right"},
        title_x=0.01,
        font={"family": "system-ui, sans-serif", "size": 13},
        template="none",
    )
    return Picture(key, label, script_json(json.loads(figure.to_json())), table, height)


def ranges(indices: Iterable[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def _short(text: str, most: int = 160) -> str:
    """Broken into lines for a hover, and cut where it is too long."""
    text = text if len(text) <= most else f"{text[:most]} ..."
    words = text.split(", ")
    lines = [", ".join(words[at : at + 8]) for at in range(0, len(words), 8)]
    return ",<br>".join(lines)


def layers(evidence: Evidence, words: Words) -> list[Picture]:
    """Units of teacher and student, a picture for each kind; hover shows indices."""
    say = words.say
    pictures = []
    for kind, units in evidence.inspection.kept_units().items():
        index_of = units[0].index_of
        numbers = [row.number for row in units]
        dense = [row.dense for row in units]
        counts = [len(row.kept or ()) for row in units]
        texts = [
            say("removed")
            if row.kept is None
            else say("kept_indices", indices=ranges(row.kept) or "-")
            for row in units
        ]
        figure = _graphs().Figure()
        figure.add_bar(
            x=numbers, y=dense, name=say("teacher"), marker_color=GREY, hovertemplate="%{y}"
        )
        figure.add_bar(
            x=numbers,
            y=counts,
            name=say("student"),
            marker_color=BLUE,
            customdata=[_short(text) for text in texts],
            hovertemplate="%{y}<br>%{customdata}",
        )
        figure.update_layout(
            barmode="overlay", title={"text": words.kind(kind)}, hovermode="x unified"
        )
        figure.update_xaxes(title={"text": say(index_of)}, dtick=1 if len(numbers) <= 12 else 4)
        rows = tuple(
            (str(number), str(size), str(count), text)
            for number, size, count, text in zip(numbers, dense, counts, texts, strict=True)
        )
        columns = (say(index_of), say("teacher"), say("student"), say("kept"))
        label = words.kind(kind)
        pictures.append(_picture(f"layers-{kind}", label, figure, Table(columns, rows), 300))
    return pictures


def parts(evidence: Evidence, words: Words) -> list[Picture]:
    """Parameters and operations by part."""
    say = words.say
    counts = evidence.inspection.parts()
    pictures = []
    for key, unit, digits in (("parameters", 1e6, "M"), ("macs_per_second", 1e9, "G")):
        label = say("parameters" if key == "parameters" else "macs")
        names = [part for part in counts if counts[part][f"dense_{key}"] or counts[part][key]]
        titles = [say(f"part_{name}") for name in names]
        now = [counts[name][key] / unit for name in names]
        dense = [counts[name][f"dense_{key}"] / unit for name in names]
        figure = _graphs().Figure()
        for values, who, colour in ((dense, "teacher", GREY), (now, "student", BLUE)):
            figure.add_bar(y=titles, x=values, name=say(who), marker_color=colour, orientation="h")
        figure.update_layout(title={"text": f"{label} ({digits})"}, margin_l=190)
        figure.update_yaxes(autorange="reversed", automargin=True)
        rows = tuple(
            (title, f"{counts[n][f'dense_{key}']:,}", f"{counts[n][key]:,}")
            for title, n in zip(titles, names, strict=True)
        )
        columns = (say("part"), say("teacher"), say("student"))
        pictures.append(_picture(f"parts-{key}", label, figure, Table(columns, rows), 340))
    return pictures


def training(evidence: Evidence, words: Words) -> list[Picture]:
    """Loss, sparsity and open gates over both stages, and when the student shrank."""
    say = words.say
    joint = _thinned([line for line in evidence.log if line["stage"] == "stage1"])
    later = _thinned([line for line in evidence.log if line["stage"] == "stage2"])
    if not joint and not later:
        return []
    offset = joint[-1]["update"] if joint else 0
    shrinks = [now["update"] for last, now in pairwise(joint) if now["shrinks"] > last["shrinks"]]
    curves: dict[str, list[tuple[str, list[Any], list[Any]]]] = {"loss": []}
    for title, lines, start in (("joint_stage", joint, 0), ("recovery_stage", later, offset)):
        if lines:
            at = [start + line["update"] for line in lines]
            curves["loss"].append((say(title), at, [line["loss"] for line in lines]))
    steps = [line["update"] for line in joint]
    if joint:
        curves["sparsity"] = [
            (say(f"sparsity_{name}"), steps, [line[key] for line in joint])
            for name, key in (("expected", "sparsity"), ("target", "target"))
        ]
        curves["gates"] = [
            (
                words.kind(kind),
                [line["update"] for line in joint if f"open.{kind}" in line],
                [line[f"open.{kind}"] for line in joint if f"open.{kind}" in line],
            )
            for kind in KINDS
            if any(f"open.{kind}" in line for line in joint)
        ]
    pictures = []
    for key, series in curves.items():
        figure = _graphs().Figure()
        for (name, x, y), colour in zip(series, cycle(COLOURS), strict=False):
            figure.add_scatter(x=x, y=y, name=name, mode="lines", line={"color": colour})
        for update in shrinks:
            figure.add_vline(x=update, line_dash="dot", line_color=PURPLE, line_width=1)
        figure.update_layout(title={"text": say(key)}, hovermode="x unified")
        figure.update_xaxes(title={"text": say("update")})
        rows = []
        for name, x, y in series:
            every = max(1, len(x) // 12)
            rows += [
                (name, str(at), f"{value:.4f}")
                for at, value in zip(x[::every], y[::every], strict=True)
            ]
        columns = ("", say("update"), say(key))
        pictures.append(
            _picture(f"training-{key}", say(key), figure, Table(columns, tuple(rows)), 300)
        )
    return pictures


def _thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    every = -(-len(lines) // MOST_POINTS) or 1
    return lines if every == 1 else [*lines[:-1:every], lines[-1]]


def fidelity(evidence: Evidence, words: Words) -> list[Picture]:
    """Cosine per layer: as the run measured it, where 0 is the front (the output of the feature projection),
    and on audio of the user's, where 0 is the first of the hidden states."""
    say = words.say
    series: list[tuple[str, list[str], list[float]]] = []
    known = evidence.distance
    if known is not None:
        name = say("held_out" if known.held_out else "trained_on")
        name += f" ({known.utterances})" if known.utterances else ""
        cosines = [row.cosine for row in known.layers.values()]
        series.append((name, [str(layer or say("front")) for layer in known.layers], cosines))
    for measured in evidence.fidelity:
        rows = measured.layers
        name = f"{shown(measured.model)} ({measured.utterances})"
        series.append((name, [str(row.layer) for row in rows], [row.cosine for row in rows]))
    if not series:
        return []
    figure = _graphs().Figure()
    for (name, x, y), colour in zip(series, COLOURS, strict=False):
        figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", line={"color": colour})
    figure.update_layout(title={"text": say("cosine")}, hovermode="x unified", showlegend=True)
    numbers = range(1 + evidence.inspection.shape.layers)
    figure.update_xaxes(
        title={"text": say("layer")},
        type="category",
        categoryorder="array",
        categoryarray=[say("front"), *map(str, numbers)],
    )
    table = tuple(
        (name, layer, f"{value:.4f}")
        for name, x, y in series
        for layer, value in zip(x, y, strict=True)
    )
    columns = ("", say("layer"), say("cosine"))
    return [_picture("fidelity", say("fidelity"), figure, Table(columns, table))]


def scores(evidence: Evidence, words: Words) -> list[Picture]:
    """Each task: the scores of this model, its teacher and log-mel features with their intervals."""
    say = words.say
    pictures = []
    for number, scored in enumerate(evidence.scores):
        rows = scored.results
        first = rows[0]
        direction = say("higher_better" if first.higher_is_better else "lower_better")
        title = f"{scored.task}: {first.metric} ({direction})"
        figure = _graphs().Figure()
        spans = [row.interval or (row.score, row.score) for row in rows]
        figure.add_scatter(
            x=[100 * row.score for row in rows],
            y=[shown(row.model) for row in rows],
            mode="markers",
            marker={"size": 11, "color": [_colour(evidence, row) for row in rows]},
            error_x={
                "type": "data",
                "color": "#888888",
                "symmetric": False,
                "array": [
                    max(0.0, 100 * (s[1] - r.score)) for s, r in zip(spans, rows, strict=True)
                ],
                "arrayminus": [
                    max(0.0, 100 * (r.score - s[0])) for s, r in zip(spans, rows, strict=True)
                ],
            },
            hovertemplate="%{y}: %{x:.1f}<extra></extra>",
        )
        figure.add_vline(x=100 * first.chance, line_dash="dot", line_color="grey")
        figure.update_layout(title={"text": shown(title)}, showlegend=False)
        # A model that is called 2024 or 1e3 is a name, no number.
        figure.update_yaxes(type="category", autorange="reversed", automargin=True)
        figure.update_xaxes(title={"text": say("score")})
        table = [
            (
                row.model,
                f"{100 * row.score:.1f}",
                _span(row.interval, 100),
                _difference(row) if scored.against_teacher and row is not first else "",
            )
            for row in rows
        ]
        table.append((say("chance"), f"{100 * first.chance:.1f}", "", ""))
        columns = (
            say("model"),
            say("score"),
            say("interval"),
            say("difference", name=first.model) if scored.against_teacher else "",
        )
        height = 150 + 40 * len(rows)
        pictures.append(
            _picture(f"scores-{number}", title, figure, Table(columns, tuple(table)), height)
        )
    return pictures


def _colour(evidence: Evidence, row: Result | Timing) -> str:
    return BLUE if evidence.is_own(row) else ORANGE if evidence.is_teacher(row) else "grey"


def _span(interval: Sequence[float] | None, scale: float) -> str:
    if interval is None:
        return "-"
    return f"{scale * interval[0]:.1f} - {scale * interval[1]:.1f}"


def _difference(row: Result) -> str:
    between = row.difference_interval
    known = "" if between is None else f" ({100 * between[0]:+.1f} - {100 * between[1]:+.1f})"
    return f"{100 * row.difference:+.1f}{known}"


def conditions(evidence: Evidence, words: Words) -> list[Picture]:
    """Scores of this model, its teacher and log-mel features under each condition."""
    say = words.say
    pictures = []
    for number, scored in enumerate(evidence.scores):
        rows = [row for row in scored.results if row.conditions]
        if not any(evidence.is_own(row) for row in rows):
            continue
        figure = _graphs().Figure()
        table = []
        for row, colour in zip(rows, COLOURS, strict=False):
            by_condition = {say("clean"): row.score}
            by_condition |= {name: condition.score for name, condition in row.conditions.items()}
            figure.add_scatter(
                x=[shown(name) for name in by_condition],
                y=[100 * score for score in by_condition.values()],
                name=shown(row.model),
                mode="lines+markers",
                line={"color": colour},
            )
            table += [
                (row.model, name, f"{100 * score:.1f}") for name, score in by_condition.items()
            ]
        title = f"{scored.task}: {rows[0].metric}"
        figure.update_layout(title={"text": shown(title)}, hovermode="x unified", showlegend=True)
        figure.update_xaxes(type="category")
        figure.update_yaxes(title={"text": say("score")})
        columns = (say("model"), say("condition"), say("score"))
        pictures.append(
            _picture(f"conditions-{number}", title, figure, Table(columns, tuple(table)))
        )
    return pictures


def groups(evidence: Evidence, words: Words) -> list[tuple[Picture, tuple[str, ...]]]:
    """Scores per group of speakers, with what the evaluation says of gaps."""
    say = words.say
    drawn = []
    reports = [(scored.task, report) for scored in evidence.scores for report in scored.groups]
    for number, (task, report) in enumerate(reports):
        figure = _graphs().Figure()
        table = []
        for (model, cells), colour in zip(report.scores.items(), COLOURS, strict=False):
            figure.add_bar(
                x=[shown(value) for value in cells],
                y=[100 * cell.score for cell in cells.values()],
                name=shown(model),
                marker_color=colour,
            )
            table += [
                (
                    model,
                    value,
                    str(cell.clips),
                    f"{100 * cell.score:.1f}",
                    _span(cell.interval, 100),
                )
                for value, cell in cells.items()
            ]
        title = f"{task}: {report.column}"
        figure.update_layout(title={"text": shown(title)}, barmode="group")
        figure.update_xaxes(type="category")
        columns = (say("model"), say("group"), say("clips"), say("score"), say("interval"))
        picture = _picture(f"groups-{number}", title, figure, Table(columns, tuple(table)))
        drawn.append((picture, tuple(report.sentences)))
    return drawn


def latency(evidence: Evidence, words: Words) -> list[Picture]:
    """Time and memory of this model and its teacher, for the longest audio on the fewest threads."""
    if evidence.bench is None:
        return []
    say = words.say
    rows = evidence.bench.results
    threads = min(row.threads for row in rows)
    seconds = max(row.seconds for row in rows if row.threads == threads)
    chosen = [row for row in rows if (row.threads, row.seconds) == (threads, seconds)]
    names = _apart([shown(f"{row.model}, {row.runtime}") for row in chosen])
    pictures = []
    columns = (
        say("model"),
        say("runtime"),
        say("threads"),
        say("audio"),
        say("time"),
        say("ratio"),
        say("memory"),
        say("file"),
    )
    table = tuple(
        (
            row.model,
            row.runtime,
            str(row.threads),
            f"{row.seconds:g} s",
            f"{1e3 * row.median:.0f}",
            _times(evidence, row),
            f"{row.peak_bytes / 2**20:.0f}",
            f"{row.file_bytes / 1e6:.1f}",
        )
        for row in rows
    )
    for key, values in (
        ("time", [1e3 * row.median for row in chosen]),
        ("memory", [row.peak_bytes / 2**20 for row in chosen]),
    ):
        figure = _graphs().Figure()
        colours = [_colour(evidence, row) for row in chosen]
        figure.add_bar(y=names, x=values, orientation="h", marker_color=colours)
        title = f"{say(key)}: {seconds:g} s, {say('threads')} {threads}"
        figure.update_layout(title={"text": title}, showlegend=False)
        figure.update_yaxes(type="category", autorange="reversed", automargin=True)
        pictures.append(
            _picture(f"latency-{key}", title, figure, Table(columns, table), 140 + 34 * len(chosen))
        )
    return pictures


def _apart(names: Sequence[str]) -> list[str]:
    """Two folders of one name are two bars."""
    return [
        name if name not in names[:index] else f"{name} ({index + 1})"
        for index, name in enumerate(names)
    ]


def _times(evidence: Evidence, row: Timing) -> str:
    """How many times as fast as the teacher in the same runtime; `-` where it was not measured in it."""
    assert evidence.bench is not None
    setting = (row.runtime, row.threads, row.seconds)
    for other in filter(evidence.is_teacher, evidence.bench.results):
        if (other.runtime, other.threads, other.seconds) == setting:
            return f"{other.median / row.median:.2f}"
    return "-"


def comparison(points: Sequence[tuple[str, float, float | None]], words: Words) -> Picture | None:
    """Quality against cost: (name, MACs per second, least share of the teacher's correct answers)."""
    known = [(name, macs, kept) for name, macs, kept in points if kept is not None]
    if not known:
        return None
    say = words.say
    figure = _graphs().Figure()
    figure.add_scatter(
        x=[macs / 1e9 for _, macs, _ in known],
        y=[100 * kept for _, _, kept in known],
        text=[shown(name) for name, _, _ in known],
        mode="markers+text",
        textposition="top center",
        marker={"size": 12, "color": BLUE},
        hovertemplate="%{text}: %{x:.2f} G, %{y:.1f}%<extra></extra>",
    )
    figure.update_layout(title={"text": say("picture")}, showlegend=False)
    figure.update_xaxes(title={"text": f"{say('macs')} (G)"}, rangemode="tozero")
    figure.update_yaxes(title={"text": f"{say('quality')} (%)"})
    rows = tuple((name, f"{macs:,.0f}", f"{100 * kept:.1f}%") for name, macs, kept in known)
    columns = (say("model"), say("macs"), say("quality"))
    return _picture("comparison", say("picture"), figure, Table(columns, rows), 420)
