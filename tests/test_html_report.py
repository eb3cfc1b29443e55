"""The report and the checklist: read from files, complete in both languages, honest about what is missing."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

import pytest

from sslim.backbone.loading import load_model
from sslim.backbone.saving import save_folder
from sslim.backbone.units import plan_of, shape_of
from sslim.cli import run
from sslim.errors import ConfigError, OutputError
from sslim.identity import COMPUTATION, content_of
from sslim.layout import KINDS
from sslim.report import figures
from sslim.report.card import model_card
from sslim.report.checklist import FIELDS
from sslim.report.evidence import read_evidence
from sslim.report.figures import ranges
from sslim.report.inspect import Inspection
from sslim.report.page import write_report
from sslim.report.verdict import judge
from sslim.report.words import LANGUAGES, Words, texts
from sslim.runs.facts import RunFacts
from tests.test_export import loaded_model

TEACHER, OTHER = "t" * 64, "o" * 64
HERE = "the model in the folder"
"""Stands in evidence for the fingerprint of the model that it lies beside; `put` writes the real one."""
GROUPS_CELL = {"clips": 30, "score": 0.7, "interval": [0.6, 0.8]}


def identity(model: str) -> dict[str, str]:
    known = {"teacher": TEACHER, "student": HERE, "fbank": "log-mel"}.get(model, OTHER)
    return {"fingerprint": f"{known}-float32", "model_fingerprint": known}


def score_row(model: str, score: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "task": "ks",
        "metric": "accuracy",
        "higher_is_better": True,
        "score": score,
        "interval": [score - 0.02, score + 0.02],
        "difference": score - 0.8,
        "difference_interval": [low, high],
        "parameters": 0 if model == "fbank" else 1000,
        "macs_per_second": 0 if model == "fbank" else 1,
        "chance": 0.1,
        "conditions": {"noise, 5 dB": {"score": score / 2, "interval": [0, 1], "change": -0.1}},
        **identity(model),
        **more,
    }


def scores(difference: tuple[float, float], student: float = 0.78) -> dict[str, Any]:
    cell = GROUPS_CELL
    return {
        "task": "ks",
        "computation": COMPUTATION,
        "random_labels": False,
        "results": [
            score_row("teacher", 0.8, 0.0, 0.0),
            score_row("student", student, *difference),
            score_row("fbank", 0.4, -0.5, -0.3),
        ],
        "groups": [
            {
                "column": "gender",
                "scores": {"teacher": {"f": cell, "m": cell}, "student": {"f": cell, "m": cell}},
                "gaps": {},
                "sentences": ["The gap has not widened."],
            }
        ],
    }


def bench_row(model: str, runtime: str, factor: float, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "runtime": runtime,
        "threads": 1,
        "seconds": 10.0,
        "median": 10 * factor,
        "quartiles": [9.9 * factor, 10.1 * factor],
        "first_answer": 0.5,
        "ratio": 0.2 / factor,
        "real_time_factor": factor,
        "peak_bytes": 2**28,
        "file_bytes": 10**6,
        "noisy": False,
        **identity(model),
        **more,
    }


def bench(*rows: dict[str, Any], **machine: Any) -> dict[str, Any]:
    return {
        "machine": {"processor": "A processor", **machine},
        "price_per_hour": None,
        "computation": COMPUTATION,
        "results": list(rows),
    }


BENCH = bench(
    bench_row("teacher", "torch", 0.2),
    bench_row("teacher", "onnx-int8", 0.1),
    bench_row("student", "torch", 0.08),
    bench_row("student", "onnx-int8", 0.05),
)
FIDELITY = {
    "computation": COMPUTATION,
    "results": [
        {
            "model": "student",
            "utterances": 5,
            "layers": [{"layer": n, "cosine": 0.9, "l1": 0.1, "cka": 0.9} for n in range(4)],
            "worst": [],
            **identity("student"),
        }
    ],
}
EXPORT = {
    "file": "m.onnx",
    "format": "onnx",
    "bytes": 1000,
    "check": None,
    "passed": True,
    "worst_cosine": 0.9999,
    "computation": COMPUTATION,
    **identity("student"),
}
HELD_OUT = {
    "utterances": 12,
    "seconds": 61.5,
    "chosen": "by speaker",
    "layers": {"0": {"cosine": 0.97, "l1": 0.2}, "3": {"cosine": 0.91, "l1": 0.3}},
    "loss": -0.5,
}


def run_facts(plan: Inspection) -> dict[str, Any]:
    """`sslim.json` as version 0.1 wrote it: without kind and version."""
    sizes = plan.to_dict()
    names = ("parameters", "dense_parameters", "macs_per_second", "dense_macs_per_second")
    return {
        "name": "student",
        "recipe": "fast",
        "config": {
            "stage1": {"updates": 40},
            "stage2": {"updates": 20},
            "seconds_per_update": 160.0,
            "seed": 0,
        },
        "audio": {
            "seconds": 7200.0,
            "described": "20 utterances, 2.0 h",
            "source": "my_audio",
            "fingerprint": "a" * 64,
        },
        "teacher": {"source": "teacher", "fingerprint": TEACHER},
        "device": "cpu",
        "precision": "float32",
        "versions": {"sslim": "0"},
        "result": {name: sizes[name] for name in names}
        | {
            "family": "hubert",
            "file_bytes": 0,
            "seconds": 90.0,
            "layers": {
                "0": {"cosine": 0.99, "l1": 0.1},
                "3": {"cosine": 0.95, "l1": 0.2},
            },
            "measured_utterances": 32,
            "hidden_states": 4,
            "width": 32,
            "hop": 320,
            "normalise": False,
            "undecided": 1,
            "units": 100,
        },
    }


def put(path: Path, facts: Any, run: Path) -> Path:
    """Writes evidence that is of the model in `run`."""
    path.parent.mkdir(exist_ok=True)
    own = load_model(run).fingerprint
    path.write_text(json.dumps(facts).replace(HERE, own))
    return path


def made_run(out: Path, *, evidence: bool = True) -> Path:
    """A compressed folder as `compress` leaves it, with evidence of every kind."""
    loaded = loaded_model("hubert", pruned=3)
    plan = Inspection("student", shape_of(loaded.model), plan_of(loaded.model))
    facts = RunFacts.from_dict(run_facts(plan))
    save_folder(out, loaded.whole, normalise=False, facts=facts, card=model_card(facts))
    (out / "run").mkdir()
    lines = [
        {
            "stage": "stage1",
            "update": 10 * n,
            "loss": 1.0 / n,
            "sparsity": 0.1 * n,
            "target": 0.2 * n,
        }
        | {"shrinks": float(n > 2), "open.conv": 0.9, "open.head": 0.8, "open.ffn": 0.7}
        for n in range(1, 5)
    ] + [
        {"stage": "stage2", "update": 10, "loss": 0.2},
        {"stage": "stage2", "update": 20, "loss": 0.1},
    ]
    log = "\n".join(map(json.dumps, lines))
    (out / "run" / "metrics.jsonl").write_text(log + "\n")
    if evidence:
        folder = out / "evidence"
        put(folder / "ks.json", scores((-0.03, 0.01)), out)
        put(folder / "bench.json", BENCH, out)
        put(folder / "fidelity.json", FIDELITY, out)
        (out / "m.onnx").write_bytes(bytes(1000))
        file = {"fingerprint": content_of(out / "m.onnx")}
        put(out / "m.onnx.json", EXPORT | file, out)
    return out


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return made_run(tmp_path / "student")


def test_the_feature_projection_is_no_layer_of_number_zero(whole: Path) -> None:
    """Its output is the front; the 0 of `evaluate --task fidelity` is the first of the hidden states."""
    [picture] = figures.fidelity(read_evidence(whole), Words("en"))
    names = [row[1] for row in picture.table.rows]
    assert names == ["front", "3", "0", "1", "2", "3"]
    assert "| front | 0.9900 |" in (whole / "README.md").read_text()
    assert "| 0 |" not in (whole / "README.md").read_text()


def test_both_languages_are_complete_and_take_the_same_figures() -> None:
    for key, text in texts().items():
        assert set(text) == set(LANGUAGES), key
        assert all(text.values()), key
        fields = [
            {name for _, name, _, _ in string.Formatter().parse(text[language]) if name}
            for language in LANGUAGES
        ]
        assert fields[0] == fields[1], key
        assert re.search("[ぁ-んァ-ヶ一-龥]", text["ja"]), key


def test_every_text_that_is_asked_for_exists() -> None:
    source = Path(__file__).resolve().parents[1] / "src" / "sslim" / "report"
    asked = set()
    for path in (*source.glob("*.py"), source / "page.html"):
        asked |= set(re.findall(r"""say\(['"]([a-z_]+)['"]""", path.read_text()))
    assert len(asked) > 60
    assert asked <= set(texts())


