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
from dataclasses import dataclass, field
from pathlib import Path

from sslim.errors import OutputError
from sslim.files import read_json
from sslim.identity import COMPUTATION, content_of, sha256_of
from sslim.report import formats
from sslim.report.formats import Facts, Unusable
from sslim.report.inspect import Inspection, inspect_model
from sslim.report.quoting import one_line

FOLDER = "evidence"
DECISIONS = "rollout.toml"
"""What people decide and no program can know: see `checklist.py`."""
SETTINGS = ("config.json", "preprocessor_config.json")
"""Files besides the weights that change what a model computes."""


@dataclass(frozen=True)
class NotUsed:
    """A file, or rows of it, that the report leaves out."""

    file: str
    why: str
    """Key of a sentence in `words.toml`: `unused_...`."""
    detail: str = ""
    """What is wrong, or whose rows they are."""


@dataclass(frozen=True)
class Distance:
    """How far the student is from its teacher, as the run itself measured it."""

    layers: dict[int, Facts]
    """Mapped layer (0: the front, the output of the feature projection) -> cosine and L1, through the learned
    projections."""
    held_out: bool
    """Whether training never heard that audio."""
    utterances: int
    """0: an old run, which does not say."""
    seconds: float
    chosen: str
    """How held-out audio was chosen, such as `by speaker`."""


def distance(result: Facts) -> Distance | None:
    """The distance that `sslim.json["result"]` records, on held-out audio where there was any."""
    held = result.get("held_out")
    found = held["layers"] if held else result.get("layers")
    if not found:
        return None
    return Distance(
        layers={int(layer): found[layer] for layer in sorted(found, key=int)},
        held_out=bool(held),
        utterances=int(held["utterances"] if held else result.get("measured_utterances") or 0),
        seconds=float(held["seconds"]) if held else 0.0,
        chosen=str(held["chosen"]) if held else "",
    )


