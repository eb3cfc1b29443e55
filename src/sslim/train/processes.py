"""Which process of how many this is, and what they add up: accelerate's launchers, torch.distributed beneath.

`accelerate launch` and `torchrun` start one process per device and tell each its place through the
environment. There is no wrapper around the model: an update's gradients are added up once, as one vector,
after all its batches. A student that shrinks in mid-run would have to be wrapped anew each time, and one
addition per 640 s of audio costs next to nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import reduce

from sslim.device import choose_device
from sslim.errors import ConfigError

PATIENCE = 10.0
"""Seconds after which a process says what it waits for."""


@dataclass(frozen=True)
class Processes:
    """This process among its peers."""

    rank: int
    count: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this one writes files and talks to the user."""
        return self.rank == 0

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, in one exchange."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        total = reduce(flat, "sum")
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, part in zip(tensors, total.split(sizes), strict=True):
            tensor.copy_(part.view_as(tensor))

    def agree(self, number: float) -> float:
        """The main process's number, for all."""
        if self.count == 1:
            return number
        told = torch.tensor(number if self.main else 0.0, dtype=torch.float32, device=self.device)
        self.add_up([told])
        return float(told)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            PartialState().wait_for_everyone()


def find_processes(device: str) -> Processes:
    """This process's place and device, as a launcher set them; alone where none did.

    Args:
        device: as in the settings: `auto`, `cpu`, `cuda`, ...

    Raises:
        ConfigError: the device does not exist here, or the environment contradicts itself.
    """
    rank, count = place_of_process()
    if count == 1:
        return Processes(0, 1, choose_device(device))
    on_cpu = choose_device(device).type == "cpu"
    master = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    with _said(f"process {rank} waits for the other {count - 1} at {master} ..."):
        state = PartialState(cpu=on_cpu)
    return Processes(state.process_index, state.num_processes, state.device)


def place_of_process() -> tuple[int, int]:
    """(rank, number of processes) as the environment has it; (0, 1) without a launcher.

    Raises:
        ConfigError: the environment holds something that no launcher says.
    """
    found = {}
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")):
        text = os.environ.get(name, "").strip() or default
        if not text.isascii() or not text.isdigit() or len(text) > 6:
            raise ConfigError(f"the environment says {name}={text}, not a number", _UNSET)
        found[name] = int(text)
    rank, count = found["RANK"], found["WORLD_SIZE"]
    if rank >= max(1, count) or count == 0:
        raise ConfigError(
            f"the environment says RANK={rank} and WORLD_SIZE={count}, which no launcher does",
            _UNSET,
        )
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if count > 1 and missing:
        raise ConfigError(
            f"the environment says WORLD_SIZE={count} but no {missing[0]}, so no launcher has started this",
            _UNSET,
        )
    return rank, count


_UNSET = "start with accelerate launch or torchrun, or unset RANK and WORLD_SIZE to run alone"


@contextmanager
def _said(line: str) -> Iterator[None]:
    """Says what is waited for where it takes long."""
    timer = threading.Timer(PATIENCE, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
