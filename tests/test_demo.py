"""The demo: speech made here, the embedded teacher, and the comparison, on the smallest scale."""

from __future__ import annotations

import csv
import html
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from sslim.audio.batch import Batch
from sslim.backbone.loading import load_model
from sslim.backbone.units import plan_of, shape_of
from sslim.demo import folder as demo_folder
from sslim.demo import speech as demo_speech
from sslim.demo import teacher_path
from sslim.demo.run import run_demo
from sslim.demo.speech import DemoError, make_speech
from sslim.errors import BudgetError, OutputError
from sslim.prune.first_layers import first_layers
from sslim.report.evidence import read_evidence
from sslim.report.page import task_sentences
from sslim.report.verdict import judge
from sslim.report.words import Words
from tests.tasks import plain_task

FEW_VOICES = {"train": ("m1", "f1", "m3"), "valid": ("f2",), "test": ("m2",)}
FEW_WORDS = {"en": ("yes", "stop", "left", "right"), "de": ("ja", "halt", "links", "rechts")}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_speech, "VOICES", FEW_VOICES)
    monkeypatch.setattr(demo_speech, "WORDS", FEW_WORDS)


def test_the_embedded_teacher_is_small_and_real() -> None:
    size = sum(path.stat().st_size for path in teacher_path().iterdir())
    assert size < 8 * 2**20
    loaded = load_model(teacher_path())
    assert loaded.family == "hubert"
    assert not loaded.normalise
    weights = list(loaded.model.parameters())
    assert sum(weight.numel() for weight in weights) == 3_106_176
    assert all(weight.dtype == torch.float32 for weight in weights)


@pytest.mark.usefixtures("small")
def test_speech_is_the_same_for_the_same_seed_and_parts_do_not_mix(tmp_path: Path) -> None:
    first = make_speech(tmp_path / "a", seed=1)
    make_speech(tmp_path / "b", seed=1)
    make_speech(tmp_path / "c", seed=2)
    with first.manifest.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert first.clips == len(rows) == 5 * 8 * 2
    samples = []
    for folder in "abc":
        waveform, rate = soundfile.read(tmp_path / folder / rows[7]["path"])
        assert rate == 16_000
        assert len(waveform) >= 16_000
        assert float(np.abs(waveform).max()) > 0.1
        samples.append(waveform)
    assert np.array_equal(samples[0], samples[1])
    assert samples[0].shape != samples[2].shape or not np.array_equal(samples[0], samples[2])
    speakers = {
        part: {row["speaker"] for row in rows if row["split"] == part} for part in FEW_VOICES
    }
    assert not speakers["train"] & (speakers["valid"] | speakers["test"])
    for part in FEW_VOICES:
        assert {row["speaker"] for row in rows if row["voice_split"] == part} == set(
            sum(FEW_VOICES.values(), ())
        )


def test_without_the_synthesiser_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "espeakng_loader", None)
    with pytest.raises(DemoError, match=r"pip install 'sslim\[demo\]'"):
        make_speech(tmp_path)


