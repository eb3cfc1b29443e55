"""What is known of a run: only files are read, nothing is computed again and nothing is invented.

A run's folder holds `sslim.json`, `run/metrics.jsonl` and, in `evidence/`, whatever was measured since: the
JSON of `sslim evaluate` (scores, fidelity), `bench` and `export`.

**Whose a figure is, its fingerprint says**, never a name or a size. Of each file the rows of this model, of
its teacher and of log-mel features are used; rows of other models, of an earlier model of the same name, or
computed by other code than today's are listed in `not_used` with the reason, and no verdict sees them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sslim.backbone.contents import COMPUTING, RECORD
from sslim.errors import OutputError
from sslim.files import read_json
from sslim.identity import COMPUTATION, content_of, sha256_of
from sslim.measurements import (
    Benchmark,
    Evaluation,
    ExportFacts,
    Fidelity,
    FidelityReport,
    GroupReport,
    Result,
    SuiteScores,
    Timing,
)
from sslim.records import RecordError
from sslim.report import formats
from sslim.report.formats import Facts, Unusable
from sslim.report.inspect import Inspection, inspect_model
from sslim.report.quoting import one_line
from sslim.runs.facts import MeasuredDistance, RunFacts, RunRecord
from sslim.runs.folder import RECORD as RUN_RECORD
from sslim.runs.folder import RUN_FOLDER

Row = Result | Fidelity | Timing | ExportFacts
"""A model in a file of evidence."""
SIZES = ("parameters", "macs_per_second", "dense_parameters", "dense_macs_per_second")
FOLDER = "evidence"
DECISIONS = "rollout.toml"
"""What people decide and no program can know: see `checklist.py`."""


@dataclass(frozen=True)
class NotUsed:
    """A file, or rows of it, that the report leaves out."""

    file: str
    why: str
    """Key of a sentence in `words.toml`: `unused_...`."""
    detail: str = ""
    """What is wrong, or whose rows they are."""


@dataclass(frozen=True)
class ScoredTask:
    """One task with a row of this model, and what is used of the file that it is in."""

    task: str
    source: str
    """Name of the file."""
    results: tuple[Result, ...]
    groups: tuple[GroupReport, ...]
    against_teacher: bool
    """Whether differences are to this model's teacher."""


