"""The report: one HTML file that needs no network, from the files of one run or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from sslim.errors import ConfigError, OutputError, first_line
from sslim.files import write_text
from sslim.measurements import BUSY
from sslim.report import figures
from sslim.report.checklist import Item, checklist
from sslim.report.evidence import Evidence, read_evidence
from sslim.report.figures import Picture, Table
from sslim.report.quoting import one_line, script_json, word
from sslim.report.verdict import TaskLoss, Verdict, judge, measured_cosine
from sslim.report.words import Words
from sslim.version import __version__

START = b"<!doctype html>"


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
    out = Path(out)
    _check_out(out)
    evidences = [read_evidence(run, evidence) for run in runs]
    text = _one(evidences[0], words) if len(evidences) == 1 else _several(evidences, words)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written: {first_line(error)}", "name another file"
        ) from error
    return out


def _check_out(out: Path) -> None:
    """A report takes the place of a report, never of a model, a device or somebody's file."""
    try:
        if not out.exists():
            return
        if not out.is_file():
            raise OutputError(f"{out} is not a file", f"name one, such as {out / 'report.html'}")
        with out.open("rb") as stream:
            if stream.read(len(START)).lower() in (START, b""):
                return
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written: {first_line(error)}", "name another file"
        ) from error
    raise OutputError(f"{out} exists and is no report", "name another file")


def _render(**values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

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
    folder, path = word(evidence.folder, "RUN"), evidence.folder / "evidence" / "bench.json"
    return _render(
        say=words.say,
        language=words.language,
        title=words.say("title", name=one_line(evidence.name)),
        headline=_headline(evidence, verdict, words),
        decision=verdict.decision,
        sentence=recommendation(verdict, items, words),
        tasks=task_sentences(verdict, words),
        sections=[section for section in sections if not section.missing],
        absent=[section for section in sections if section.missing],
        items=items,
        cost=_cost(evidence),
        cost_command=f"sslim bench {word(evidence.teacher, 'TEACHER')} {folder} --price-per-hour 0.10 "
        f"--json {word(path, 'RUN/evidence/bench.json')}",
        folder=one_line(evidence.folder),
        not_used=_not_used(evidence, words),
        comparison=None,
    )


def _not_used(evidence: Evidence, words: Words) -> list[str]:
    """A sentence per file, or per kind of rows of it, that no figure comes from."""
    return [words.say(left.why, file=left.file, detail=left.detail) for left in evidence.not_used]


def recommendation(verdict: Verdict, items: Sequence[Item], words: Words) -> str:
    """The plain sentence, with its condition."""
    key = f"decision_{verdict.decision}"
    if verdict.decision == "unknown" and verdict.losses:
        key = "decision_silent"
    return words.say(
        key,
        open=sum(not item.done for item in items),
        tasks=", ".join(dict.fromkeys(loss.task for loss in verdict.blamed)),
    )


def task_sentences(verdict: Verdict, words: Words) -> list[str]:
    """What each scored task says, the worst first, then those that say nothing and why."""
    judged = sorted(verdict.judged, key=lambda loss: (loss.kept, loss.at_worst))
    return [_kept_sentence(loss, words) for loss in judged] + [
        words.say("task_silent", task=loss.task, model=loss.model, why=words.say(loss.unknown))
        for loss in verdict.silent
    ]


def _kept_sentence(loss: TaskLoss, words: Words) -> str:
    return words.say(
        "task_as_good" if loss.as_good else "task_kept",
        task=loss.task,
        model=loss.model,
        kept=f"{min(1.0, loss.kept):.1%}",
        worst=f"{min(1.0, loss.at_worst):.1%}",
    )


def quality(evidence: Evidence, verdict: Verdict, words: Words) -> tuple[str, str]:
    """The figure of the worst task that says something, and what it is; else a cosine, and of which audio."""
    say, worst = words.say, verdict.worst
    if worst is not None:
        figure = say("as_good") if worst.as_good else f"{worst.kept:.1%}"
        note = say(
            "quality_as_good" if worst.as_good else "quality_note",
            task=worst.task,
            worst=f"{min(1.0, worst.at_worst):.1%}",
            count=len(verdict.judged),
        )
        return figure, note
    if verdict.losses:
        return say("not_known"), say("quality_silent", count=len(verdict.losses))
    measured = measured_cosine(evidence)
    if measured is None:
        return say("not_known"), say("no_quality")
    cosine, measured_on, utterances = measured
    return f"{cosine:.3f}", say(f"quality_cosine_{measured_on}", count=utterances or "?")


def _headline(evidence: Evidence, verdict: Verdict, words: Words) -> list[tuple[str, str, str]]:
    """Size, speed and quality: name, figure, what it means."""
    say = words.say
    size_of = say("size_note" if evidence.run is not None else "size_note_dense")
    size = say("not_known") if verdict.size is None else f"{verdict.size:.1%}"
    return [
        (say("size"), size, size_of),
        (say("speed"), *_speed(evidence, verdict, words)),
        (say("quality"), *quality(evidence, verdict, words)),
    ]


def _speed(evidence: Evidence, verdict: Verdict, words: Words) -> tuple[str, str]:
    say, speed = words.say, verdict.speed
    if speed is not None:
        assert evidence.bench is not None
        return f"{speed.times:.1f}x", say(
            "speed_note" if speed.like else "speed_unlike",
            runtime=speed.runtime,
            other=speed.teacher_runtime,
            threads=speed.threads,
            seconds=f"{speed.seconds:g}",
            machine=evidence.bench.machine.processor or say("unknown_processor"),
        )
    if verdict.fewer_operations is None:
        return say("not_known"), say("speed_unknown")
    return f"{verdict.fewer_operations:.1f}x", say("speed_computed")


def _sections(evidence: Evidence, words: Words) -> list[Section]:
    say = words.say
    folder, teacher = word(evidence.folder, "RUN"), word(evidence.teacher, "TEACHER")
    judged = f"sslim evaluate {teacher} {folder} fbank --task ks --data clips.csv"
    grouped = figures.groups(evidence, words)
    pictures = [picture for picture, _ in grouped]
    sentences = [sentence for _, own_sentences in grouped for sentence in own_sentences]

    def written(name: str) -> str:
        return f"--json {word(evidence.folder / 'evidence' / name, f'RUN/evidence/{name}')}"

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
            _fidelity_note(evidence, words),
            figures.fidelity(evidence, words),
            command=f"sslim evaluate {teacher} {folder} --task fidelity --data my_audio/ "
            f"{written('fidelity.json')}",
        ),
        Section(
            "scores",
            say("scores"),
            say("scores_note"),
            figures.scores(evidence, words),
            command=f"{judged} {written('ks.json')}",
        ),
        Section(
            "noise",
            say("noise"),
            "",
            figures.conditions(evidence, words),
            command=f"{judged} --noise noises/ {written('noise.json')}",
        ),
        Section(
            "groups",
            say("groups"),
            "",
            pictures,
            sentences,
            command=f"{judged} --group gender,age {written('groups.json')}",
        ),
        Section(
            "latency",
            say("latency"),
            _machine_note(evidence, words),
            figures.latency(evidence, words),
            command=f"sslim bench {teacher} {folder} {written('bench.json')}",
        ),
        Section(
            "exports",
            say("exports"),
            table=_exports(evidence, words),
            command=f"sslim export {folder} "
            f"{word(evidence.folder / 'model-int8.onnx', 'RUN/model-int8.onnx')} --format onnx-int8",
        ),
    ]


