"""The training room: steps, processes, memory, the target cache, state, trackers."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
import torch
from torch import nn

from sslim.backbone.families import our_config
from sslim.backbone.modeling_sslim import SslimModel
from sslim.cli import run as command_line
from sslim.distill.cache import TRIALS, TargetCache
from sslim.distill.task import DistillationTask
from sslim.errors import ConfigError, OutputError, TrainingError
from sslim.report.runs import find_runs
from sslim.runs.state import RunState, read_state
from sslim.train import memory
from sslim.train.loop import _trim_log
from sslim.train.processes import Processes, find_processes
from sslim.train.step import Step
from sslim.train.tracking import Trackers
from tests.conftest import SOURCE
from tests.models import tiny_config, tiny_teacher

ALONE = Processes(0, 1, torch.device("cpu"))


class Regression(nn.Module):
    """A task as small as can be: a linear map of the waveform learns a constant."""

    def __init__(self, fits: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(8, 1)
        self.fits = fits
        self.seen: list[int] = []
        self.poison: int | None = None
        self.update = 0

    def forward(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(len(waveforms))
        if self.fits is not None and len(waveforms) > self.fits:
            # What a CPU's allocator does; the task asks it for more than any machine has.
            torch.empty(2**60, dtype=torch.uint8)
        loss = (self.map(waveforms) - 1.0).square().mean()
        if self.poison == self.update:
            loss = loss * float("nan")
        return {"loss": loss, "l1": loss.detach()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "lr": 0.01}]

    def begin_update(self, update: int) -> None:
        self.update = update

    def constraint(self) -> dict[str, torch.Tensor]:
        return {}

    def report(self) -> dict[str, float]:
        return {}

    def after_update(self, update: int, optimiser: torch.optim.Optimizer) -> bool:
        return False

    def structure(self) -> dict[str, Any]:
        return {}

    def restructure(self, structure: Mapping[str, Any]) -> None:
        pass


def step_of(task: Any, **settings: Any) -> Step:
    return Step(task, ALONE, precision=torch.float32, clip_norm=10.0, **settings)


def test_how_an_update_is_cut_does_not_matter() -> None:
    torch.manual_seed(1)
    audio = torch.randn(6, 8)
    whole, parts = Regression(), Regression()
    first, second = step_of(whole), step_of(parts)
    for update in range(5):
        one = first(update, 1.0, [audio])
        other = second(update, 1.0, [audio[:1], audio[1:4], audio[4:]])
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
    assert torch.allclose(whole.map.weight, parts.map.weight, atol=1e-6)


def test_out_of_memory_halves_the_batch_and_changes_nothing() -> None:
    torch.manual_seed(1)
    audio = torch.randn(8, 8)
    said: list[str] = []
    roomy, tight = Regression(), Regression(fits=2)
    first, second = step_of(roomy), step_of(tight, on_warning=said.append)
    for update in range(3):
        first(update, 1.0, [audio])
        second(update, 1.0, [audio])
    assert torch.allclose(roomy.map.weight, tight.map.weight, atol=1e-6)
    assert len(said) == 2, "8 rows to 4, 4 to 2; then it is known"
    assert "out of memory" in said[0]
    assert "seconds_per_batch=" in said[0]
    assert tight.seen[-4:] == [2, 2, 2, 2]


def test_out_of_memory_with_one_clip_is_a_sentence() -> None:
    with pytest.raises(TrainingError, match=r"one clip of .* does not fit.*audio.max_seconds"):
        step_of(Regression(fits=0))(0, 1.0, [torch.randn(2, 8)])


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        step_of(Regression())(0, 1.0, [torch.randn(2, 7)])


def test_from_a_bad_update_on_nothing_moves() -> None:
    task = Regression()
    step = step_of(task)
    audio = torch.randn(4, 8)
    step(0, 1.0, [audio])
    good = task.map.weight.detach().clone()
    moments = [value.clone() for state in step.optimiser.state.values() for value in state.values()]
    task.poison = 1
    for update in (1, 2, 3):
        step(update, 1.0, [audio])
    assert torch.equal(task.map.weight, good)
    after = [value for state in step.optimiser.state.values() for value in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    assert int(step.failed) == 1


def test_dropout_depends_on_the_update_alone() -> None:
    class Noisy(Regression):
        def forward(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
            return super().forward(nn.functional.dropout(waveforms, 0.5))

    audio = torch.randn(4, 8)

    def losses(updates: range) -> list[float]:
        step = step_of(Noisy())
        for group in step.optimiser.param_groups:
            group["params"] = []
        return [float(step(update, 0.0, [audio])["loss"]) for update in updates]

    assert losses(range(5))[3:] == losses(range(3, 5))
    assert len(set(losses(range(5)))) == 5


# --- memory ----------------------------------------------------------------------------------------


def distillation() -> DistillationTask:
    teacher, student = (SslimModel(our_config(tiny_config("hubert"))) for _ in range(2))
    return DistillationTask(
        teacher,
        student,
        layers=(0, 1, 2, 3),
        learning_rate=1e-3,
        normalise_waveform=False,
    )


def test_seconds_that_fit_follow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    task = distillation()
    one = memory._needed(task, torch.device("cpu"), torch.float32, 1, 16_000)
    two = memory._needed(task, torch.device("cpu"), torch.float32, 2, 16_000)
    four = memory._needed(task, torch.device("cpu"), torch.float32, 4, 16_000)
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)

    def fitting(clips: float) -> float:
        room = one + (clips - 1) * (two - one)
        weights = sum(w.numel() for group in task.parameter_groups() for w in group["params"])
        needed = (room + memory.MOMENTS * weights) / memory.USABLE
        monkeypatch.setattr(memory, "free_memory", lambda device: needed)
        return memory.seconds_that_fit(task, ALONE, torch.float32, 1.0)

    assert fitting(5.5) == 5.0
    assert fitting(12.1) == 12.0
    assert fitting(0.1) == 1.0, "one clip is tried whatever is free"
    assert fitting(1e6) == memory.MOST_SECONDS["cpu"]


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert memory._left_in_container(tmp_path) == 2**62
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert memory._left_in_container(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._left_in_container(tmp_path) == 2**62


# --- the target cache ------------------------------------------------------------------------------


def test_targets_are_the_same_from_disk_and_from_the_teacher(tmp_path: Path) -> None:
    task = distillation()
    plain = task.targets(torch.ones(1, 4000))
    task.cache = TargetCache(tmp_path, 10**9)
    torch.manual_seed(0)
    audio, other = torch.randn(2, 4000), torch.randn(2, 4000)
    computed = task.targets(audio)
    read = task.targets(audio)
    assert (task.cache.computed, task.cache.read) == (1, 1)
    assert all(torch.equal(a, b) for a, b in zip(computed, read, strict=True))
    assert not torch.equal(task.targets(other)[0], read[0])
    assert len(plain) == len(read) == 4
    task.cache = None
    exact = task.targets(audio)
    assert all(torch.allclose(a, b.float(), rtol=2**-8) for a, b in zip(exact, read, strict=True))


def test_the_cache_keeps_within_its_bound_and_survives_damage(tmp_path: Path) -> None:
    batch = [torch.ones(1, 1000) * index for index in range(3)]
    size = 2 * 500

    def compute() -> list[torch.Tensor]:
        return [torch.full((500,), 0.5)]

    cache = TargetCache(tmp_path, 2 * size)
    for waveforms in batch:
        cache.targets(waveforms, compute)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 2
    files[0].write_bytes(files[0].read_bytes()[:20])
    again = TargetCache(tmp_path, 10**6)
    for waveforms in batch:
        assert torch.equal(again.targets(waveforms, compute)[0], compute()[0].bfloat16())
    assert (again.read, again.computed) == (1, 2)


def test_a_cache_slower_than_the_teacher_is_left_alone(tmp_path: Path) -> None:
    cache = TargetCache(tmp_path, 10**9)
    cache.read = cache.computed = TRIALS
    cache.seconds_reading, cache.seconds_computing = 2.0, 1.0
    assert not cache.worthwhile
    state = cache.targets(torch.ones(1, 500), lambda: [torch.full((3,), 1 / 3)])
    assert torch.equal(state[0], torch.full((3,), 1 / 3).bfloat16()), "the numbers do not change"
    assert not list(tmp_path.iterdir())


# --- processes ---------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    tiny_teacher("hubert").save_pretrained(tmp_path / "teacher")
    (tmp_path / "audio").mkdir()
    generator = np.random.default_rng(0)
    for index in range(10):
        noise = 0.1 * generator.standard_normal(8000 + 400 * index)
        soundfile.write(tmp_path / "audio" / f"{index}.wav", noise, 16_000)
    return tmp_path


COMMON = (
    "seconds_per_update=4",
    "audio.min_seconds=0.2",
    "audio.max_seconds=1",
    "precision=float32",
    "workers=0",
    "log_every=1",
    "checkpoint_every=4",
    "stage1.shrink_chances=5",
)


def command(out: str, *settings: str) -> list[str]:
    words = ["-m", "sslim", "compress", "teacher", "audio", out, "--params", "50%"]
    words += ["--device", "cpu"]
    return words + [part for setting in (*COMMON, *settings) for part in ("--set", setting)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_two_processes_learn_what_one_does(corpus: Path) -> None:
    """Half the batch each, ten updates, over gloo: the same losses."""
    ten = ("stage1.updates=10", "stage2.updates=2")
    subprocess.run(
        [sys.executable, *command("one", "seconds_per_batch=4", *ten)],
        cwd=corpus,
        env=environment(),
        check=True,
        capture_output=True,
    )
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
    launcher += [f"--master-port={free_port()}", *command("two", "seconds_per_batch=2", *ten)]
    launched = subprocess.run(
        [sys.executable, *launcher], cwd=corpus, env=environment(), capture_output=True, text=True
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("parameters") == 1, "one of the processes speaks"
    logs = [
        [
            json.loads(line)
            for line in (corpus / out / "run" / "metrics.jsonl").read_text().splitlines()
        ]
        for out in ("one", "two")
    ]
    assert [line["update"] for line in logs[0]] == [*range(1, 11), 1, 2]
    for alone, together in zip(*logs, strict=True):
        for name in ("loss", "l1", "cosine", "gradient_norm", "seconds_heard"):
            assert together[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-4), name
        if alone["stage"] == "stage1":
            assert together["sparsity"] == pytest.approx(alone["sparsity"], abs=1e-4)
    assert logs[0][0]["seconds_heard"] > 2.0
    facts = json.loads((corpus / "two" / "run" / "run.json").read_text())
    assert facts["processes"] == 2


# --- a disk that is full -----------------------------------------------------------------------------


def test_files_that_cannot_grow_lose_nothing(corpus: Path) -> None:
    """A limit on the size of files makes every write fail that a full disk would, wherever it happens."""
    ten = ("stage1.updates=8", "stage2.updates=4", "seconds_per_batch=4", "checkpoint_every=2")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))

    subprocess.run(
        [sys.executable, *command("whole", *ten)],
        cwd=corpus,
        env=environment(),
        check=True,
        capture_output=True,
    )
    stopped = subprocess.run(
        [sys.executable, *command("cut", *ten)],
        cwd=corpus,
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=limited,
    )
    assert stopped.returncode == 2, stopped.stderr
    assert "the disk is full" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert find_runs(corpus / "cut")[0].state == "failed"
    subprocess.run(
        [sys.executable, *command("cut", *ten), "--resume"],
        cwd=corpus,
        env=environment(),
        check=True,
        capture_output=True,
    )
    whole, cut = ((corpus / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


# --- state and trackers ------------------------------------------------------------------------------


def test_runs_are_listed_with_their_state(tmp_path: Path) -> None:
    def make(name: str, **facts: Any) -> Path:
        run = tmp_path / name / "run"
        run.mkdir(parents=True)
        (run / "run.json").write_text("{}")
        state = RunState(run, {"stage1": 100, "stage2": 50})
        state.set(**facts)
        return run

    going = RunState(make("going"), {"stage1": 100, "stage2": 50})
    going.progress("stage1", 40, 0.5, 0.25)
    make("killed", status="running", process=2**22 + 1)
    reused = make("reused", status="running")
    facts = json.loads((reused / "state.json").read_text())
    own = psutil.Process().create_time()
    (reused / "state.json").write_text(json.dumps({**facts, "written": own - 100}))
    make("asked", status="interrupted")
    make("broken", status="failed", reason="the loss is nan")
    finished = make("done", status="running").parent
    (finished / "sslim.json").write_text("{}")
    (finished / "config.json").write_text("{}")
    found = {Path(run.folder).name: run for run in find_runs(tmp_path)}
    assert {name: run.state for name, run in found.items()} == {
        "going": "running",
        "killed": "stopped",
        "reused": "stopped",
        "asked": "interrupted",
        "broken": "failed",
        "done": "finished",
    }
    assert found["going"].seconds_left == pytest.approx(0.5 * (60 + 50))
    assert found["going"].waiting_share == 0.25
    assert found["broken"].reason == "the loss is nan"
    assert "--resume" in found["killed"].reason
    with pytest.raises(OutputError, match="is not a folder"):
        find_runs(tmp_path / "nothing")


def test_state_is_not_rewritten_all_the_time(tmp_path: Path) -> None:
    state = RunState(tmp_path, {"stage1": 10})
    state.set(status="running")
    written = (tmp_path / "state.json").stat().st_mtime_ns
    for update in range(1, 10):
        state.progress("stage1", update, 0.1, 0.0)
    assert (tmp_path / "state.json").stat().st_mtime_ns == written
    state.set(status="finished")
    assert read_state(tmp_path).update == 9
    assert time.time() - (read_state(tmp_path).written or 0.0) < 60


def test_tensorboard_gets_the_figures(tmp_path: Path) -> None:
    with Trackers(["tensorboard"], tmp_path, {"seed": 1, "layers": (0, 4)}) as trackers:
        trackers.log({"stage1/loss": 0.5}, step=3)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents.*")).parent))
    events.Reload()
    [point] = events.Scalars("stage1/loss")
    assert (point.step, point.value) == (3, 0.5)


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tracker 'tensorbord'.*tensorboard"):
        Trackers(["tensorbord"], tmp_path, {})
    with pytest.raises(ConfigError, match="comet_ml is not installed"):
        Trackers(["comet_ml"], tmp_path, {})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc, not a number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1, not a number"),
        ({"RANK": "1"}, "RANK=1 and WORLD_SIZE=1"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 but no RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2 but no MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 and WORLD_SIZE=2"),
    ],
)
def test_an_environment_that_no_launcher_makes_is_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"{message}.*unset RANK and WORLD_SIZE"):
        find_processes("cpu")


def test_a_run_whose_machine_has_fallen_silent_is_stopped(tmp_path: Path) -> None:
    for name, age in (("fresh", 60.0), ("old", 3 * 3600.0)):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "run.json").write_text("{}")
        facts = {"status": "running", "host": "elsewhere", "process": 1, "seconds_left": 60.0}
        facts["written"] = time.time() - age
        (tmp_path / name / "run" / "state.json").write_text(json.dumps(facts))
    fresh, old = find_runs(tmp_path)
    assert (fresh.state, old.state) == ("running", "stopped")
    assert old.reason == "nothing from elsewhere for 3.0 h; sslim compress --resume goes on with it"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "3",
        "",
        "{",
        "[" * 100_000,
        '{"update": 1e999}',
        '{"status": 3, "update": "x", "seconds_left": NaN}',
        '{"process": [], "written": {}, "status": "running", "host": null}',
    ],
)
def test_no_single_folder_ends_the_list_of_runs(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a[/red]b", "c"):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "run.json").write_text("{}")
    (tmp_path / "a[/red]b" / "run" / "state.json").write_text(text)
    assert [run.state for run in find_runs(tmp_path)] == ["stopped", "stopped"]
    assert command_line(["runs", str(tmp_path)]) == 0
    assert "a[/red]b" in capsys.readouterr().out.replace("\n", "")


def test_a_log_that_was_cut_short_is_mended(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    lines = [{"stage": stage, "update": n} for stage in ("stage1", "stage2") for n in (1, 2, 3)]
    odd = [b"[]", b'{"stage": "stage1"}', b"\xff\xfe", b'{"stage": "stage2", "upda']
    log.write_bytes(b"\n".join([*(json.dumps(line).encode() for line in lines), *odd]))
    _trim_log(log, "stage2", 2)
    assert [json.loads(line) for line in log.read_text().splitlines()] == lines[:5]
    assert log.read_bytes().endswith(b"\n")
