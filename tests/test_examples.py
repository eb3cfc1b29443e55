"""The examples run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2FeatureExtractor

from sslim.backbone.loading import load_model
from tests.conftest import REPOSITORY
from tests.models import tiny_teacher


@pytest.mark.slow
def test_a_tiny_teacher_is_pretrained(tmp_path: Path) -> None:
    """Two short rounds end in a folder that sslim takes as a teacher, and the units are learned."""
    generator = np.random.default_rng(0)
    times = np.arange(24_000) / 16_000
    for index in range(12):
        pitch = 150.0 * (1 + index % 4)
        wave = 0.2 * np.sin(2 * np.pi * pitch * times * (1 + 0.3 * np.floor(times * 4)))
        soundfile.write(
            tmp_path / f"{index}.wav", wave + 0.01 * generator.standard_normal(len(wave)), 16_000
        )
    script = REPOSITORY / "examples" / "tiny_teacher" / "pretrain.py"
    command = [sys.executable, str(script), str(tmp_path), str(tmp_path / "out")]
    command += ["--updates", "24", "4", "--clusters", "8", "8", "--seconds-per-update", "6"]
    done = subprocess.run(
        [*command, "--log-every", "6"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    accuracies = [
        float(line.split("accuracy ")[1].split(" ")[0])
        for line in done.stdout.splitlines()
        if "accuracy" in line
    ]
    assert accuracies[3] > max(accuracies[0], 1 / 8), "masked frames are not learned"
    loaded = load_model(tmp_path / "out")
    assert loaded.family == "hubert"
    assert sum(weight.numel() for weight in loaded.model.parameters()) == 3_106_176


@pytest.mark.slow
def test_the_example_refuses_bad_audio_in_one_line(tmp_path: Path) -> None:
    script = REPOSITORY / "examples" / "tiny_teacher" / "pretrain.py"
    command = [sys.executable, str(script), str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no audio found")


def test_an_s3prl_upstream_keeps_its_contract(tmp_path: Path) -> None:
    """What s3prl asks of an upstream, without s3prl: layers, lengths, and clips that do not mix."""
    sys.path.insert(0, str(REPOSITORY / "examples" / "s3prl"))
    try:
        import run as example
    finally:
        sys.path.pop(0)
    tiny_teacher("hubert").save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    upstream = example.UpstreamExpert(str(tmp_path)).eval()
    wavs = [torch.randn(16_000), torch.randn(9_000)]
    with torch.no_grad():
        states = upstream(wavs)["hidden_states"]
        alone = upstream(wavs[1:])["hidden_states"]
    assert len(states) == 4
    assert upstream.get_downsample_rates("hidden_states") == 320
    assert states[0].shape[:2] == (2, 49)
    assert abs(alone[0].shape[1] - 9_000 / 320) < 5
    for together, one in zip(states, alone, strict=True):
        assert torch.equal(together[1, : one.shape[1]], one[0])


def test_s3prl_trains_and_scores_with_the_upstream(tmp_path: Path) -> None:
    pytest.importorskip("s3prl", reason="s3prl is not installed; examples/s3prl/README.md says how")
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for word in ("yes", "no"):
            (tmp_path / part / word).mkdir(parents=True)
            for voice in range(20):  # s3prl puts a tenth of the voices into the validation part
                wave = 0.1 * draw.standard_normal(8000 + 100 * voice)
                soundfile.write(tmp_path / part / word / f"{voice}_nohash_0.wav", wave, 16_000)
    settings = (REPOSITORY / "examples" / "s3prl" / "keywords.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("TRAIN", str(tmp_path / "train")),
        ("TEST", str(tmp_path / "test")),
        ("total_steps: 600", "total_steps: 2"),
        ("eval_step: 200", "eval_step: 2"),
        ("batch_size: 32", "batch_size: 4"),
    ):
        assert old in settings
        settings = settings.replace(old, new)
    (tmp_path / "keywords.yaml").write_text(settings, encoding="utf-8")
    script = REPOSITORY / "examples" / "s3prl" / "run.py"
    folder = REPOSITORY / "src" / "sslim" / "demo" / "teacher"
    command = [sys.executable, str(script), str(folder), "-m", "train", "-n", "once"]
    command += ["-d", "speech_commands", "-c", str(tmp_path / "keywords.yaml"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test acc: " in done.stdout
