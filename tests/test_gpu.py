"""What only a CUDA device can show; everything here skips without one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sslim.audio.batch import Batch
from sslim.cli import run
from sslim.demo import teacher_path
from sslim.distill.task import Task
from sslim.evaluate.fitting import Schedule
from sslim.evaluate.run import evaluate
from sslim.evaluate.scorer import Settings
from sslim.prune.gates import KeptLayerNorm
from sslim.train.memory import seconds_that_fit
from sslim.train.processes import Processes
from sslim.train.step import Step
from tests import sounds
from tests.models import CASES, tiny_teacher
from tests.tasks import budget_of, gated_task, teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CUDA = torch.device("cuda")


def joint_task(family: str = "hubert", size: str = "base") -> Task:
    model = teacher(family, size)
    return gated_task(model, budget=budget_of(model, 0.5), seed=0)


@pytest.mark.parametrize(("family", "size"), CASES)
def test_a_gpu_gives_what_a_cpu_gives(family: str, size: str) -> None:
    task = joint_task(family, size)
    audio = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    batch = Batch(audio, ("one", "two"))
    task.begin_update(0)
    wanted = float(task(batch)["loss"].detach())
    task.to(CUDA)
    task.begin_update(0)
    assert float(task(batch.to(CUDA))["loss"].detach()) == pytest.approx(wanted, abs=1e-3)


def test_a_step_never_waits_for_the_device() -> None:
    task = joint_task().to(CUDA)
    step = Step(task, Processes(0, 1, CUDA), precision=torch.bfloat16, clip_norm=10.0)
    audio = [Batch(0.1 * torch.randn(4, 16_000, device=CUDA), ("clip",) * 4) for _ in range(2)]
    step(0, 1.0, audio)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for update in range(1, 4):
            step(update, 1.0, audio)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_is_said_to_fit_does() -> None:
    task = joint_task().to(CUDA)
    processes = Processes(0, 1, CUDA)
    seconds = seconds_that_fit(task, processes, torch.bfloat16, 15.0)
    assert seconds >= 15.0
    step = Step(task, processes, precision=torch.bfloat16, clip_norm=10.0)
    rows = int(seconds // 15)
    noise = 0.1 * torch.randn(rows, 15 * 16_000, device=CUDA)
    step(0, 1.0, [Batch(noise, ("noise",) * rows)])
    assert step.largest is None, "nothing had to be made smaller"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    tiny_teacher("wavlm").save_pretrained(tmp_path / "teacher")
    (tmp_path / "audio").mkdir()
    draw = np.random.default_rng(0)
    for clip in range(8):
        noise = 0.1 * draw.standard_normal(16_000)
        soundfile.write(tmp_path / "audio" / f"{clip}.wav", noise, 16_000)
    return tmp_path


def command(corpus: Path, out: str, *settings: str) -> list[str]:
    """A run as a person types it: bar or lines on, the device found by itself."""
    words = ["compress", str(corpus / "teacher"), str(corpus / "audio"), str(corpus / out)]
    words += ["--params", "50%"]
    for setting in (
        "seconds_per_update=8",
        "audio.min_seconds=0.5",
        "audio.max_seconds=1",
        "stage1.updates=25",
        "stage2.updates=12",
        *settings,
    ):
        words += ["--set", setting]
    return words


def facts_of(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "sslim.json").read_text())
    return facts


@pytest.mark.parametrize("terminal", [False, True])
def test_a_whole_run(
    corpus: Path,
    terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Figures are looked at every tenth update: the first nine have none to show."""
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(command(corpus, "out")) == 0
    result = facts_of(corpus / "out")["result"]
    assert result["parameters"] <= 0.5 * result["dense_parameters"]
    assert facts_of(corpus / "out")["device"] == torch.cuda.get_device_name()
    assert (corpus / "out" / "report.html").is_file()
    if not terminal:
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("stage1 ")]
        assert "loss" not in lines[0]
        assert "loss" in lines[-1]
    log = (corpus / "out" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in log] == [10, 20, 25, 10, 12]