def _fidelity_note(evidence: Evidence, words: Words) -> str:
    """On which audio the distance was measured, and whether training had heard it."""
    notes = []
    known = evidence.distance
    if known is not None and known.held_out:
        notes.append(
            words.say(
                "fidelity_held_out",
                count=f"{known.utterances:,}",
                seconds=f"{known.seconds:,.0f}",
                chosen=one_line(known.chosen),
            )
        )
    elif known is not None:
        notes.append(words.say("fidelity_trained_on", count=known.utterances or "?"))
    for row in evidence.fidelity:
        notes.append(words.say("fidelity_own", count=f"{row.utterances:,}"))
    return " ".join(notes)


def _machine_note(evidence: Evidence, words: Words) -> str:
    """The processor that the times belong to, what it can do, and whether it was busy."""
    if evidence.bench is None:
        return ""
    say, machine = words.say, evidence.bench.machine
    notes = [say("latency_note", machine=machine.processor or say("unknown_processor"))]
    if machine.vector_units:
        notes.append(say("vector_units", units=", ".join(machine.vector_units)))
    rates = {name: getattr(machine.rates, name) for name in ("float32", "bfloat16", "int8")}
    known = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items() if rate is not None)
    if known:
        notes.append(say("rates", rates=known))
    load = machine.load_before
    if load is not None and load > BUSY:
        notes.append(say("load", load=f"{load:.1f}"))
    if any(row.noisy for row in evidence.bench.results):
        notes.append(say("noisy"))
    return " ".join(notes)


