"""A run that is stopped, politely or not, goes on to the same weights."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from sslim.train.interrupts import GracefulStop
from tests.conftest import SOURCE
from tests.models import tiny_teacher

SETTINGS = (
    "seconds_per_update=2",
    "seconds_per_batch=1",
    "audio.min_seconds=0.2",
    "audio.max_seconds=1",
    "stage1.updates=60",
    "stage2.updates=40",
    "checkpoint_every=1",
    "precision=float32",
    "log_every=5",
)


def test_the_first_signal_is_remembered_and_the_second_stops() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with GracefulStop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_something_is_waited_for_stops_at_once() -> None:
    """Audio on a disk that does not answer may never come; nothing is under way that had to be finished."""

    def stuck() -> Iterator[int]:
        yield 1
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        yield 2

    began = time.monotonic()
    with GracefulStop() as stop:
        assert list(stop.between(stuck())) == [1]
        assert stop.asked
    assert time.monotonic() - began < 30
    with GracefulStop() as stop:
        seen = []
        for number in stop.between(range(5)):
            seen.append(number)
            if number == 1:
                os.kill(os.getpid(), signal.SIGINT)  # while an update is being made
        assert seen == [0, 1]
    with GracefulStop() as stop:
        stop.asked = True
        assert list(stop.between(range(3), alone=False)) == [0, 1, 2], "they stop together"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    tiny_teacher("hubert").save_pretrained(tmp_path / "teacher")
    (tmp_path / "audio").mkdir()
    generator = np.random.default_rng(0)
    for index in range(10):
        noise = 0.1 * generator.standard_normal(6000 + 400 * index)
        soundfile.write(tmp_path / "audio" / f"{index}.wav", noise, 16_000)
    return tmp_path


def start(
    corpus: Path, out: str, *more: str, errors: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "sslim",
        "compress",
        "teacher",
        "audio",
        out,
        "--params",
        "50%",
    ]
    command += [part for setting in SETTINGS for part in ("--set", setting)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *more],
        cwd=corpus,
        env=environment,
        stderr=errors,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.05)


def same_weights(left: Path, right: Path) -> bool:
    a, b = (load_file(folder / "model.safetensors") for folder in (left, right))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(corpus: Path) -> None:
    process = start(corpus, "out", errors=subprocess.PIPE)
    wait_for(corpus / "out" / "run" / "checkpoints" / "stage1", process)
    # As a scheduler does: to every process of the job, the audio's decoder included.
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("error: interrupted")
    assert "--resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    whole, resumed = start(corpus, "whole"), start(corpus, "out", "--resume")
    assert whole.wait(timeout=300) == resumed.wait(timeout=300) == 0
    assert same_weights(corpus / "whole", corpus / "out")


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_nothing(corpus: Path) -> None:
    """Ten kills, checkpoint writes included (one is written after every update)."""
    whole = start(corpus, "whole")
    assert whole.wait(timeout=300) == 0
    moments = random.Random(0)
    kills = 0
    process = start(corpus, "out")
    wait_for(corpus / "out" / "run" / "checkpoints" / "stage1", process)
    while kills < 10:
        time.sleep(moments.uniform(0.05, 0.6))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        metrics = corpus / "out" / "run" / "metrics.jsonl"
        size = metrics.stat().st_size
        process = start(corpus, "out", "--resume")
        while metrics.stat().st_size == size and process.poll() is None:
            time.sleep(0.02)  # it is training again once it logs
    assert kills == 10, "the run was over too soon to be killed ten times"
    assert process.wait(timeout=300) == 0
    assert same_weights(corpus / "whole", corpus / "out")
