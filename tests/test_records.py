"""Typed records: what a file of ours says of itself, and what reading it refuses."""

from __future__ import annotations

import ast
import json
import math
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

import pytest

import sslim
from sslim.backbone import contents
from sslim.backbone.processing import CLEANERS
from sslim.cli import run
from sslim.errors import OutputError, TeacherError
from sslim.measurements import Benchmark, Evaluation, ExportFacts, FidelityReport, SuiteScores
from sslim.records import Bounds, Count, Record, RecordError, from_json, sensible, to_json
from sslim.report import formats
from sslim.report.evidence import read_evidence
from sslim.report.formats import Unusable
from sslim.runs.facts import CheckpointFacts, DecisionFacts, RunFacts, RunRecord, StateFacts
from tests.conftest import SOURCE
from tests.test_html_report import BENCH, EXPORT, FIDELITY, HELD_OUT, made_run, run_facts, scores


@dataclass(frozen=True)
class Inner:
    name: str
    share: Annotated[float, Bounds(0, 1)] = 0.5


@dataclass(frozen=True)
class Example(Record):
    KIND: ClassVar[str] = "example"
    TITLE: ClassVar[str] = "an example"
    VERSION: ClassVar[int] = 2

    count: Count
    flag: bool = False
    pair: tuple[float, float] | None = None
    inner: tuple[Inner, ...] = ()
    by_layer: dict[int, Inner] | None = None
    anything: Any = None


WHOLE = Example(
    count=3,
    flag=True,
    pair=(0.5, 1.0),
    inner=(Inner("a"), Inner("b", 1.0)),
    by_layer={0: Inner("c"), 12: Inner("d", 0.0)},
    anything={"x": [1, None, "y"]},
)


def every_record() -> list[type[Record]]:
    """All kinds of files that there are."""
    for module in pkgutil.walk_packages(sslim.__path__, "sslim."):
        if not module.name.endswith("__main__"):
            import_module(module.name)

    def below(cls: type[Record]) -> Iterator[type[Record]]:
        for one in cls.__subclasses__():
            yield one
            yield from below(one)

    return [cls for cls in below(Record) if cls.__module__.startswith("sslim.")]


def again(record: Record) -> Record:
    """The record as it comes back from a file."""
    return type(record).from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False)))


# --- the mechanism ------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was() -> None:
    assert again(WHOLE) == WHOLE
    assert WHOLE.to_dict()["kind"] == "example"
    assert WHOLE.to_dict()["version"] == 2
    assert again(replace(WHOLE, count=4)) != WHOLE, "the corrupted twin"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"count": -1}, "count is -1, not between 0 and"),
        ({"count": 1.5}, "count is 1.5, not a whole number"),
        ({"count": True}, "count is True, not a whole number"),
        ({"count": None}, "count is null, not a whole number"),
        ({"count": 10**400}, "count is a number of more than 30 digits"),
        ({"flag": 1}, "flag is 1, not true or false"),
        ({"pair": [1.0]}, "pair has 1 entries, not 2"),
        ({"pair": {"low": 1}}, "pair is an object, not a list"),
        ({"pair": [1.0, math.nan]}, r"pair\[1\] is nan, not between"),
        ({"pair": [1.0, math.inf]}, r"pair\[1\] is inf, not between"),
        ({"inner": [{"name": "a"}, {}]}, r"inner\[1\]\.name is missing"),
        ({"inner": [5]}, r"inner\[0\] is 5, not an object"),
        ({"inner": [{"name": 5}]}, r"inner\[0\]\.name is 5, not a text"),
        ({"by_layer": {"x": {"name": "a"}}}, "by_layer has 'x', which is no number"),
        ({"by_layer": {"4": {"name": "a", "share": 2}}}, r"by_layer\.4\.share is 2.0, not between"),
        ({"kind": "other"}, "its kind is 'other', not 'example'"),
        ({"kind": ["example"]}, "its kind is a list, not 'example'"),
        ({"version": 3}, "it is of version 3, and this sslim knows versions up to 2"),
        ({"version": "2"}, "version is '2', not a whole number"),
        ({"version": None}, "version is null"),
    ],
)
def test_a_wrong_value_is_refused_by_its_place(change: Mapping[str, Any], where: str) -> None:
    with pytest.raises(RecordError, match=where) as error:
        Example.from_dict(WHOLE.to_dict() | change)
    assert "\n" not in str(error.value)
    newer = change.get("version") == 3
    assert error.value.hint == ("update sslim" if newer else "restore or remove it")