def test_every_kind_of_units_has_words_and_one_without_prints_as_its_name() -> None:
    assert set(KINDS) <= set(texts())
    assert Words("en").kind("head") == "Attention heads"
    assert Words("ja").kind("made_up") == "made_up"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_whole_report_stands_alone(whole: Path, tmp_path: Path, language: str) -> None:
    text = write_report([whole], tmp_path / "r.html", language=language).read_text()
    body = text[: text.index("<script>/**")] if "<script>/**" in text else text[:200_000]
    assert not re.search(r"(src|href)=[\"'](https?:)?//", body)
    for key in ("layers", "parts", "training", "fidelity", "scores", "noise", "groups", "latency"):
        assert f'<section id="{key}"' in body
    assert '<section id="cost"' in body
    for kind in ("conv", "head", "ffn", "tap"):
        assert f'data-figure="layers-{kind}"' in body
    assert "The gap has not widened." in body
    assert texts()["missing_none"][language] in body


def test_what_is_missing_names_its_command(tmp_path: Path) -> None:
    bare = made_run(tmp_path / "student", evidence=False)
    text = write_report([bare], tmp_path / "r.html").read_text()
    assert f"sslim bench teacher {bare}" in text
    assert f"--task fidelity --data my_audio/ --json {bare}/evidence/fidelity.json" not in text
    assert f"--json {bare}/evidence/ks.json" in text
    assert "Not decided" in text
    assert '<section id="scores"' not in text


