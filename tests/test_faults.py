"""What goes wrong around a run: kills, damage, full disks, lost audio, two programs at one folder.

After each fault nothing may be lost, one sentence says what to do, and doing that as it is written works.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from sslim import story
from sslim.cli import run as command_line
from sslim.errors import OutputError
from sslim.files import FolderLock, written_whole
from sslim.train.folder import check_writable
from sslim.train.progress import ProgressBar
from tests.conftest import SOURCE
from tests.models import tiny_teacher

SETTINGS = (
    "seconds_per_update=2",
    "seconds_per_batch=1",
    "audio.min_seconds=0.2",
    "audio.max_seconds=1",
    "stage1.updates=6",
    "stage2.updates=4",
    "workers=0",
    "log_every=1",
    "checkpoint_every=2",
    "precision=float32",
)


class CrashError(Exception):
    """What a test makes a run die of, as a kill would: nothing is saved on the way out."""


class Place:
    """A teacher, audio, and a run of the command line with what it said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys

    def run(self, out: str, *more: str, settings: tuple[str, ...] = ()) -> tuple[int, str]:
        """Exit code, and what was said on stderr."""
        self.capsys.readouterr()
        code = command_line(self.words(out, *more, settings=settings))
        return code, self.capsys.readouterr().err

    def words(self, out: str, *more: str, settings: tuple[str, ...] = ()) -> list[str]:
        words = ["compress", str(self.folder / "teacher"), str(self.folder / "audio")]
        words += [str(self.folder / out), "--params", "50%"]
        words += [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
        return [*words, *more]

    def refused(self, out: str, *more: str) -> str:
        """The one line of a command that has to be refused."""
        code, said = self.run(out, *more)
        assert code == 2, said
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "Traceback" not in said
        return lines[0]

    def crash(self, out: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Dies after so many updates of both stages together."""
        made = 0

        def count(*_: Any) -> None:
            nonlocal made
            made += 1
            if made == after:
                raise CrashError

        with monkeypatch.context() as patch, pytest.raises(CrashError):
            patch.setattr(ProgressBar, "__call__", count)
            self.run(out)

    def states(self, out: str, stage: str) -> list[Path]:
        return sorted((self.folder / out / "run" / "checkpoints" / stage).glob("update-*"))

    def same(self, left: str, right: str) -> bool:
        a, b = (load_file(self.folder / name / "model.safetensors") for name in (left, right))
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def make_corpus(folder: Path) -> None:
    tiny_teacher("hubert").save_pretrained(folder / "teacher")
    (folder / "audio").mkdir()
    generator = np.random.default_rng(0)
    for index in range(10):
        noise = 0.1 * generator.standard_normal(6000 + 400 * index)
        soundfile.write(folder / "audio" / f"{index}.wav", noise, 16_000)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    make_corpus(folder)
    words = ["compress", str(folder / "teacher"), str(folder / "audio"), str(folder / "whole")]
    words += ["--params", "50%"]
    assert command_line([*words, *(p for s in SETTINGS for p in ("--set", s))]) == 0
    return folder


@pytest.fixture
def place(undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    """A copy for each test, with an undisturbed run of the same in `whole`."""
    shutil.copytree(undisturbed, tmp_path / "here")
    return Place(tmp_path / "here", capsys)


# --- damaged states --------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero_end(path: Path) -> None:
    """What a power cut leaves of a file whose length was written and whose last pages were not."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated tensors": lambda state: truncate(state / "state.safetensors"),
    "empty tensors": lambda state: (state / "state.safetensors").write_bytes(b""),
    "zeroed tensors": lambda state: zero_end(state / "state.safetensors"),
    "no tensors": lambda state: (state / "state.safetensors").unlink(),
    "half the facts": lambda state: truncate(state / "state.json"),
    "empty facts": lambda state: (state / "state.json").write_bytes(b""),
    "no facts": lambda state: (state / "state.json").unlink(),
    "facts of another shape": lambda state: (state / "state.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_named_and_the_one_before_is_taken(
    place: Place, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.crash("out", 5, monkeypatch)
    older, newest = place.states("out", "stage1")
    DAMAGES[damage](newest)
    code, said = place.run("out", "--resume")
    assert code == 0
    assert said.count(f"warning: the state {newest} is damaged") == 1
    assert str(older) not in said
    assert place.same("out", "whole")


def test_where_no_state_is_whole_the_stage_can_begin_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.crash("out", 5, monkeypatch)
    for state in place.states("out", "stage1"):
        truncate(state / "state.safetensors")
    folder = place.folder / "out" / "run" / "checkpoints" / "stage1"
    line = place.refused("out", "--resume")
    assert f"no state in {folder} can be read" in line
    assert "Remove that folder and run again with --resume" in line
    shutil.rmtree(folder)
    assert place.run("out", "--resume")[0] == 0
    assert place.same("out", "whole")


@pytest.mark.parametrize("after", [7, 9])
@pytest.mark.parametrize("damage", ["truncated tensors", "zeroed tensors", "no facts"])
def test_a_damaged_pruned_model_is_made_again(
    place: Place, damage: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From stage 1's last state while stage 2 has none of its own, from stage 2's afterwards."""
    place.crash("out", after, monkeypatch)
    assert bool(place.states("out", "stage1")) == (after == 7)
    assert bool(place.states("out", "stage2")) == (after == 9)
    DAMAGES[damage](place.folder / "out" / "run" / "pruned")
    code, said = place.run("out", "--resume")
    assert code == 0
    assert "pruned is damaged" in said
    assert place.same("out", "whole")


def test_where_nothing_is_left_it_is_said(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.crash("out", 7, monkeypatch)
    truncate(place.folder / "out" / "run" / "pruned" / "state.safetensors")
    shutil.rmtree(place.folder / "out" / "run" / "checkpoints" / "stage1")
    line = place.refused("out", "--resume")
    assert "nothing is left from before it" in line
    assert "--force instead of --resume" in line
    assert place.run("out", "--force")[0] == 0
    assert place.same("out", "whole")


def test_a_state_of_another_run_is_never_gone_on_from(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill in the middle of `--force` may leave: the new record beside states of the run before."""
    place.crash("out", 5, monkeypatch)
    run = place.folder / "out" / "run"
    shutil.copytree(run / "checkpoints", place.folder / "kept")
    with monkeypatch.context() as patch, pytest.raises(CrashError):
        patch.setattr("sslim.train.folder.remove", crash)
        place.run("out", "--force", settings=("seed=7",))
    assert place.states("out", "stage1"), "they were to be there"
    code, said = place.run("out", "--resume", settings=("seed=7",))
    assert code == 0, said
    assert place.run("seven", settings=("seed=7",))[0] == 0
    assert place.same("out", "seven")
    assert not place.same("out", "whole")
    # And where they have come back by hand, they are told apart by the run's id.
    place.crash("again", 3, monkeypatch)
    again = place.folder / "again" / "run" / "checkpoints"
    shutil.rmtree(again)
    shutil.copytree(place.folder / "kept", again)
    code, said = place.run("again", "--resume")
    assert code == 0
    assert "belongs to another run" in said
    assert place.same("again", "whole")


def crash(*_: Any) -> None:
    raise CrashError


# --- the disk --------------------------------------------------------------------------------------


def test_a_disk_that_is_full_at_the_very_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = story.save_folder

    def tight(*arguments: Any, **settings: Any) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            real(*arguments, **settings)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with monkeypatch.context() as patch:
        patch.setattr(story, "save_folder", tight)
        line = place.refused("out")
    assert "run again with --resume" in line
    assert {path.name for path in (place.folder / "out").iterdir()} == {"run"}
    assert place.run("out", "--resume")[0] == 0
    assert place.same("out", "whole")


def test_a_folder_that_cannot_be_written(place: Place) -> None:
    for out in ("/proc/sslim", "/sys/sslim"):
        line = place.refused(out)
        assert out in line or "may not be written" in line
        assert "hoose another folder" in line


def test_a_disk_that_fills_while_the_run_begins(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sslim.train.beginning.write_json", full)
        line = place.refused("out")
    assert "the disk is full" in line
    assert line.endswith("run the same command again.")
    assert place.run("out")[0] == 0
    assert place.same("out", "whole")


# --- two at one folder -----------------------------------------------------------------------------


def test_a_second_run_is_kept_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.crash("out", 5, monkeypatch)
    record = (place.folder / "out" / "run" / "run.json").read_bytes()
    with FolderLock(place.folder / "out" / "run" / ".lock", "training in"):
        for option in ("--resume", "--force"):
            line = place.refused("out", option)
            assert f"another process ({os.getpid()}) is training in" in line
    assert (place.folder / "out" / "run" / "run.json").read_bytes() == record
    assert place.run("out", "--resume")[0] == 0
    assert place.same("out", "whole")


def test_a_child_does_not_keep_its_dead_parents_lock(tmp_path: Path) -> None:
    """A run's audio decoders outlive it by some seconds when it is killed."""
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom sslim.files import FolderLock\n"
        f"FolderLock(Path({str(tmp_path / 'lock')!r}), 'at').__enter__()\n"
        # The child lets go as soon as it runs, so it is the child who says that it does.
        "if os.fork() == 0:\n    print('ready', flush=True)\n    time.sleep(20)\n    os._exit(0)\n"
        "time.sleep(20)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait()
    try:
        with FolderLock(tmp_path / "lock", "at"):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


# --- audio that changes under the run --------------------------------------------------------------


def test_audio_that_is_lost_after_training_is_not_measured_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = story.part, []

    def lose(*arguments: Any) -> Any:
        parts = real(*arguments)
        lost.append(next(parts.held_out.paths()))
        return parts

    def vanish(run: Any, *arguments: Any) -> Any:
        os.remove(lost[0])
        return recover(run, *arguments)

    recover = story._recovery_stage
    with monkeypatch.context() as patch:
        patch.setattr(story, "part", lose)
        patch.setattr(story, "_recovery_stage", vanish)
        code, said = place.run("out")
    assert code == 0
    assert f"warning: not measured on {lost[0]}" in said
    facts = json.loads((place.folder / "out" / "sslim.json").read_text())
    assert facts["result"]["held_out"]["utterances"] == 1
    assert place.same("out", "whole")


@pytest.mark.parametrize("how", ["gone", "garbage", "other samples"])
def test_a_resume_needs_the_audio_as_it_was(
    place: Place, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.crash("out", 5, monkeypatch)
    file = place.folder / "audio" / "3.wav"
    before = file.read_bytes()
    if how == "gone":
        file.unlink()
    elif how == "garbage":
        file.write_bytes(b"no audio" * 1000)
    else:
        file.write_bytes(before[:44] + bytes(reversed(before[44:])))
    line = place.refused("out", "--resume")
    assert "the audio is not what the run" in line
    assert f"Resume with {place.folder / 'audio'} as it was" in line
    file.write_bytes(before)  # at another time, which must not matter
    assert place.run("out", "--resume")[0] == 0
    assert place.same("out", "whole")


@pytest.mark.parametrize("kind", ["gone", "garbage"])
def test_training_goes_on_without_a_file_that_is_lost(
    place: Place, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, made = place.folder / "audio" / "3.wav", 0

    def lose(*_: Any) -> None:
        nonlocal made
        made += 1
        if made == 2:
            file.unlink()
            if kind == "garbage":
                file.write_bytes(b"no audio" * 1000)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "__call__", lose)
        code, said = place.run("out")
    assert code == 0, said
    assert said.count(f"warning: skipped {file}") == 2, "once in each stage"


# --- a loss that is not finite ---------------------------------------------------------------------


def test_the_advice_after_a_bad_loss_works(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslim.distill.task import JointTask

    real = JointTask.forward

    def diverging(task: JointTask, waveforms: torch.Tensor) -> Any:
        parts = real(task, waveforms)
        bad = task.update == 3 and task.learning_rate > 1.5e-4
        return parts | {"loss": parts["loss"] * float("nan")} if bad else parts

    monkeypatch.setattr(JointTask, "forward", diverging)
    line = place.refused("out")
    assert "stage1, update 4" in line
    advice = line.partition("Run the same command with ")[2].partition(",")[0].split()
    assert advice == ["--resume", "and", "--set", "stage1.learning_rate=0.0001"]
    # Another setting that would change the result is refused still, and so is this one in the end.
    assert "clip_norm" not in place.refused("out", "--resume", "--set", "seed=3")
    code, said = place.run("out", advice[0], *advice[2:])
    assert code == 0, said
    facts = json.loads((place.folder / "out" / "sslim.json").read_text())
    change = {"setting": "stage1.learning_rate", "before": 2e-4, "now": 1e-4}
    assert facts["changed"] == [{**change, "at": "stage1, update 3"}]
    assert facts["config"]["stage1"]["learning_rate"] == 1e-4
    again = place.refused("out", "--resume")
    assert "stage1.learning_rate (0.0001 before, 0.0002 now)" in again
    # The other way that is named: without the files, anew.
    for name in files_in(line):
        os.remove(name)
    with monkeypatch.context() as patch:
        patch.setattr(JointTask, "forward", real)
        assert place.run("out", "--force")[0] == 0


def files_in(line: str) -> set[str]:
    words = line.replace(",", " ").split()
    return {word for word in words if word.endswith(".wav")}


def test_a_clip_too_large_for_the_memory_can_be_cut_shorter(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslim.distill.task import JointTask

    real = JointTask.forward

    def tight(task: JointTask, waveforms: torch.Tensor) -> Any:
        if task.update == 3 and waveforms.shape[1] > 7000:
            raise torch.OutOfMemoryError("out of memory")
        return real(task, waveforms)

    monkeypatch.setattr(JointTask, "forward", tight)
    line = place.refused("out")
    assert "audio.max_seconds lower" in line
    code, said = place.run("out", "--resume", "--set", "audio.max_seconds=0.4")
    assert code == 0, said


# --- what the command line says --------------------------------------------------------------------


def test_the_end_of_a_file_is_not_taken_for_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: Any) -> None:
        raise EOFError

    monkeypatch.setattr("sslim.report.runs.find_runs", ended)
    with pytest.raises(RuntimeError, match="a file ended too soon"):
        command_line(["runs"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_only_verbs_that_can_be_resumed_say_so(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> None:
        raise error

    monkeypatch.setattr("sslim.report.runs.find_runs", stopped)
    assert command_line(["runs"]) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    said = capsys.readouterr().err
    assert "un the same command again." in said
    assert "--resume" not in said


@pytest.mark.parametrize("option", ["", "--force"])
def test_an_interrupted_run_says_how_it_goes_on(
    place: Place, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # Before anything was written there is nothing to go on with.
        patch.setattr("sslim.story.load_model", interrupt)
        code, said = place.run("out")
        assert (code, said.splitlines()[-1]) == (
            130,
            "error: interrupted. Run the same command again.",
        )
    assert not (place.folder / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "__call__", interrupt)
        code, said = place.run("out", *([option] if option else []))
    instead = " instead of --force" if option else ""
    assert code == 130
    assert said.endswith(f"interrupted. Run the same command with --resume{instead}.\n")
    assert place.run("out", "--resume")[0] == 0
    assert place.same("out", "whole")


# --- kills at any moment ---------------------------------------------------------------------------


def start(folder: Path, out: str, *more: str, updates: int = 30) -> subprocess.Popen[str]:
    settings = (*SETTINGS[:4], f"stage1.updates={updates}", f"stage2.updates={updates}")
    settings += ("checkpoint_every=1", "precision=float32", "log_every=5")
    command = [sys.executable, "-m", "sslim", "compress", "teacher", "audio", out]
    command += ["--params", "50%", *(p for s in settings for p in ("--set", s)), *more]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_kills_at_random_moments_change_nothing(tmp_path: Path, seed: int) -> None:
    """Start-up, both stages, checkpoints, and the writing of the result; the process alone and its group."""
    make_corpus(tmp_path)
    began = time.monotonic()
    finish(start(tmp_path, "whole"))
    length = time.monotonic() - began
    draw, kills, options = random.Random(seed), 0, []
    result = tmp_path / "out" / "model.safetensors"
    while True:
        process = start(tmp_path, "out", *options)
        until = time.monotonic() + draw.uniform(0.3, 0.8) * length
        at_the_end = draw.random() < 0.5  # as soon as the result is being written
        while process.poll() is None and time.monotonic() < until:
            if at_the_end and (result.exists() or list(tmp_path.rglob("*sslim.partial*"))):
                break
            time.sleep(0.002)
        if process.poll() is None and kills < 8:
            sign = draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            (os.killpg if draw.random() < 0.5 else os.kill)(process.pid, sign)
            kills += 1
        _, said = process.communicate(timeout=300)
        assert "Traceback" not in said
        if process.returncode == 0:
            break
        assert process.returncode in (130, -signal.SIGKILL), said
        if process.returncode == 130:
            assert "--resume" in said or "Run the same command again" in said
            options = ["--resume"] if "--resume" in said.splitlines()[-1] else options
        elif (tmp_path / "out" / "run" / "run.json").is_file():
            options = ["--resume"]
    assert kills > 1, "the run was over too soon"
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    left = {path.name for path in (tmp_path / "out" / "run").iterdir()}
    assert left <= {
        ".lock",
        "run.json",
        "state.json",
        "skipped.json",
        "held_out.json",
        "metrics.jsonl",
        "projections.safetensors",
    }
    assert not list(tmp_path.glob(".*partial*"))


def test_a_name_that_weights_cannot_be_written_to_is_refused_first(tmp_path: Path) -> None:
    """Training took its time before safetensors said so."""
    out = tmp_path / os.fsdecode(b"o\xff")
    with pytest.raises(OutputError, match="not UTF-8"):
        check_writable(out, resume=False, force=False)
    assert not out.exists()


def test_what_a_library_writes_for_the_owner_alone_is_shared_like_any_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "x.safetensors") as aside:
            aside.touch(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.slow
def test_two_starts_at_once_give_one_run(tmp_path: Path) -> None:
    make_corpus(tmp_path)
    finish(start(tmp_path, "whole"))
    pair = [start(tmp_path, "out"), start(tmp_path, "out")]
    said = [process.communicate(timeout=300)[1] for process in pair]
    assert sorted(process.returncode for process in pair) == [0, 2], said
    refused = said[0] if pair[0].returncode else said[1]
    assert "is training in" in refused or "already holds something" in refused
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(a[name], b[name]) for name in a)
