"""The demo: speech made here, the embedded teacher, and the comparison, on the smallest scale."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from sslim.backbone.loading import load_model
from sslim.backbone.units import plan_of, shape_of
from sslim.demo import run as demo_run
from sslim.demo import speech as demo_speech
from sslim.demo import teacher_path
from sslim.demo.run import run_demo
from sslim.demo.speech import DemoError, make_speech
from sslim.distill.prediction import PredictionTask, first_layers
from sslim.errors import BudgetError, OutputError

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
    assert all(0.0 <= row.word_accuracy <= 1.0 for row in result.rows)
    assert f"{compressed.parameters:,}" in printed
    saved = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert saved["rows"][1]["parameters"] == compressed.parameters
    for name in ("student", "distilled"):
        load_model(tmp_path / "demo" / name)
    with pytest.raises(OutputError, match="--force"):
        run_demo(tmp_path / "demo", settings=settings, progress=False)
    (tmp_path / "demo" / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        run_demo(tmp_path / "demo", force=True, progress=False)
    result.render(Console(width=80))


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
    task = PredictionTask(
        teacher,
        first_layers(teacher, 776_544),
        layers=(0, 2, 4, 6),
        learning_rate=1e-3,
        normalise_waveform=False,
    )
    assert len(task.heads) == 3
    optimiser = torch.optim.AdamW(task.parameter_groups())
    waveforms = 0.1 * torch.randn(2, 8000)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = task(waveforms)["loss"]
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1


def test_the_demo_measures_what_it_says() -> None:
    """Features that hold the label are read perfectly, noise sits at chance."""
    generator = np.random.default_rng(0)
    rows = [
        {"label": f"w{i % 4}", "speaker": f"v{i % 3}", "split": part, "voice_split": part}
        for part in ("train", "valid", "test")
        for i in range(60)
    ]

    def telling(clip: np.ndarray) -> np.ndarray:
        return np.tile(clip, (1, 5, 1))

    clips = [
        np.eye(7)[int(row["label"][1])] + np.eye(7)[4 + int(row["speaker"][1])] for row in rows
    ]
    words, voices = demo_run._probes(telling, clips, rows)
    assert words.mean == voices.mean == 1.0
    noise = [generator.standard_normal(7) for _ in rows]
    words, voices = demo_run._probes(telling, noise, rows)
    assert words.mean < 0.5
    assert voices.mean < 0.6