def test_what_is_missing_and_what_is_unknown() -> None:
    assert Example.from_dict({"count": 1}) == Example(1), "before files said their kind"
    assert Example.from_dict({"count": 1, "colour": "red"}) == Example(1)
    with pytest.raises(RecordError, match="count is missing"):
        Example.from_dict({})
    # A number is a number, a whole one too.
    assert Example.from_dict({"count": 1, "pair": [0, 1]}).pair == (0.0, 1.0)


def test_what_is_not_finite_is_null() -> None:
    facts = Example(1, anything={"a": (math.nan, -math.inf, 1.0)}).to_dict()
    assert facts["anything"] == {"a": [None, None, 1.0]}


def test_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "example.json"
    WHOLE.write(path)
    assert Example.read(path) == WHOLE
    path.write_text(json.dumps(WHOLE.to_dict() | {"version": 3}))
    with pytest.raises(
        TeacherError, match=r"example\.json cannot be read as an example: .*3"
    ) as error:
        Example.read(path, TeacherError)
    assert error.value.hint == "update sslim"
    path.write_text("[]")
    with pytest.raises(OutputError, match="is not an example"):
        Example.read(path)


def test_what_makes_sense_is_taken_one_by_one() -> None:
    facts = {"status": 3, "update": 7, "seconds_left": math.nan, "host": "here", "kind": "x"}
    assert sensible(StateFacts, facts) == StateFacts(update=7, host="here")


# --- the records that there are ------------------------------------------------------------------------


def test_every_kind_of_file_has_a_name_of_its_own() -> None:
    found = every_record()
    assert len(found) >= 20
    kinds: dict[str, type[Record]] = {}
    for cls in found:
        assert cls.__doc__, cls
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cls.KIND), cls
        assert cls.VERSION == 1, (
            f"{cls.__name__}: a new version needs a test that reads the one before"
        )
        first = kinds.setdefault(cls.KIND, cls)
        assert issubclass(cls, first), f"{cls.__name__} and {first.__name__} are both {cls.KIND}"
        for hint in types_of(cls):
            if get_origin(hint) in (Union, UnionType):  # of two types nobody could tell which it is
                assert len([one for one in get_args(hint) if one is not type(None)]) == 1, cls
    folders = {cls.KIND for cls in found if issubclass(cls, contents.FolderFacts)}
    assert folders == {contents.FolderFacts.KIND, *contents.FolderFacts.READS}


def types_of(cls: type, within: tuple[type, ...] = ()) -> Iterator[Any]:
    """The types of a dataclass's fields, and the types within them; a record may hold its own kind."""
    own = {item.name for item in fields(cls)}
    waiting = [hint for name, hint in get_type_hints(cls).items() if name in own]
    while waiting:
        hint = waiting.pop()
        yield hint
        waiting += get_args(hint)
        if isinstance(hint, type) and is_dataclass(hint) and hint not in (cls, *within):
            yield from types_of(hint, (cls, *within))


def test_files_are_written_by_records_alone() -> None:
    """Foreign formats, and what goes to another process, are no files of ours."""
    written = [
        str(path.relative_to(SOURCE / "sslim"))
        for path in (SOURCE / "sslim").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("write_json", "json.dump")
    ]
    assert written == ["records.py"]


def test_the_files_of_a_folder_are_one_list() -> None:
    assert tuple(CLEANERS) == contents.TOKENIZER
    assert set(contents.MODEL_FILES) <= set(contents.FILES)
    assert len(set(contents.FILES)) == len(contents.FILES)