@pytest.mark.parametrize(
    ("difference", "student", "decision"),
    [
        ((-0.039, 0.01), 0.78, "yes"),
        ((-0.039, -0.01), 0.78, "yes"),  # a certain loss, and a small one
        ((-0.05, 0.01), 0.78, "pilot"),  # perhaps more than 5%
        ((-0.2, -0.1), 0.65, "no"),
        ((-0.3, 0.01), 0.65, "pilot"),  # nobody knows
    ],
)
def test_the_recommendation_follows_from_intervals(
    tmp_path: Path, difference: tuple[float, float], student: float, decision: str
) -> None:
    folder = made_run(tmp_path / "student", evidence=False)
    file = put(tmp_path / "ks.json", scores(difference, student), folder)
    verdict = judge(read_evidence(folder, [file]))
    assert verdict.decision == decision
    assert verdict.worst is not None
    assert verdict.worst.kept == pytest.approx(student / 0.8)
    assert verdict.speed is None


def test_scores_without_intervals_decide_nothing(tmp_path: Path) -> None:
    """Without intervals nobody knows whether the teacher itself is above chance."""
    folder = made_run(tmp_path / "student", evidence=False)
    facts = scores((0, 0))
    for row in facts["results"]:
        row["interval"] = row["difference_interval"] = None
    file = put(tmp_path / "ks.json", facts, folder)
    verdict = judge(read_evidence(folder, [file]))
    assert verdict.decision == "unknown"
    assert [loss.unknown for loss in verdict.losses] == ["why_no_interval"]
    text = write_report([folder], tmp_path / "r.html", evidence=[file]).read_text()
    assert "the scores have no intervals" in text


