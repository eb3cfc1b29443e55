"""How much audio fits the memory at once, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from sslim.audio.batch import Batch
from sslim.layout import SAMPLING_RATE
from sslim.train.processes import Processes
from sslim.train.step import TrainableTask

MOST_SECONDS = {"cuda": 640.0, "cpu": 32.0}
"""More at once gains nothing: a GPU is full long before, a CPU when its cores are busy."""

USABLE = 0.8
"""Share of the free memory that is planned for; the rest is for fragments and other programs."""

MOMENTS = 12
"""Bytes per trained weight that appear with the first step: its gradient and two moments in float32."""


def seconds_that_fit(
    task: TrainableTask, processes: Processes, precision: torch.dtype, longest: float
) -> float:
    """Seconds of audio per batch, at least one clip of `longest` seconds.

    One clip and then two pass through the task; what the second one added is what each further clip will
    need. The smallest of all processes counts.
    """
    most = MOST_SECONDS.get(processes.device.type, MOST_SECONDS["cpu"])
    task.begin_update(0)
    samples = round(longest * SAMPLING_RATE)
    one, two = (_needed(task, processes.device, precision, rows, samples) for rows in (1, 2))
    weights = sum(weight.numel() for group in task.parameter_groups() for weight in group["params"])
    room = USABLE * free_memory(processes.device) - MOMENTS * weights
    clips = 1 + max(0.0, room - one) // max(1, two - one)
    seconds = torch.zeros(processes.count)
    seconds[processes.rank] = min(most, clips * longest)
    seconds = seconds.to(processes.device)
    processes.add_up([seconds])
    return max(longest, float(seconds.min()))


def free_memory(device: torch.device) -> int:
    """Bytes that a run may still take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held
    return min(psutil.virtual_memory().available, _left_in_container())


def _left_in_container(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes left of a container's own limit (cgroup v2): psutil sees the whole machine's memory."""
    try:
        limit, used = (
            (root / name).read_text(encoding="ascii").strip()
            for name in ("memory.max", "memory.current")
        )
        return int(limit) - int(used)
    except (OSError, ValueError):  # no container, or "max"
        return 2**62


def _needed(
    task: TrainableTask, device: torch.device, precision: torch.dtype, rows: int, samples: int
) -> int:
    """Bytes that a batch of noise takes beyond what is already held."""
    noise = 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(0))
    batch = Batch(noise, ("noise",) * rows).to(device)

    def forward() -> torch.Tensor:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return task(batch)["loss"]

    if device.type == "cuda":
        return _peak_on_cuda(forward, device)
    return _kept_for_backward(forward)


def _peak_on_cuda(forward: Callable[[], torch.Tensor], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        forward()
        return torch.cuda.max_memory_allocated(device) - before
    except torch.OutOfMemoryError:
        return 2**62


def _kept_for_backward(forward: Callable[[], torch.Tensor]) -> int:
    """A CPU's allocator does not say its peak; what backward needs is kept is nearly all of it."""
    storages: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = forward()
    del loss
    return sum(storages.values())
