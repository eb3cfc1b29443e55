"""What a GPU changes about a run, on a CPU: figures that are looked at now and then, nothing that makes the
host wait inside an update, pinned copies, and autocast's idea of a LayerNorm."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sslim.audio.batch import Batch
from sslim.backbone.modeling_sslim import PositionalConv, StackedPositionalConv
from sslim.cli import run as command_line
from sslim.config import UNITS
from sslim.device import looks_every
from sslim.distill.losses import distillation_loss
from sslim.distill.objectives import layers as layers_module
from sslim.distill.task import Task
from sslim.errors import TrainingError
from sslim.prune import gates as gates_module
from sslim.prune.gates import GatedModel, Gates, KeptLayerNorm
from sslim.prune.surgery import cut
from sslim.story import compress
from sslim.train import memory
from sslim.train import stage as stage_module
from sslim.train.loop import Progress
from sslim.train.processes import Processes
from sslim.train.progress import StageBar
from sslim.train.step import Step
from tests.models import CASES, tiny_config, tiny_teacher
from tests.tasks import gated_states, gated_task, teacher
from tests.test_exactness import model_of, random_values

ALONE = Processes(0, 1, torch.device("cpu"))
SETTINGS = [
    "seconds_per_update=2",
    "seconds_per_batch=1",
    "audio.min_seconds=0.2",
    "audio.max_seconds=1",
    "stage1.updates=12",
    "stage2.updates=7",
    "workers=0",
    "precision=float32",
    "checkpoint_every=1000",
    "log_every=5",
    "check_every=5",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("habits")
    tiny_teacher("hubert").save_pretrained(folder / "teacher")
    (folder / "audio").mkdir()
    generator = np.random.default_rng(0)
    for index in range(10):
        noise = 0.1 * generator.standard_normal(6000 + 400 * index)
        soundfile.write(folder / "audio" / f"{index}.wav", noise, 16_000)
    return folder


def run(place: Path, out: Path, *more: str, **options: Any) -> Any:
    settings = [*SETTINGS, *more]
    return compress(
        place / "teacher", place / "audio", out, settings=settings, params="50%", **options
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(left: Path, right: Path) -> bool:
    mine, theirs = weights(left), weights(right)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def saved(out: Path) -> list[int]:
    """Updates of stage 1 whose states are kept."""
    states = (out / "run" / "checkpoints" / "stage1").glob("update-*")
    return sorted(int(path.name.removeprefix("update-")) for path in states)


def logged(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    lines = (out / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def watched(place: Path) -> Path:
    """A run that is looked at after every update, as on a CPU."""
    run(place, place / "watched", "check_every=0", progress=False)
    return place / "watched"


# --- figures that are looked at now and then ---------------------------------------------------------


def test_how_often_a_device_is_looked_at() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert looks_every(cpu, 10) == 1
    assert looks_every(cuda, 5) == 5
    assert looks_every(cuda, 1000) == 10, "a request to stop must not wait for a thousand updates"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_command_line_s_run_without_a_look_at_every_update(
    place: Path,
    watched: Path,
    tmp_path: Path,
    terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With its bar or its lines, as a GPU's run: done, and the same weights bit for bit."""
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert StageBar().console.is_terminal
    words = ["compress", str(place / "teacher"), str(place / "audio"), str(tmp_path / "out")]
    words += ["--params", "50%"] + [word for setting in SETTINGS for word in ("--set", setting)]
    assert command_line(words) == 0
    shown = capfd.readouterr().err
    if not terminal:
        lines = [line for line in shown.splitlines() if line.startswith("stage1 ")]
        assert len(lines) == 12
        assert all("loss" not in line and "min left" in line for line in lines[:4])
        assert all("loss" in line and "sparsity" in line for line in lines[4:])
    assert same(tmp_path / "out", watched)
    lines = [(line["stage"], line["update"]) for line in logged(tmp_path / "out")]
    assert lines == [*(("stage1", n) for n in (5, 10, 12)), *(("stage2", n) for n in (5, 7))]