def test_error_rates_count_the_other_way(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "student", evidence=False)
    facts = scores((0.1, 0.2))
    for row, score in zip(facts["results"], (0.8, 0.9, 0.95), strict=True):
        row |= {"higher_is_better": False, "chance": 1.0, "score": score}
        row |= {"interval": [score - 0.02, score + 0.02], "difference": score - 0.8}
    facts["results"][2]["difference_interval"] = [0.1, 0.2]
    verdict = judge(read_evidence(folder, [put(tmp_path / "per.json", facts, folder)]))
    assert verdict.decision == "no"
    assert verdict.worst is not None
    assert verdict.worst.kept == pytest.approx(0.1 / 0.2)
    assert verdict.worst.at_worst == 0.0  # 20% right, and perhaps 20 points lost


def test_speed_is_the_benchmarks_where_there_is_one(whole: Path) -> None:
    speed = judge(read_evidence(whole)).speed
    assert speed is not None
    # int8 beside int8: the quotient with the teacher in torch would be 4.
    assert speed.times == pytest.approx(2.0)
    assert (speed.runtime, speed.teacher_runtime) == ("onnx-int8", "onnx-int8")


def test_several_runs_are_compared(tmp_path: Path) -> None:
    first, second = made_run(tmp_path / "student"), made_run(tmp_path / "b", evidence=False)
    text = write_report([first, second], tmp_path / "r.html").read_text()
    assert "Comparison of 2 models" in text
    assert 'id="figure-comparison"' in text
    assert "no task was scored" in text


def test_the_checklist_is_ticked_from_evidence(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["checklist", str(whole)]) == 0
    lines = capsys.readouterr().out.splitlines()
    state = {line[2:].split(":")[0]: line[0] for line in lines if not line.startswith(" ")}
    assert state["Scored on your own data"] == "✓"
    assert state["Checked for groups of speakers"] == "✓"
    assert state["Exported, and the file compared with the model"] == "✓"
    assert state["The way back is known"] == "○"
    assert any(f"sslim checklist {whole} --init" in line for line in lines)
    assert run(["checklist", str(whole), "--init"]) == 0
    assert run(["checklist", str(whole), "--init"]) == 2
    decided = "\n".join(f'{name} = "somebody"' for name in FIELDS)
    (whole / "rollout.toml").write_text(decided)
    capsys.readouterr()
    assert run(["checklist", str(whole), "--lang", "ja"]) == 0
    assert "○" not in capsys.readouterr().out
    (whole / "rollout.toml").write_text('ownr = "somebody"')
    assert run(["checklist", str(whole)]) == 2
    assert "'ownr'" in capsys.readouterr().err


def test_bad_input_is_a_sentence(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(tmp_path / "nowhere")]) == 2
    assert run(["report", str(whole), "--lang", "fr"]) == 2
    assert "no language 'fr'" in capsys.readouterr().err
    (tmp_path / "x.json").write_text('{"a": 1}')
    with pytest.raises(OutputError, match="not what evaluate, bench or export writes"):
        read_evidence(whole, [tmp_path / "x.json"])
    with pytest.raises(ConfigError, match="several runs"):
        write_report([whole, whole], tmp_path / "r.html", evidence=[tmp_path / "x.json"])
    (whole / "evidence" / "x.json").write_text("no json")
    assert "x.json" in write_report([whole], tmp_path / "r.html").read_text()


def test_ranges() -> None:
    assert ranges([3, 0, 1, 2, 7]) == "0-3, 7"
    assert ranges([]) == ""