@dataclass
class Evidence:
    """Everything that one report is made from."""

    folder: Path
    name: str
    inspection: Inspection
    fingerprint: str
    """Of the model in the folder, as it loads today."""
    run: RunFacts | None = None
    """`sslim.json` of a compressed folder; None: the model was made some other way."""
    teacher: str = ""
    """What the user called the teacher."""
    log: list[Facts] = field(default_factory=list)
    scores: list[ScoredTask] = field(default_factory=list)
    fidelity: list[Fidelity] = field(default_factory=list)
    benches: list[Benchmark] = field(default_factory=list)
    exports: list[ExportFacts] = field(default_factory=list)
    not_used: list[NotUsed] = field(default_factory=list)

    @property
    def distance(self) -> MeasuredDistance | None:
        """How far the student is from its teacher, as the run itself measured it."""
        return None if self.run is None else self.run.result.distance

    @property
    def teacher_fingerprint(self) -> str:
        """Of the teacher; empty where no run recorded it."""
        return "" if self.run is None else self.run.teacher.fingerprint

    @property
    def bench(self) -> Benchmark | None:
        """The last benchmark with a row of this model."""
        return self.benches[-1] if self.benches else None

    def is_own(self, row: Row) -> bool:
        """Whether a row is of this model, in whatever format it was run."""
        return row.model_fingerprint == self.fingerprint

    def is_teacher(self, row: Row) -> bool:
        """Whether a row is of this model's teacher."""
        teacher = self.teacher_fingerprint
        return bool(teacher) and row.model_fingerprint == teacher

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters and MACs of the model, and of what it is compared with: its teacher, or where none is
        recorded the dense model of its family."""
        counts = self.inspection.to_dict()
        sizes = {name: int(counts[name]) for name in SIZES}
        if self.run is not None:
            result = self.run.result
            sizes["dense_parameters"] = result.dense_parameters
            sizes["dense_macs_per_second"] = result.dense_macs_per_second
        return sizes


def read_evidence(folder: str | Path, more: Sequence[Path] = ()) -> Evidence:
    """Reads a model's folder and its evidence.

    Args:
        folder: what `sslim compress` wrote, or any model folder.
        more: further JSON files.

    Raises:
        TeacherError: the folder holds no model.
        OutputError: `sslim.json` is damaged or belongs to another model, or one of `more` cannot be read.
    """
    folder = Path(folder)
    inspection = inspect_model(folder)
    about = read_json(folder / RECORD, "a run") if (folder / RECORD).exists() else {}
    # A folder of version 0.1 does not say of what kind it is.
    is_run = about["kind"] == RunFacts.KIND if "kind" in about else "result" in about
    run = _run(folder, about, inspection) if is_run else None
    evidence = Evidence(
        folder, folder.resolve().name, inspection, _fingerprint(folder, about), run=run
    )
    if run is not None:
        evidence.teacher = _teacher(evidence, run)
        log = folder / RUN_FOLDER / "metrics.jsonl"
        if log.exists():
            evidence.log, problem = formats.log(log)
            if problem:
                evidence.not_used.append(NotUsed("run/metrics.jsonl", "unused_damaged", problem))
    beside = [*folder.glob("*.onnx.json"), *folder.glob("*.pth.json")]
    for path in [*sorted(folder.glob(f"{FOLDER}/*.json")), *sorted(beside)]:
        try:
            _take(evidence, path, beside=path.parent == folder)
        except Unusable as error:
            evidence.not_used.append(NotUsed(one_line(path.name), "unused_damaged", str(error)))
    for path in more:
        try:
            _take(evidence, path)
        except Unusable as error:
            raise OutputError(
                f"{path} cannot be used as evidence: {error}",
                "give what evaluate, bench or export wrote",
            ) from error
    return evidence


def _run(folder: Path, about: Facts, inspection: Inspection) -> RunFacts:
    try:
        run = RunFacts.from_dict(about)
    except RecordError as error:
        raise OutputError(
            f"{folder / RECORD} is damaged: {error}", f"{error.hint}, or compress again"
        ) from error
    here, there = inspection.to_dict()["parameters"], run.result.parameters
    if here != there:
        raise OutputError(
            f"{folder / RECORD} is of another model: it says {there:,} parameters, config.json "
            f"{here:,}",
            "restore the file that was changed",
        )
    return run


def _fingerprint(folder: Path, about: Facts) -> str:
    """The identity of the model: what `sslim.json` says where no file has changed since, else computed."""
    known, files = about.get("fingerprint"), about.get("files")
    if isinstance(known, str) and known and isinstance(files, dict):
        here = {path.name for path in folder.glob("*.safetensors")}
        here |= {name for name in COMPUTING if (folder / name).is_file()}
        with contextlib.suppress(OSError):
            paths = [folder / name for name in sorted(here)]
            complete = bool(paths) and all(path.is_file() for path in paths)
            if complete and all(sha256_of(path) == files.get(path.name) for path in paths):
                return known
    from sslim.backbone.loading import load_model

    return load_model(folder).fingerprint


def _teacher(evidence: Evidence, run: RunFacts) -> str:
    """What the user called the teacher: `sslim.json`, which may be published, holds its name alone."""
    path = evidence.folder / RUN_FOLDER / RUN_RECORD
    if not path.exists():
        return run.teacher.source
    try:
        return RunRecord.from_dict(formats.read_facts(path)).teacher.source
    except (Unusable, RecordError) as error:
        file = f"{RUN_FOLDER}/{RUN_RECORD}"
        evidence.not_used.append(NotUsed(file, "unused_damaged", one_line(error)))
        return run.teacher.source


def _take(evidence: Evidence, path: Path, *, beside: bool = False) -> None:
    """Puts one file where it belongs, and what is not used on its list.

    Args:
        evidence: gets it.
        path: the file.
        beside: it lies beside the exported file that it describes, which must be that file still.

    Raises:
        Unusable: it is damaged, or no evidence.
    """
    record = formats.evidence(formats.read_facts(path))
    file = one_line(path.name)

    def leave(why: str, detail: str = "") -> None:
        evidence.not_used.append(NotUsed(file, why, detail))

    rows: Sequence[Row] = (record,) if isinstance(record, ExportFacts) else record.results
    if record.computation != COMPUTATION:
        leave("unused_older")
    elif isinstance(record, Evaluation) and record.random_labels:
        leave("unused_random")
    elif not any(evidence.is_own(row) for row in rows):
        _whose(evidence, rows, leave)
    elif isinstance(record, ExportFacts) and beside and not _is_file(path.with_suffix(""), record):
        leave("unused_file", record.file)
    else:
        _sort(evidence, record, file)
        _whose(evidence, [row for row in rows if not _ours(evidence, row)], leave)
        if isinstance(record, FidelityReport) and any(
            evidence.is_own(row) and not _from_teacher(evidence, row) for row in record.results
        ):
            leave("unused_teacher")


def _is_file(path: Path, facts: ExportFacts) -> bool:
    """Whether an exported file is the one that its figures are of."""
    try:
        return path.is_file() and content_of(path) == facts.fingerprint
    except OSError:
        return False


def _ours(evidence: Evidence, row: Row) -> bool:
    log_mel = isinstance(row, Result) and row.is_log_mel
    return evidence.is_own(row) or evidence.is_teacher(row) or log_mel


def _whose(evidence: Evidence, rows: Sequence[Row], leave: Callable[..., None]) -> None:
    """Lists rows that are not used: of a model of this name that is not this model, and of others."""
    named = [row for row in rows if row.model_fingerprint is not None]
    if len(named) < len(rows):
        leave("unused_nameless")
    same = [row for row in named if _name(row) == evidence.name]
    if same:
        leave("unused_stale", evidence.name)
    others = [row for row in named if row not in same]
    if others:
        leave("unused_others", one_line(", ".join(dict.fromkeys(map(_name, others)))))


def _name(row: Row) -> str:
    return row.file if isinstance(row, ExportFacts) else row.model


def _sort(evidence: Evidence, record: formats.Evidence, file: str) -> None:
    """Puts a record where its kind belongs, with the rows that are used."""
    match record:
        case ExportFacts():
            evidence.exports = [made for made in evidence.exports if made.file != record.file] + [
                record
            ]
        case FidelityReport():
            evidence.fidelity += [
                row
                for row in record.results
                if evidence.is_own(row) and _from_teacher(evidence, row)
            ]
        case Benchmark():
            used = tuple(row for row in record.results if _ours(evidence, row))
            evidence.benches.append(replace(record, results=used))
        case Evaluation() | SuiteScores():
            evidence.scores += _by_task(evidence, record, file)


def _from_teacher(evidence: Evidence, row: Fidelity) -> bool:
    """Whether a distance was measured from this model's teacher; rows that do not say so are believed."""
    measured_from = row.teacher_model_fingerprint or row.teacher_fingerprint
    return (
        measured_from is None
        or not evidence.teacher_fingerprint
        or measured_from == evidence.teacher_fingerprint
    )


def _by_task(
    evidence: Evidence, record: Evaluation | SuiteScores, file: str
) -> Iterator[ScoredTask]:
    """Each task with a row of this model; groups keep the models that are used."""
    used = [row for row in record.results if _ours(evidence, row)]
    reports = record.groups if isinstance(record, Evaluation) else ()
    for task in dict.fromkeys(row.task for row in used if evidence.is_own(row)):
        rows = tuple(row for row in used if row.task == task)
        known = {row.model for row in rows}
        groups = []
        for report in reports:
            scores = {name: cells for name, cells in report.scores.items() if name in known}
            if scores:
                # Sentences compare all models of the file: where some are not used, they say too much.
                sentences = report.sentences if len(scores) == len(report.scores) else ()
                groups.append(replace(report, scores=scores, sentences=sentences))
        lead = next(row for row in record.results if row.task == task)
        yield ScoredTask(task, file, rows, tuple(groups), evidence.is_teacher(lead))