@dataclass
class Evidence:
    """Everything that one report is made from."""

    folder: Path
    name: str
    inspection: Inspection
    fingerprint: str
    """Of the model in the folder, as it loads today."""
    run: Facts | None = None
    """`sslim.json` of a compressed folder; None: the model was made some other way."""
    teacher: str = ""
    """What the user called the teacher."""
    log: list[Facts] = field(default_factory=list)
    scores: list[Facts] = field(default_factory=list)
    fidelity: list[Facts] = field(default_factory=list)
    benches: list[Facts] = field(default_factory=list)
    exports: list[Facts] = field(default_factory=list)
    not_used: list[NotUsed] = field(default_factory=list)

    @property
    def result(self) -> Facts:
        """The figures of the run, empty where there was none."""
        return {} if self.run is None else dict(self.run["result"])

    @property
    def teacher_fingerprint(self) -> str:
        """Of the teacher; empty where no run recorded it."""
        return "" if self.run is None else str(self.run["teacher"].get("fingerprint") or "")

    @property
    def bench(self) -> Facts | None:
        """The last benchmark with a row of this model."""
        return self.benches[-1] if self.benches else None

    def is_own(self, row: Facts) -> bool:
        """Whether a row is of this model, in whatever format it was run."""
        return row.get("model_fingerprint") == self.fingerprint

    def is_teacher(self, row: Facts) -> bool:
        """Whether a row is of this model's teacher."""
        return bool(self.teacher_fingerprint) and (
            row.get("model_fingerprint") == self.teacher_fingerprint
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters and MACs of the model, and of what it is compared with: its teacher, or where none is
        recorded the dense model of its family."""
        found = self.inspection.to_dict()
        known = self.result or found
        return {
            "parameters": found["parameters"],
            "macs_per_second": found["macs_per_second"],
            "dense_parameters": known["dense_parameters"],
            "dense_macs_per_second": known["dense_macs_per_second"],
        }


def is_log_mel(row: Facts) -> bool:
    """Whether a row of scores is of log-mel features, which are no model."""
    return row["parameters"] == 0 and row["macs_per_second"] == 0


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
    about = read_json(folder / "sslim.json", "a run") if (folder / "sslim.json").exists() else {}
    run = _run(folder, about, inspection) if "result" in about else None
    found = Evidence(
        folder, folder.resolve().name, inspection, _fingerprint(folder, about), run=run
    )
    if run is not None:
        found.teacher = _teacher(found, run)
        log = folder / "run" / "metrics.jsonl"
        if log.exists():
            found.log, problem = formats.log(log)
            if problem:
                found.not_used.append(NotUsed("run/metrics.jsonl", "unused_damaged", problem))
    beside = [*folder.glob("*.onnx.json"), *folder.glob("*.pth.json")]
    for path in [*sorted(folder.glob(f"{FOLDER}/*.json")), *sorted(beside)]:
        try:
            _take(found, path, beside=path.parent == folder)
        except Unusable as error:
            found.not_used.append(NotUsed(one_line(path.name), "unused_damaged", str(error)))
    for path in more:
        try:
            _take(found, path)
        except Unusable as error:
            raise OutputError(
                f"{path} cannot be used as evidence: {error}",
                "give what evaluate, bench or export wrote",
            ) from error
    return found


def _run(folder: Path, about: Facts, inspection: Inspection) -> Facts:
    try:
        run = formats.run(about)
    except Unusable as error:
        raise OutputError(
            f"{folder / 'sslim.json'} is damaged: {error}", "restore it, or compress again"
        ) from error
    here, there = inspection.to_dict()["parameters"], run["result"]["parameters"]
    if here != there:
        raise OutputError(
            f"{folder / 'sslim.json'} is of another model: it says {there:,} parameters, config.json "
            f"{here:,}",
            "restore the file that was changed",
        )
    return run


def _fingerprint(folder: Path, about: Facts) -> str:
    """The identity of the model: what `sslim.json` says where no file has changed since, else computed."""
    known, files = about.get("fingerprint"), about.get("files")
    if isinstance(known, str) and known and isinstance(files, dict):
        here = {path.name for path in folder.glob("*.safetensors")}
        here |= {name for name in SETTINGS if (folder / name).is_file()}
        with contextlib.suppress(OSError):
            paths = [folder / name for name in sorted(here)]
            whole = bool(paths) and all(path.is_file() for path in paths)
            if whole and all(sha256_of(path) == files.get(path.name) for path in paths):
                return known
    from sslim.backbone.loading import load_model

    return load_model(folder).fingerprint


def _teacher(found: Evidence, run: Facts) -> str:
    """What the user called the teacher: `sslim.json`, which may be published, holds its name alone."""
    path = found.folder / "run" / "run.json"
    name: str = run["teacher"]["source"]
    if not path.exists():
        return name
    try:
        teacher = formats.inner(formats.read_facts(path), "teacher")
        if not isinstance(teacher.get("source"), str):
            raise Unusable("teacher.source is no text")
    except Unusable as error:
        found.not_used.append(NotUsed("run/run.json", "unused_damaged", str(error)))
        return name
    return str(teacher["source"])


def _take(found: Evidence, path: Path, *, beside: bool = False) -> None:
    """Puts one file where it belongs, and what is not used on its list.

    Args:
        found: gets it.
        path: the file.
        beside: it lies beside the exported file that it describes, which must be that file still.

    Raises:
        Unusable: it is damaged, or no evidence.
    """
    kind, facts = formats.checked(formats.read_facts(path))
    file = one_line(path.name)

    def leave(why: str, detail: str = "") -> None:
        found.not_used.append(NotUsed(file, why, detail))

    rows = [facts] if kind == "export" else facts["results"]
    if facts["computation"] != COMPUTATION:
        leave("unused_older")
    elif facts.get("random_labels"):
        leave("unused_random")
    elif not any(found.is_own(row) for row in rows):
        _whose(found, rows, leave)
    elif kind == "export" and beside and not _is_file(path.with_suffix(""), facts):
        leave("unused_file", facts["file"])
    else:
        _sort(found, kind, facts, file)
        _whose(found, [row for row in rows if not _ours(found, row)], leave)
        if any(found.is_own(row) and not _from_teacher(found, row) for row in rows):
            leave("unused_teacher")


def _is_file(path: Path, facts: Facts) -> bool:
    """Whether an exported file is the one that its figures are of."""
    try:
        return path.is_file() and content_of(path) == facts.get("fingerprint")
    except OSError:
        return False


def _ours(found: Evidence, row: Facts) -> bool:
    return found.is_own(row) or found.is_teacher(row) or ("chance" in row and is_log_mel(row))


def _whose(found: Evidence, rows: Sequence[Facts], leave: Callable[..., None]) -> None:
    """Lists rows that are not used: of a model of this name that is not this model, and of others."""
    named = [row for row in rows if "model_fingerprint" in row]
    if len(named) < len(rows):
        leave("unused_nameless")
    same = [row for row in named if row.get("model", row.get("file")) == found.name]
    if same:
        leave("unused_stale", found.name)
    others = [row for row in named if row not in same]
    if others:
        said = dict.fromkeys(str(row.get("model", row.get("file"))) for row in others)
        leave("unused_others", one_line(", ".join(said)))


def _sort(found: Evidence, kind: str, facts: Facts, file: str) -> None:
    if kind == "export":
        found.exports = [e for e in found.exports if e["file"] != facts["file"]] + [facts]
    elif kind == "fidelity":
        found.fidelity += [
            row for row in facts["results"] if found.is_own(row) and _from_teacher(found, row)
        ]
    else:
        used = [row for row in facts["results"] if _ours(found, row)]
        if kind == "bench":
            found.benches.append(facts | {"results": used, "source": file})
        else:
            found.scores += _by_task(found, facts, used, file)


def _from_teacher(found: Evidence, row: Facts) -> bool:
    """Whether a distance was measured from this model's teacher; rows that do not say so are believed."""
    said = row.get("teacher_model_fingerprint", row.get("teacher_fingerprint"))
    return said is None or not found.teacher_fingerprint or said == found.teacher_fingerprint


def _by_task(found: Evidence, facts: Facts, used: list[Facts], file: str) -> Iterator[Facts]:
    """Each task with a row of this model; groups keep the models that are used."""
    for task in dict.fromkeys(row["task"] for row in used if found.is_own(row)):
        rows = [row for row in used if row["task"] == task]
        known = {row["model"] for row in rows}
        groups = []
        for report in facts["groups"]:
            scores = {name: cells for name, cells in report["scores"].items() if name in known}
            if scores:
                # Sentences compare all models of the file: where some are not used, they say too much.
                said = report["sentences"] if len(scores) == len(report["scores"]) else []
                groups.append(report | {"scores": scores, "sentences": said})
        lead = next(row for row in facts["results"] if row["task"] == task)
        yield {
            "task": task,
            "source": file,
            "results": rows,
            "groups": groups,
            "against_teacher": found.is_teacher(lead),
        }
