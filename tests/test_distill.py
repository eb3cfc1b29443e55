"""The distillation room beside the joint stage: the target cache's bound, plain distillation's student."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sslim.audio.batch import Batch
from sslim.backbone.reading import Reading
from sslim.backbone.units import plan_of, shape_of
from sslim.config import SAFE_TO_CHANGE, RunConfig, apply_settings
from sslim.distill import cache as cache_module
from sslim.distill.cache import TargetCache
from sslim.errors import TrainingError
from sslim.layout import layout_of
from sslim.plan import PruningPlan
from sslim.prune.first_layers import first_layers
from sslim.prune.student import GatedStudent
from sslim.prune.surgery import cut
from sslim.recipes import demo
from sslim.runs.record import MAY_MEND
from sslim.train.processes import Processes
from sslim.train.step import Step
from tests.models import CASES
from tests.tasks import gated_task, teacher

STATE = 500
ALONE = Processes(0, 1, torch.device("cpu"))


def fill(cache: TargetCache, first: int, batches: int = 10) -> None:
    for index in range(first, first + batches):
        waveforms = torch.full((1, 1000), float(index))
        cache.targets(waveforms, ["front"], lambda: {"front": torch.full((STATE,), 0.5)})


def held(folder: Path) -> int:
    """Bytes of the states in a cache, without the files' headers."""
    return len(list(folder.glob("*.safetensors"))) * 2 * STATE


def test_processes_share_one_cache_up_to_its_bound(tmp_path: Path) -> None:
    """What all have written counts against the bound of all, in the second stage as in the first."""
    size = 2 * STATE
    first, second = TargetCache(tmp_path, 8 * size, 2), TargetCache(tmp_path, 8 * size, 2)
    fill(first, 0, 2)
    fill(second, 100, 2)
    assert held(tmp_path) == 4 * size
    # The next stage opens the folder again: half of the room is left, for both.
    room = 8 * size - sum(path.stat().st_size for path in tmp_path.iterdir())
    first, second = TargetCache(tmp_path, 8 * size, 2), TargetCache(tmp_path, 8 * size, 2)
    assert first.room == second.room == room // 2
    fill(first, 200)
    fill(second, 300)
    assert held(tmp_path) == (4 + 2 * (room // 2 // size)) * size > 4 * size
    assert held(tmp_path) <= 8 * size
    full = TargetCache(tmp_path, size, 2)
    fill(full, 400)
    assert (full.read, full.computed) == (0, 10), "it computes what it cannot keep"
    assert held(tmp_path) <= 8 * size


def test_targets_of_older_code_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(TargetCache(tmp_path, 10**6), 0, 1)
    monkeypatch.setattr(cache_module, "_VERSION", b"computation 1")
    older = TargetCache(tmp_path, 10**6)
    fill(older, 0, 1)
    assert (older.read, older.computed) == (0, 1)
    again = TargetCache(tmp_path, 10**6)
    fill(again, 0, 1)
    assert (again.read, again.computed) == (1, 0)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
@pytest.mark.parametrize(("family", "size"), CASES)
def test_a_pruned_teacher_s_first_layers(family: str, size: str, share: float) -> None:
    """Of a model that has been pruned already, differently in each layer."""
    dense = teacher(family, size)
    whole = plan_of(dense)
    shape = shape_of(dense)
    layers = {
        "head.0": (1, 3),
        "ffn.0": tuple(range(5, 36)),
        "head.1": (0,),
        "ffn.1": tuple(range(0, 40, 2)),
        "attention_block.2": (),
        "ffn_block.2": (),
    }
    convolutions = {f"conv.{n}": channels[1:] for n, channels in enumerate(whole.conv)}
    uneven = whole.replaced(convolutions | layers, shape)
    pruned = cut(dense, uneven)
    single = replace(shape, layers=1)
    emptied = uneven.kept | {"ffn.0": ()}
    one = PruningPlan({name: emptied[name] for name in layout_of(single).axis}).parameters(single)
    limit = int(one + share * (uneven.parameters(shape) - one))
    student = first_layers(pruned, limit)
    plan, depth = plan_of(student), len(student.encoder.layers)
    count = sum(weight.numel() for weight in student.parameters())
    assert count == plan.parameters(shape_of(student)) <= limit
    assert plan.conv == uneven.conv
    for mine, theirs in zip(plan.layers, uneven.layers, strict=False):
        assert mine.heads == theirs.heads
        assert mine.ffn is None or mine.ffn == (theirs.ffn or ())[: len(mine.ffn)]
    waveforms = torch.randn(1, 3000)
    with torch.no_grad():
        mine, theirs = student(waveforms), pruned.eval()(waveforms)
    assert torch.isfinite(mine.last_hidden_state).all()
    assert torch.equal(mine.extract_features, theirs.extract_features)
    assert 1 <= depth <= 3
    # One unit more in each layer would not fit, unless all are kept already.
    widest = max(len(layer.ffn or ()) for layer in plan.layers)
    if widest < max(len(layer.ffn or ()) for layer in uneven.layers[:depth]):
        wider = {f"ffn.{n}": uneven.kept[f"ffn.{n}"][: widest + 1] for n in range(depth)}
        shape = shape_of(student)
        assert plan.replaced(wider, shape).parameters(shape) > limit


def test_any_seed_that_a_setting_may_have_trains() -> None:
    """A time in nanoseconds, and the largest that a file can hold, at the last update of the longest run."""
    audio = [Batch(0.1 * torch.randn(1, 2000), ("one",))]
    for seed in (time.time_ns(), 2**63 - 1):
        apply_settings(RunConfig(), [f"seed={seed}"])
        task = gated_task(teacher(), seed=seed)
        step = Step(task, ALONE, precision=torch.float32, clip_norm=10.0, seed=seed + 10**9)
        for update in (0, 10**9 - 1):
            assert torch.isfinite(step(update, 1.0, audio)["loss"])


class Greedy(GatedStudent):
    """A student that needs more memory than there is for a single clip."""

    def read(
        self,
        waveforms: torch.Tensor,
        names: Sequence[str],
        masked_frames: torch.Tensor | None = None,
    ) -> Reading:
        torch.empty(2**60, dtype=torch.uint8)
        raise AssertionError("there was memory")


def test_what_is_advised_for_a_clip_that_does_not_fit_is_accepted() -> None:
    """What is advised with --resume may change on a resume after a training that failed."""
    task = gated_task(teacher(), gated=Greedy)
    step = Step(task, ALONE, precision=torch.float32, clip_norm=10.0)
    with pytest.raises(TrainingError, match="does not fit the memory") as raised:
        step(0, 1.0, [Batch(torch.randn(1, 16_000 * 4), ("one",))])
    elsewhere, shorter = str(raised.value).split(", or with")
    assert "--resume on a device" in elsewhere
    assert "--set" not in elsewhere
    assert "device" in SAFE_TO_CHANGE
    assert "--resume" in shorter
    advised = re.findall(r"--set (\S+?)\.?(?:\s|$)", shorter)
    assert advised == ["audio.max_seconds=2"]
    assert "audio.max_seconds" in MAY_MEND
    assert apply_settings(demo(), advised).audio.max_seconds == 2.0
