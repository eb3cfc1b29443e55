"""The report: one HTML file that needs no network, from the files of one run or several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from sslim import __version__
from sslim.errors import ConfigError, OutputError
from sslim.report import figures
from sslim.report.checklist import Item, checklist
from sslim.report.evidence import Evidence, read_evidence
from sslim.report.figures import Picture, Table
from sslim.report.verdict import Verdict, judge
from sslim.report.words import Words


@dataclass
class Section:
    """A part of the page: pictures or tables, or the command that would fill it."""

    key: str
    title: str
    note: str = ""
    pictures: list[Picture] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    table: Table | None = None
    command: str = ""

    @property
    def missing(self) -> bool:
        return not self.pictures and self.table is None


def write_report(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    language: str = "en",
    evidence: Sequence[Path] = (),
) -> Path:
    """Writes the report of one run, or the comparison of several.

    Args:
        runs: folders that `sslim compress` wrote, or any model folders.
        out: the HTML file.
        language: `en` or `ja`.
        evidence: further JSON files, for a single run.

    Raises:
        TeacherError: a folder holds no model.
        ConfigError: the language is unknown, or jinja2 or plotly is missing.
        OutputError: evidence cannot be read, or `out` cannot be written.
    """
    words = Words(language)
    if len(runs) > 1 and evidence:
        raise ConfigError(
            "further evidence was given for several runs", "put it into RUN/evidence/ of each"
        )
    found = [read_evidence(run, evidence) for run in runs]
    text = _one(found[0], words) if len(found) == 1 else _several(found, words)
    out = Path(out)
    aside = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(out)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OutputError(
            f"{out} cannot be written: {error.strerror}", "name another file"
        ) from error
    return out


def _render(**values: Any) -> str:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ConfigError(
            "reports need the package jinja2, which is not installed", "run: pip install jinja2"
        ) from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    source = files("sslim.report").joinpath("page.html").read_text(encoding="utf-8")
    page: str = environment.from_string(source).render(
        **values, plotly=figures.plotly_source(), version=__version__
    )
    return page


def _one(evidence: Evidence, words: Words) -> str:
    verdict = judge(evidence)
    items = checklist(evidence, words)
    sections = _sections(evidence, words)
    return _render(
        say=words.say,
        language=words.language,
        title=words.say("title", name=evidence.name),
        headline=_headline(verdict, words),
        decision=verdict.decision,
        sentence=recommendation(verdict, items, words),
        sections=[section for section in sections if not section.missing],
        absent=[section for section in sections if section.missing],
        items=items,
        cost=_cost(evidence),
        folder=evidence.folder,
        unread=evidence.unread,
        comparison=None,
    )


def recommendation(verdict: Verdict, items: Sequence[Item], words: Words) -> str:
    """The plain sentence, with its condition."""
    return words.say(
        f"decision_{verdict.decision}",
        open=sum(not item.done for item in items),
        tasks=", ".join(dict.fromkeys(loss.task for loss in verdict.blamed)),
    )


def _headline(verdict: Verdict, words: Words) -> list[tuple[str, str, str]]:
    """Size, speed and quality: name, figure, what it means."""
    say = words.say
    unknown = say("not_known")
    speed = unknown if verdict.speed is None else f"{verdict.speed:.1f}x"
    if verdict.quality is None:
        quality, note = unknown, ""
    elif verdict.quality_measured:
        quality = f"{verdict.quality:.1%}"
        note = say("quality_note", count=len(verdict.losses))
    else:
        quality, note = f"{verdict.quality:.3f}", say("quality_cosine")
    return [
        (
            say("size"),
            unknown if verdict.size is None else f"{verdict.size:.1%}",
            say("size_note"),
        ),
        (say("speed"), speed, say("speed_note" if verdict.speed_measured else "speed_computed")),
        (say("quality"), quality, note),
    ]


def _sections(evidence: Evidence, words: Words) -> list[Section]:
    say, folder = words.say, evidence.folder
    teacher = evidence.teacher or "TEACHER"
    judged = f"sslim evaluate {teacher} {folder} fbank --task ks --data clips.csv"
    grouped = figures.groups(evidence, words)
    pictures = [picture for picture, _ in grouped]
    sentences = [sentence for _, found in grouped for sentence in found]
    machine = evidence.bench["machine"].get("processor", "") if evidence.bench else ""
    busy = evidence.bench is not None and any(row["noisy"] for row in evidence.bench["results"])
    return [
        Section("layers", say("layers"), say("layers_note"), figures.layers(evidence, words)),
        Section("parts", say("parts"), "", figures.parts(evidence, words)),
        Section(
            "training",
            say("training"),
            _training_note(evidence, words),
            figures.training(evidence, words),
            command="sslim compress TEACHER AUDIO OUT --params 25%",
        ),
        Section(
            "fidelity",
            say("fidelity"),
            say("fidelity_own", count=evidence.fidelity[0]["utterances"])
            if evidence.fidelity
            else say("fidelity_run"),
            figures.fidelity(evidence, words),
            command=f"sslim evaluate {teacher} {folder} --task fidelity --data my_audio/ "
            f"--json {folder}/evidence/fidelity.json",
        ),
        Section(
            "scores",
            say("scores"),
            say("scores_note"),
            figures.scores(evidence, words),
            command=f"{judged} --json {folder}/evidence/ks.json",
        ),
        Section(
            "noise",
            say("noise"),
            "",
            figures.conditions(evidence, words),
            command=f"{judged} --noise noises/ --json {folder}/evidence/noise.json",
        ),
        Section(
            "groups",
            say("groups"),
            "",
            pictures,
            sentences,
            command=f"{judged} --group gender,age --json {folder}/evidence/groups.json",
        ),
        Section(
            "latency",
            say("latency"),
            say("latency_note", machine=machine) + (f" {say('noisy')}" if busy else ""),
            figures.latency(evidence, words),
            command=f"sslim bench {teacher} {folder} --json {folder}/evidence/bench.json",
        ),
        Section(
            "exports",
            say("exports"),
            table=_exports(evidence, words),
            command=f"sslim export {folder} {folder}/model-int8.onnx --format onnx-int8",
        ),
    ]


def _training_note(evidence: Evidence, words: Words) -> str:
    if evidence.run is None:
        return ""
    config, result = evidence.run["config"], evidence.run["result"]
    return words.say(
        "training_note",
        updates1=f"{config['stage1']['updates']:,}",
        updates2=f"{config['stage2']['updates']:,}",
        hours=f"{evidence.run['audio'].get('seconds', 0) / 3600:.2f}",
        minutes=f"{result['seconds'] / 60:.1f}",
        device=evidence.run["device"],
    )


def _exports(evidence: Evidence, words: Words) -> Table | None:
    if not evidence.exports:
        return None
    say = words.say
    columns = (say("file_name"), say("format"), "MB", say("worst_cosine"), say("passed"))
    rows = tuple(
        (
            made["file"],
            made["format"],
            f"{made['bytes'] / 1e6:.1f}",
            "-" if made["worst_cosine"] is None else f"{made['worst_cosine']:.5f}",
            say("yes" if made["passed"] else "no"),
        )
        for made in evidence.exports
    )
    return Table(columns, rows)


def _cost(evidence: Evidence) -> str:
    """What the calculator needs: real-time factors of every model and runtime, the first one being now."""
    if evidence.bench is None:
        return ""
    rows = evidence.bench["results"]
    seconds = max(row["seconds"] for row in rows)
    threads = min(row["threads"] for row in rows)
    shown = [row for row in rows if (row["threads"], row["seconds"]) == (threads, seconds)]
    found = [
        {"name": f"{row['model']}, {row['runtime']}", "factor": row["real_time_factor"]}
        for row in shown
    ]
    best = min(
        (number for number, row in enumerate(shown) if row["model"] != shown[0]["model"]),
        key=lambda number: shown[number]["real_time_factor"],
        default=0,
    )
    price = evidence.bench.get("price_per_hour")
    facts = {"rows": found, "after": best, "price": 0.1 if price is None else price}
    return json.dumps(facts, ensure_ascii=False).replace("</", "<\\/")


def _several(found: Sequence[Evidence], words: Words) -> str:
    say = words.say
    verdicts = [judge(evidence) for evidence in found]
    rows = []
    points = []
    for evidence, verdict in zip(found, verdicts, strict=True):
        facts = evidence.inspection.to_dict()
        kept = verdict.quality if verdict.quality_measured else None
        points.append((evidence.name, facts["macs_per_second"], kept))
        items = checklist(evidence, words)
        rows.append(
            (
                evidence.name,
                f"{facts['parameters']:,}",
                f"{facts['macs_per_second']:,}",
                "-" if verdict.speed is None else f"{verdict.speed:.1f}x",
                say("no_quality") if kept is None else f"{kept:.1%}",
                recommendation(verdict, items, words),
            )
        )
    columns = (
        say("model"),
        say("parameters"),
        say("macs"),
        say("speed"),
        say("quality"),
        "",
    )
    picture = figures.comparison(points, words)
    sections = [
        Section(
            "comparison", say("picture"), say("picture_note"), [] if picture is None else [picture]
        )
    ]
    for evidence in found:
        for section in _sections(evidence, words)[:1]:
            section.key = f"{section.key}-{evidence.name}"
            section.title = f"{evidence.name}: {section.title}"
            for number, one in enumerate(section.pictures):
                data = one.__dict__ | {"key": f"{one.key}-{evidence.name}"}
                section.pictures[number] = Picture(**data)
            sections.append(section)
    return _render(
        say=say,
        language=words.language,
        title=say("compare_title", count=len(found)),
        headline=[],
        decision="",
        sentence="",
        sections=[section for section in sections if not section.missing],
        absent=[],
        items=[],
        cost="",
        folder=", ".join(str(evidence.folder) for evidence in found),
        unread=[],
        comparison=Table(columns, tuple(rows)),
    )