@pytest.mark.parametrize(
    ("figures", "wanted"),
    [
        ({}, ""),
        ({"l1": 1.0}, ""),
        ({"loss": 1.0}, "loss 1.0000"),
        ({"loss": 1.0, "sparsity": 0.5}, "loss 1.0000"),
        ({"loss": 1.0, "sparsity": 0.5, "target": 0.7}, "loss 1.0000  sparsity 0.500 of 0.700"),
        ({"sparsity": 0.5, "target": 0.7}, "sparsity 0.500 of 0.700"),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_says_what_it_knows(
    figures: dict[str, float], wanted: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")
    bar = StageBar()
    said: list[str] = []
    monkeypatch.setattr(bar, "say", said.append)
    with bar:
        bar(Progress("stage1", 1, 10, figures, 6.0, logged=False))
    if terminal:
        assert bar.bars.tasks[0].fields["figures"] == wanted
    else:
        assert said == ["  ".join(part for part in ("stage1 1/10", wanted, "0.9 min left") if part)]


class Poisoned:
    """A loss that is not a number the first time that update `at` of stage 1 is made."""

    def __init__(self, at: int) -> None:
        self.at, self.done = at, False

    def __call__(self, *states: Any) -> dict[str, torch.Tensor]:
        parts = distillation_loss(*states)
        if TASKS[-1].update == self.at and not self.done:
            parts["loss"] = parts["loss"] * float("nan")
        return parts


TASKS: list[Task] = []


class Remembered(Task):
    def begin_update(self, update: int) -> None:
        TASKS[:] = [self]
        super().begin_update(update)


def test_a_bad_loss_that_is_found_late_is_named_and_nothing_was_learned_from_it(
    place: Path, watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Update 7 is bad, the next look comes at 10: the state kept is that before 7, the names its files'."""
    poison = Poisoned(6)
    monkeypatch.setattr("sslim.steps.step.Task", Remembered)
    monkeypatch.setattr(layers_module, "distillation_loss", poison)
    with pytest.raises(TrainingError, match="update 7: the loss") as raised:
        run(place, tmp_path / "out", progress=True)
    assert ".wav" in str(raised.value)
    assert TASKS[-1].update == 9, "it was not looked at before"
    assert saved(tmp_path / "out")[-1] == 6
    poison.done = True
    run(place, tmp_path / "out", resume=True, progress=True)
    assert same(tmp_path / "out", watched)


def test_a_stop_between_two_looks_is_obeyed_at_once_by_a_process_that_is_alone(
    place: Path, watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several have to agree, at a look; one ends its update, makes sure that it was good, and saves."""

    class Stopped(Task):
        def begin_update(self, update: int) -> None:
            if update == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            super().begin_update(update)

    with monkeypatch.context() as patch:
        patch.setattr("sslim.steps.step.Task", Stopped)
        with pytest.raises(KeyboardInterrupt):
            run(place, tmp_path / "out", progress=True)
    assert saved(tmp_path / "out") == [3]
    # How often to look may differ: it changes nothing that is computed.
    run(place, tmp_path / "out", "check_every=3", resume=True, progress=True)
    assert same(tmp_path / "out", watched)


def test_a_state_is_saved_between_two_looks(
    place: Path, watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving looks by itself, so that no state is kept of weights that are not finite."""
    monkeypatch.setattr("sslim.steps.step.Task", Remembered)
    with monkeypatch.context() as patch:
        patch.setattr(layers_module, "distillation_loss", Poisoned(8))
        with pytest.raises(TrainingError, match="update 9: the loss"):
            run(place, tmp_path / "out", "checkpoint_every=3", "log_every=100", "check_every=100")
    assert TASKS[-1].update == 8
    assert saved(tmp_path / "out") == [6, 8]
    run(place, tmp_path / "out", "checkpoint_every=3", "log_every=100", resume=True)
    assert same(tmp_path / "out", watched)


def test_what_was_heard_is_let_go_before_the_next_look(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks lie minutes of audio; a message needs its names alone."""
    heard: list[list[weakref.ref[torch.Tensor]]] = []
    alive: list[int] = []
    make = Step.__call__

    def counted(self: Step, update: int, share: float, batches: list[Batch]) -> Any:
        heard.append([weakref.ref(batch.waveforms) for batch in batches])
        alive.append(sum(any(held() is not None for held in update) for update in heard))
        return make(self, update, share, batches)

    monkeypatch.setattr(Step, "__call__", counted)
    run(place, tmp_path / "out", "check_every=100", "log_every=100", progress=False)
    assert len(alive) == 12 + 7
    assert max(alive) <= 3


# --- memory ------------------------------------------------------------------------------------------


def test_a_gpu_s_lack_of_memory_halves_the_batches_of_a_run(
    place: Path,
    watched: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """CUDA's own error, in the first update of the first stage, found out once; the same sums in pieces."""

    class Crowded(Task):
        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            if len(batch.waveforms) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore")
            return super().forward(batch)

    monkeypatch.setattr("sslim.steps.step.Task", Crowded)
    run(place, tmp_path / "out", progress=True)
    said = [line for line in capfd.readouterr().err.splitlines() if "out of memory" in line]
    assert 1 <= len(said) <= 2, "then it is known"
    assert all("a new run starts there with --set seconds_per_batch=" in line for line in said)
    ours = logged(tmp_path / "out")
    theirs = {(line["stage"], line["update"]): line for line in logged(watched)}
    for line in ours[:2]:
        other = theirs[line["stage"], line["update"]]
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert line["sparsity"] == pytest.approx(other["sparsity"], abs=1e-5)


def test_how_much_a_gpu_needs_is_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 350)

    def crowded() -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert memory._peak_on_cuda(lambda: torch.zeros(()), cuda) == 250
    assert memory._peak_on_cuda(crowded, cuda) > 2**60, "more than any GPU has"


@pytest.mark.parametrize("fitting", [0, 1, 2])
def test_one_clip_at_a_time_where_no_second_fits(
    fitting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit while it is tried counts as more than there is."""
    needs = {rows: rows * 2**20 if rows <= fitting else 2**62 for rows in (1, 2)}
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**31)
    monkeypatch.setattr(
        memory, "_needed", lambda task, device, precision, rows, samples: needs[rows]
    )
    seconds = memory.seconds_that_fit(gated_task(teacher()), ALONE, torch.float32, 2.0)
    assert seconds == (2.0 if fitting < 2 else 32.0)


# --- nothing in an update asks the device --------------------------------------------------------------

ASKING = {
    "aten._local_scalar_dense.default",
    "aten.nonzero.default",
    "aten.masked_select.default",
    "aten.equal.default",
    "aten._unique2.default",
}
READING = {torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.item}


class AskedError(AssertionError):
    """Something would have made a GPU and its host wait for each other."""


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if str(function) in ASKING:
            raise AskedError(str(function))
        masks = args[1] if str(function) == "aten.index.Tensor" else ()
        if any(mask is not None and mask.dtype == torch.bool for mask in masks):
            raise AskedError("an index by truth, whose size only the device knows")
        return function(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Calls that copy between host and device; on a CPU only the call shows it."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        ours = "sslim" in sys._getframe(1).f_code.co_filename.split("torch/")[0]
        if function in READING and ours:
            raise AskedError(function.__name__)
        if ours and function is torch.tensor and kwargs.get("device") is not None:
            raise AskedError("torch.tensor(..., device=...) copies from the host and waits")
        sent = function is torch.Tensor.to and any(
            isinstance(value, torch.device | str) for value in (*args[1:], kwargs.get("device"))
        )
        if ours and sent and not kwargs.get("non_blocking"):
            raise AskedError("Tensor.to(device) without non_blocking")
        return function(*args, **kwargs)


def three_updates(task: Task) -> None:
    """One that may do what happens once, then two under watch."""
    task.teacher.model.train()  # in evaluation a CPU looks whether the audio is finite, a GPU does not
    step = Step(task, ALONE, precision=torch.bfloat16, clip_norm=10.0)
    audio = [Batch(0.1 * torch.randn(2, 4000), ("one", "two")) for _ in range(2)]
    step(0, 1.0, audio)
    with _Operations(), _Calls():
        for update in (1, 2):
            step(update, 1.0, audio)


@pytest.mark.parametrize(("family", "size"), CASES)
def test_nothing_in_an_update_asks_the_device(family: str, size: str) -> None:
    three_updates(gated_task(teacher(family, size), UNITS, normalises=size == "large"))


def test_noise_by_way_of_the_device_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The corrupted twin: how it was once drawn. The watch looks at calls from the package's own files."""
    made: dict[str, Any] = {"torch": torch}
    code = """
def noise(self, seed, update):
    uniform = torch.rand(self.total, generator=torch.Generator().manual_seed(update))
    return uniform[self.origin.cpu()].to(self.log_alpha.device)
"""
    exec(compile(code, "src/sslim/made_up.py", "exec"), made)
    monkeypatch.setattr(Gates, "noise", made["noise"])
    with pytest.raises(AskedError, match="cpu"):
        three_updates(gated_task(teacher()))


def _fitted(old: Callable[..., Any], ask: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    def loss(*states: Any) -> Any:
        parts = old(*states)
        ask(parts["loss"].detach())
        return parts

    return loss


@pytest.mark.parametrize("ask", [float, bool, torch.Tensor.item, torch.nonzero, lambda x: x[x > 0]])
def test_asking_in_a_loss_is_noticed(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The corrupted twins of the watch."""
    monkeypatch.setattr(layers_module, "distillation_loss", _fitted(distillation_loss, ask))
    with pytest.raises(AskedError):
        three_updates(gated_task(teacher()))


def test_copies_that_wait_are_noticed() -> None:
    code = "def {}(tensor): return tensor.{}"
    for call in ("cpu()", "tolist()", "to('cpu')", "numpy()"):
        made: dict[str, Any] = {}
        exec(compile(code.format("ask", call), "src/sslim/made_up.py", "exec"), made)
        with pytest.raises(AskedError), _Calls():
            made["ask"](torch.ones(2))


def test_noise_goes_to_a_gpu_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Host(SimpleNamespace):
        def pin_memory(self) -> Host:
            calls.append("pinned")
            return self

        def to(self, device: torch.device, **options: Any) -> str:
            calls.append((device.type, options))
            return "sent"

    host: Any = Host()
    assert gates_module._sent(host, torch.device("cuda")) == "sent"
    assert calls == ["pinned", ("cuda", {"non_blocking": True})]
    calls.clear()
    gates_module._sent(host, torch.device("cpu"))
    assert calls == [("cpu", {"non_blocking": True})], "only a GPU has memory to pin for"
    gates = Gates(teacher(), ("ffn",))
    monkeypatch.setattr(gates_module, "_sent", lambda tensor, device: (tensor, device))
    noise, device = gates.noise(0, 3)  # type: ignore[misc]
    assert isinstance(noise, torch.Tensor)
    assert device == gates.log_alpha.device
    assert gates.origin.device.type == "cpu"
    assert "origin" not in dict(gates.named_buffers()), "it must not move to a GPU with the rest"


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_batches_are_pinned_for_a_gpu_alone(
    device: str, pinned: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OpenedError(Exception):
        pass

    def batches(*args: Any, **settings: Any) -> Any:
        raise OpenedError(settings["pin_memory"])

    processes = Processes(0, 1, torch.device(device))
    monkeypatch.setattr(stage_module, "UpdateStream", batches)
    monkeypatch.setattr(Task, "to", lambda self, device: self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **options: self)
    monkeypatch.setattr("sslim.story.find_processes", lambda *args: processes)
    monkeypatch.setattr("sslim.steps.inputs.device_name", str)
    with pytest.raises(OpenedError) as opened:
        run(place, tmp_path / "out", progress=False)
    assert opened.value.args == (pinned,)


# --- autocast ------------------------------------------------------------------------------------------


def kept_norm(norm: nn.LayerNorm, kept: torch.Tensor) -> KeptLayerNorm:
    gated = KeptLayerNorm(norm)
    gated.kept = kept.float()
    return gated


def cut_norm(norm: nn.LayerNorm, kept: torch.Tensor) -> nn.LayerNorm:
    small = nn.LayerNorm(int(kept.sum()), eps=norm.eps)
    small.weight, small.bias = nn.Parameter(norm.weight[kept]), nn.Parameter(norm.bias[kept])
    return small


def off(forward: Callable[[nn.LayerNorm, torch.Tensor], nn.Module], mean: float) -> float:
    """Largest difference to the smaller model's LayerNorm under bfloat16 autocast."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(96)
    nn.init.normal_(norm.weight, 1.0, 0.2)
    nn.init.normal_(norm.bias, 0.0, 0.2)
    kept = torch.rand(96) < 0.6
    x = mean + torch.randn(40, 96)
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = forward(norm, kept)(x)[:, kept], cut_norm(norm, kept)(x[:, kept])
    assert mine.dtype == theirs.dtype
    return float((mine - theirs).detach().abs().max())


class AutocastNorm(KeptLayerNorm):
    """The corrupted twin: the same formula with its products left to autocast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = input.float()
        share = self.kept / self.kept.sum()
        centred = x - (x @ share)[..., None]
        variance = (centred.square() @ share)[..., None]
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def autocast_norm(norm: nn.LayerNorm, kept: torch.Tensor) -> nn.Module:
    twin = AutocastNorm(norm)
    twin.kept = kept.float()
    return twin


def test_a_norm_over_kept_channels_is_the_smaller_model_s_under_autocast() -> None:
    for mean in (0.0, 1.0, 10.0):
        assert off(kept_norm, mean) < 2e-5
    assert off(autocast_norm, 1.0) > 1e-3
    assert off(autocast_norm, 10.0) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_norm_over_kept_channels_returns_what_torch_s_does(
    dtype: torch.dtype, autocast: bool
) -> None:
    norm = nn.LayerNorm(8)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        x = torch.randn(3, 8).to(dtype)
        assert kept_norm(norm, torch.ones(8)).forward(x).dtype == norm(x).dtype
    lifts = gates_module._lifts_norms
    assert not lifts("cuda")
    with torch.autocast("cpu", torch.bfloat16):
        assert not lifts("cpu")


def rms(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """Largest root mean square difference of a layer, in units of the states (about 1)."""
    pairs = zip(left, right, strict=True)
    return max(float((a.float() - b.float()).square().mean().sqrt()) for a, b in pairs)


@pytest.mark.parametrize(("family", "size"), CASES)
@torch.no_grad()
def test_gated_equals_sliced_under_autocast(
    family: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two roundings of one model differ by no more than two independent errors of bfloat16 would.

    Layer 0, behind the norms over gated channels, tells float32 statistics from bfloat16 ones.
    """
    torch.manual_seed(0)
    model = model_of(family, size)
    gates = Gates(model, ("conv", "head", "ffn"))
    values, plan = random_values(gates, 1, 0.6)
    gated_model = GatedModel(model.eval(), gates)
    small = cut(model, plan, gated_model.folded_state(values)).eval()
    waveforms = torch.randn(2, 3000)
    exact = small.distillation_features(waveforms)
    with torch.autocast("cpu", torch.bfloat16):
        sliced = small.distillation_features(waveforms)
        gated = gated_states(gated_model, values, waveforms)
        nearly = values.clone()
        nearly[torch.nonzero(values)[0]] = 0.0
        wrong = gated_states(gated_model, nearly, waveforms)
        monkeypatch.setattr(KeptLayerNorm, "forward", AutocastNorm.forward)
        coarse = gated_states(gated_model, values, waveforms)
    cost = rms(sliced, exact)
    assert 0.005 < cost < 0.02
    assert rms(gated, sliced) < 1.5 * cost
    assert rms(wrong, sliced) > 1.5 * cost, "a corrupted twin: one channel of a convolution less"
    front = rms(sliced[:1], exact[:1])
    assert rms(gated[:1], sliced[:1]) < 0.65 * front
    if any(gates.layout.norms(axis.name) for axis in gates.axes if axis.layer < len(plan.conv) - 1):
        assert rms(coarse[:1], sliced[:1]) > front, "a corrupted twin: bfloat16 statistics"


@pytest.mark.parametrize(("width", "groups", "kernel"), [(32, 4, 8), (192, 16, 64), (64, 4, 8)])
def test_a_positional_convolution_is_right_in_bfloat16(
    width: int, groups: int, kernel: int
) -> None:
    """oneDNN gives something else altogether on some processors where a group has few channels."""
    torch.manual_seed(0)
    every = list(range(kernel))
    kept = itertools.product(
        ("hubert", "data2vec-audio"), (every, every[::2], every[: kernel // 3])
    )
    for family, taps in kept:
        changes = {
            "conv_pos_kernel_size" if "data2vec" in family else "num_conv_pos_embeddings": kernel
        }
        config = tiny_config(
            family,
            hidden_size=width,
            num_conv_pos_embedding_groups=groups,
            activation_dropout=0.0,
            **changes,
        )
        config.plan = {"axes": {f"tap.{index}": taps for index in range(3)}}
        made = StackedPositionalConv if "data2vec" in family else PositionalConv
        conv = made(config)
        x = torch.randn(2, 40, width)
        exact = conv(x)
        with torch.autocast("cpu", torch.bfloat16):
            under = conv(x)
        lower = conv.to(torch.bfloat16)(x.to(torch.bfloat16))
        assert lower.dtype == torch.bfloat16
        for got in (under, lower):
            off = float((got.float() - exact).detach().std() / exact.detach().std())
            assert off < 0.02