@pytest.mark.parametrize(
    ("cls", "facts"),
    [
        (Evaluation, scores((-0.03, 0.01))),
        (SuiteScores, {"suite": "superb", "results": scores((-0.03, 0.01))["results"]}),
        (FidelityReport, FIDELITY),
        (Benchmark, BENCH),
        (ExportFacts, EXPORT),
    ],
)
def test_evidence_comes_back_and_is_told_by_its_kind(
    cls: type[Record], facts: dict[str, Any]
) -> None:
    record = cls.from_dict(facts)
    assert again(record) == record
    assert formats.evidence(record.to_dict()) == formats.in_one_line(record)  # type: ignore[comparison-overlap]
    with pytest.raises(Unusable, match="update sslim"):
        formats.evidence(record.to_dict() | {"version": 2})
    for kind in ("run-state", "demo", "", 5, None):
        with pytest.raises(Unusable, match="not what evaluate, bench or export writes"):
            formats.evidence(record.to_dict() | {"kind": kind})
    other = "bench" if cls is ExportFacts else "export"
    with pytest.raises(Unusable):  # keys of one kind under the name of another
        formats.evidence(record.to_dict() | {"kind": other})


def test_the_facts_of_a_run_come_back(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "student", evidence=False)
    facts = RunFacts.read(folder / contents.RECORD)
    assert (facts.settings.stage1.updates, facts.settings.seed) == (40, 0)
    assert facts.result.distance is not None
    assert not facts.result.distance.held_out
    assert again(facts) == facts
    assert facts.files == contents.FolderFacts.read(folder / contents.RECORD).files != {}
    held = run_facts(read_evidence(folder).inspection)
    held["result"]["held_out"] = HELD_OUT
    distance = RunFacts.from_dict(held).result.distance
    assert distance is not None
    assert (distance.held_out, distance.layers[3].cosine) == (True, 0.91)
    # What is shown must have been said: no default of today stands in for it.
    del held["config"]["stage1"]["updates"]
    with pytest.raises(RecordError, match=r"config\.stage1\.updates is missing"):
        RunFacts.from_dict(held)


def test_a_checkpoint_carries_its_decision(tmp_path: Path) -> None:
    decision = DecisionFacts({"conv": [[0]]}, 1, 20, ({"update": 5, "parameters": 9},), 0.5)
    facts = CheckpointFacts(update=4, run="a", structure={"plan": None}, decision=decision)
    facts.write(tmp_path / "state.json")
    assert CheckpointFacts.read(tmp_path / "state.json") == facts


def test_a_newer_run_is_refused_by_every_reader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_run(tmp_path / "student")
    path = folder / contents.RECORD
    whole = json.loads(path.read_text())
    assert (whole["kind"], whole["version"]) == ("run", 1)
    path.write_text(json.dumps(whole | {"version": 2}))
    for verb in ("report", "checklist"):
        assert run([verb, str(folder)]) == 2
        error = capsys.readouterr().err
        assert "version 2" in error
        assert "Update sslim" in error
        assert error.count("\n") == 1
    path.write_text(json.dumps(whole))
    assert run(["report", str(folder)]) == 0
    # Evidence of a newer version is listed and left out.
    for file in (folder / "evidence").iterdir():
        kind = {"ks": "scores"}.get(file.stem, file.stem)
        file.write_text(json.dumps(json.loads(file.read_text()) | {"kind": kind, "version": 2}))
    found = read_evidence(folder)
    assert [*found.scores, *found.benches, *found.fidelity] == []
    assert len([left for left in found.not_used if "update sslim" in left.detail]) == 3


def test_a_run_of_another_kind_is_no_run(tmp_path: Path) -> None:
    """A folder that says `conversion` is not taken for a run, whatever keys it has."""
    folder = made_run(tmp_path / "student", evidence=False)
    path = folder / contents.RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "conversion"}))
    assert read_evidence(folder).run is None
    with pytest.raises(OutputError, match="its kind is 'conversion', not 'run'"):
        RunFacts.read(path)
    (tmp_path / "run.json").write_text(json.dumps({"kind": "run-state", "version": 1}))
    with pytest.raises(OutputError, match="its kind is 'run-state', not 'run-record'"):
        RunRecord.read(tmp_path / "run.json")


def test_a_plain_dataclass_is_read_as_well() -> None:
    assert from_json(Inner, to_json(Inner("x", 0.25))) == Inner("x", 0.25)
    with pytest.raises(RecordError, match="it is 5, not an object"):
        from_json(Inner, 5)