@pytest.mark.parametrize(
    "settings",
    [
        ("log_every=1000",),
        ("check_every=7", "log_every=5", "checkpoint_every=9"),
        ("precision=float32", "stage1.shrink_chances=20", "stage1.shrink_multiple=1"),
        ("workers=0", "stage2.updates=0"),
        ("target_cache_gib=0.1",),
        ("budget_quantity=macs", "seconds_per_batch=2"),
    ],
    ids=", ".join,
)
def test_runs_with_other_settings(corpus: Path, settings: tuple[str, ...]) -> None:
    assert run(command(corpus, "out", *settings)) == 0
    quantity = facts_of(corpus / "out")["config"]["budget_quantity"]
    result = facts_of(corpus / "out")["result"]
    counted = "parameters" if quantity == "parameters" else "macs_per_second"
    assert result[counted] <= 0.5 * result[f"dense_{counted}"]


def test_a_run_that_is_stopped_goes_on(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to stop in update 3, it stops at the first look, and `--resume` does the rest."""

    class Stopped(Task):
        def begin_update(self, update: int) -> None:
            if update == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            super().begin_update(update)

    with monkeypatch.context() as patch:
        patch.setattr("sslim.steps.step.Task", Stopped)
        assert run(command(corpus, "out")) == 130
    states = (corpus / "out" / "run" / "checkpoints" / "stage1").glob("update-*")
    assert [int(path.name.removeprefix("update-")) for path in states] == [10]
    assert run([*command(corpus, "out"), "--resume"]) == 0
    assert facts_of(corpus / "out")["result"]["parameters"] > 0


def test_a_bad_loss_is_found_at_the_next_look(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Poisoned(Task):
        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            parts = super().forward(batch)
            if self.update == 6:
                parts["loss"] = parts["loss"] * float("nan")
            return parts

    monkeypatch.setattr("sslim.steps.step.Task", Poisoned)
    assert run(command(corpus, "out")) == 2
    assert "update 7: the loss" in capfd.readouterr().err
    states = (corpus / "out" / "run" / "checkpoints" / "stage1").glob("update-*")
    assert [int(path.name.removeprefix("update-")) for path in states] == [6]


def test_noise_comes_from_pinned_memory() -> None:
    gates = joint_task().to(CUDA).student.gates
    host = gates.noise(0, 1).cpu()
    gates.cpu()
    assert torch.equal(gates.noise(0, 1), host)


@torch.no_grad()
def test_a_norm_over_kept_channels_is_torch_s_under_autocast() -> None:
    norm = torch.nn.LayerNorm(96).to(CUDA)
    kept = torch.rand(96, device=CUDA) < 0.6
    gated = KeptLayerNorm(norm)
    gated.kept = kept.float()
    small = torch.nn.LayerNorm(int(kept.sum())).to(CUDA)
    x = 10.0 + torch.randn(40, 96, device=CUDA)
    for given in (x, x.to(torch.bfloat16)):
        with torch.autocast("cuda", torch.bfloat16):
            mine, theirs = gated(given)[:, kept], small(given[:, kept])
        assert mine.dtype == theirs.dtype == torch.float32
        assert float((mine - theirs).abs().max()) < 2e-5


@pytest.mark.parametrize(
    ("task", "make", "rate"),
    [("asr", sounds.spoken, 1e-2), ("asv", sounds.voices, 1e-3), ("sd", sounds.dialogues, 3e-3)],
)
def test_heads_over_frames_learn_there(
    task: str, make: Callable[[Path], Path], rate: float, tmp_path: Path
) -> None:
    settings = Settings(
        seeds=(0,),
        learning_rates=(rate,),
        schedule=Schedule(epochs=24, batch=8, patience=24, hidden=32),
        say=lambda line: None,
    )
    found = evaluate([teacher_path()], task, make(tmp_path), settings=settings, device="cuda")
    assert found.results[0].score < found.results[0].chance - 0.1, "error rates"