def _training_note(evidence: Evidence, words: Words) -> str:
    if evidence.run is None:
        return ""
    settings, result = evidence.run.settings, evidence.run.result
    return words.say(
        "training_note",
        updates1=f"{settings.stage1.updates:,}",
        updates2=f"{settings.stage2.updates:,}",
        hours=_hours(evidence.run.audio.seconds),
        minutes=f"{result.seconds / 60:.1f}",
        device=one_line(evidence.run.device),
    )


def _hours(seconds: float | None) -> str:
    """Hours of audio; shards do not know theirs before they were heard."""
    return "?" if seconds is None else f"{seconds / 3600:.2f}"


def _exports(evidence: Evidence, words: Words) -> Table | None:
    if not evidence.exports:
        return None
    say = words.say
    columns = (say("file_name"), say("format"), "MB", say("worst_cosine"), say("passed"))
    rows = tuple(
        (
            made.file,
            made.format,
            f"{made.bytes / 1e6:.1f}",
            "-" if made.worst_cosine is None else f"{made.worst_cosine:.5f}",
            say("yes" if made.passed else "no"),
        )
        for made in evidence.exports
    )
    return Table(columns, rows)


def _cost(evidence: Evidence) -> str:
    """What the calculator needs: real-time factors of teacher (now) and model (after) in each runtime."""
    if evidence.bench is None:
        return ""
    rows = evidence.bench.results
    threads = min(row.threads for row in rows)
    seconds = max(row.seconds for row in rows if row.threads == threads)
    chosen = [row for row in rows if (row.threads, row.seconds) == (threads, seconds)]

    def fastest(mine: Any) -> int | None:
        numbers = [number for number, row in enumerate(chosen) if mine(row)]
        return min(numbers, key=lambda n: chosen[n].real_time_factor, default=None)

    now = next((n for n, row in enumerate(chosen) if evidence.is_teacher(row)), None)
    after = fastest(evidence.is_own)
    if now is None or after is None:
        return ""  # a saving is between two models
    price = evidence.bench.price_per_hour
    return script_json(
        {
            "rows": [
                {
                    "name": f"{row.model}, {row.runtime}",
                    "factor": row.real_time_factor,
                }
                for row in chosen
            ],
            "now": now,
            "after": after,
            "price": 0.1 if price is None else price,
        }
    )


def _several(evidences: Sequence[Evidence], words: Words) -> str:
    say = words.say
    rows, sections, left = [], [], []
    points: list[tuple[str, float, float | None]] = []
    for number, (evidence, name) in enumerate(zip(evidences, _names(evidences), strict=True)):
        verdict, sizes = judge(evidence), evidence.sizes
        worst = verdict.worst
        title = name if worst is None else f"{name} ({worst.task})"
        points.append(
            (title, sizes["macs_per_second"], None if worst is None else min(1.0, worst.kept))
        )
        kept = (
            say("no_quality")
            if not verdict.losses
            else ", ".join(part for part in quality(evidence, verdict, words) if part)
        )
        rows.append(
            (
                name,
                f"{sizes['parameters']:,}",
                f"{sizes['macs_per_second']:,}",
                "-" if verdict.speed is None else ", ".join(_speed(evidence, verdict, words)),
                kept,
                recommendation(verdict, checklist(evidence, words), words),
            )
        )
        section = _sections(evidence, words)[0]
        section.key = f"{section.key}-{number}"
        section.title = f"{name}: {section.title}"
        section.pictures = [
            replace(picture, key=f"{picture.key}-{number}") for picture in section.pictures
        ]
        sections.append(section)
        left += [f"{name}: {sentence}" for sentence in _not_used(evidence, words)]
    picture = figures.comparison(points, words)
    if picture is not None:
        sections.insert(0, Section("comparison", say("picture"), say("picture_note"), [picture]))
    columns = (say("model"), say("parameters"), say("macs"), say("speed"), say("quality"), "")
    return _render(
        say=say,
        language=words.language,
        title=say("compare_title", count=len(evidences)),
        headline=[],
        decision="",
        sentence="",
        tasks=[],
        sections=sections,
        absent=[],
        items=[],
        cost="",
        cost_command="",
        folder=", ".join(one_line(evidence.folder) for evidence in evidences),
        not_used=left,
        comparison=Table(columns, tuple(rows)),
    )


def _names(evidences: Sequence[Evidence]) -> list[str]:
    """Short names where they are unique, whole paths where not."""
    short = [one_line(evidence.name) for evidence in evidences]
    return [
        name if short.count(name) == 1 else one_line(evidence.folder)
        for name, evidence in zip(short, evidences, strict=True)
    ]
