"""What only a CUDA device can show; everything here skips without one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sslim.backbone.families import build
from sslim.backbone.units import plan_of, shape_of, table_of
from sslim.demo import teacher_path
from sslim.distill.task import JointTask
from sslim.evaluate.fitting import Schedule
from sslim.evaluate.run import evaluate
from sslim.evaluate.scorer import Settings
from sslim.prune.budget import Budget
from sslim.story import compress
from sslim.train.memory import seconds_that_fit
from sslim.train.processes import Processes
from sslim.train.step import Step
from tests import sounds
from tests.models import CASES, tiny_teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CUDA = torch.device("cuda")


def joint_task(family: str = "hubert", size: str = "base") -> JointTask:
    dense = tiny_teacher(family, size)
    model = build(dense.config, dense.state_dict(), "", "test")
    count = plan_of(model).parameters(shape_of(model))
    return JointTask(
        model,
        copy.deepcopy(model),
        budget=Budget.of({"parameters": count // 2}, plan_of(model), table_of(model)),
        kinds=("conv", "head", "ffn"),
        gate_learning_rate=0.02,
        sparsity_warmup=2,
        seed=0,
        layers=(0, 1, 3),
        learning_rate=1e-3,
        normalise_waveform=False,
    )


@pytest.mark.parametrize(("family", "size"), CASES)
def test_a_gpu_gives_what_a_cpu_gives(family: str, size: str) -> None:
    task = joint_task(family, size)
    audio = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    task.begin_update(0)
    wanted = float(task(audio)["loss"].detach())
    task.to(CUDA)
    task.begin_update(0)
    assert float(task(audio.to(CUDA))["loss"].detach()) == pytest.approx(wanted, abs=1e-3)


def test_a_step_never_waits_for_the_device() -> None:
    task = joint_task().to(CUDA)
    step = Step(task, Processes(0, 1, CUDA), precision=torch.bfloat16, clip_norm=10.0)
    audio = [0.1 * torch.randn(4, 16_000, device=CUDA) for _ in range(2)]
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
    step(0, 1.0, [0.1 * torch.randn(int(seconds // 15), 15 * 16_000, device=CUDA)])
    assert step.largest is None, "nothing had to be made smaller"


def test_a_whole_run(tmp_path: Path) -> None:
    tiny_teacher("wavlm").save_pretrained(tmp_path / "teacher")
    (tmp_path / "audio").mkdir()
    draw = np.random.default_rng(0)
    for clip in range(8):
        soundfile.write(
            tmp_path / "audio" / f"{clip}.wav", 0.1 * draw.standard_normal(16_000), 16_000
        )
    result = compress(
        tmp_path / "teacher",
        tmp_path / "audio",
        tmp_path / "out",
        params="50%",
        device="cuda",
        progress=False,
        settings=[
            "seconds_per_update=8",
            "audio.min_seconds=0.5",
            "audio.max_seconds=1",
            "stage1.updates=20",
            "stage2.updates=10",
        ],
    )
    assert result.parameters <= 0.5 * result.dense_parameters


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