@pytest.mark.usefixtures("small")
def test_the_whole_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        "stage1.updates=4",
        "stage2.updates=2",
        "seconds_per_update=4",
        "workers=0",
        "precision=float32",
    ]
    result = run_demo(tmp_path / "demo", settings=settings, progress=False)
    printed = capsys.readouterr().out
    assert [row.name for row in result.rows] == [
        "teacher",
        "compressed",
        "distillation only",
        "log-mel, no model",
    ]
    teacher, compressed, distilled, _ = result.rows
    limit = teacher.parameters // 4
    assert 0.99 * limit <= compressed.parameters <= limit
    assert 0.97 * compressed.parameters <= distilled.parameters <= compressed.parameters
    for row in result.rows:
        assert 0.0 <= row.word_interval[0] <= row.word_accuracy <= row.word_interval[1] <= 1.0
        assert 0.0 <= row.voice_interval[0] <= row.voice_accuracy <= row.voice_interval[1] <= 1.0
    assert f"{compressed.parameters:,}" in printed
    out = tmp_path / "demo"
    saved = json.loads((out / "results.json").read_text())
    assert saved["rows"][1]["parameters"] == compressed.parameters
    for name in ("student", "distilled"):
        load_model(out / name)
    # What is printed is what the report says, and the report reads what evaluate wrote.
    for asked, score in (("words", "word_accuracy"), ("voices", "voice_accuracy")):
        evidence = json.loads((out / "student" / "evidence" / f"{asked}.json").read_text())
        assert [row["score"] for row in evidence["results"]] == [
            getattr(row, score) for row in result.rows
        ]
    verdict = judge(read_evidence(out / "student"))
    assert result.sentences[:-1] == tuple(task_sentences(verdict, Words("en")))
    assert result.sentences[-1] in html.unescape((out / "student" / "report.html").read_text())
    assert all(sentence in printed for sentence in result.sentences)
    with pytest.raises(OutputError, match="--force"):
        run_demo(out, settings=settings, progress=False)
    (out / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        run_demo(out, force=True, progress=False)
    result.render(Console(width=80))


def test_force_takes_away_what_a_demo_wrote_and_nothing_else(tmp_path: Path) -> None:
    """A corpus of somebody's in OUT/speech: no record says that it is ours."""
    out = tmp_path / "data"
    (out / "speech").mkdir(parents=True)
    (out / "speech" / "corpus.wav").write_bytes(b"speech")
    with pytest.raises(OutputError, match="no record"):
        demo_folder.prepare(out, force=True)
    assert (out / "speech" / "corpus.wav").is_file()
    # With a record goes what a demo writes; a file of somebody's beside it stays.
    ours = [out / "speech" / name for name in ("manifest.csv", *demo_speech.file_names()[:3])]
    ours += [out / "results.json", out / "distilled" / "model.safetensors"]
    demo_folder.prepare(tmp_path / "new", force=False)
    (tmp_path / "new" / "demo.json").replace(out / "demo.json")
    for path in ours:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"made")
    with pytest.raises(OutputError, match="--force"):
        demo_folder.prepare(out, force=False)
    assert all(path.is_file() for path in ours)
    demo_folder.prepare(out, force=True)
    assert not any(path.exists() for path in ours)
    assert (out / "speech" / "corpus.wav").read_bytes() == b"speech"
    assert sorted(path.name for path in out.iterdir()) == ["demo.json", "speech"]


def test_force_does_not_follow_a_link_out_of_the_folder(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "demo", tmp_path / "elsewhere"
    demo_folder.prepare(out, force=False)
    elsewhere.mkdir()
    (elsewhere / "manifest.csv").write_text("mine")
    (out / "speech").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="is a link"):
        demo_folder.prepare(out, force=True)
    (out / "speech").unlink()
    (out / "speech").mkdir()
    (out / "speech" / "clips").symlink_to(elsewhere)
    (elsewhere / "m1").mkdir()
    inside = elsewhere / Path(demo_speech.file_names()[0]).relative_to("clips")
    inside.write_text("mine")
    demo_folder.prepare(out, force=True)
    assert inside.read_text() == "mine"
    assert (elsewhere / "manifest.csv").read_text() == "mine"


def test_a_damaged_record_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"made_by": "somebody"')
    with pytest.raises(OutputError, match="no record"):
        demo_folder.prepare(tmp_path, force=True)
    assert (tmp_path / "demo.json").is_file()


def test_the_distilled_student_is_the_first_layers() -> None:
    teacher = load_model(teacher_path()).model
    student = first_layers(teacher, 776_544)
    count = sum(weight.numel() for weight in student.parameters())
    assert plan_of(student).parameters(shape_of(student)) == count
    assert 0.99 * 776_544 < count <= 776_544
    assert len(student.encoder.layers) == 1
    with torch.no_grad():
        waveforms = 0.1 * torch.randn(1, 8000)
        mine, theirs = student.feature_extractor(waveforms), teacher.feature_extractor(waveforms)
    assert torch.equal(mine, theirs)
    larger = first_layers(teacher, 2_000_000)
    assert len(larger.encoder.layers) > 1
    with pytest.raises(BudgetError, match="not even one layer"):
        first_layers(teacher, 1000)


def test_prediction_heads_learn() -> None:
    torch.manual_seed(0)
    teacher = load_model(teacher_path()).model
    student = first_layers(teacher, 776_544)
    task = plain_task(teacher, student, objectives=["last_layer"], layers=(0, 2, 4, 6))
    assert task.teacher_reads == ("layer.2", "layer.4", "layer.6")
    assert task.student_reads == (f"layer.{len(student.encoder.layers)}",)
    optimiser = torch.optim.AdamW(task.parameter_groups())
    batch = Batch(0.1 * torch.randn(2, 8000), ("one", "two"))
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = task(batch)["loss"]
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
