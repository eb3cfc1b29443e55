"""The teacher's targets on disk, for data small enough to be heard again and again.

A frozen teacher says the same of the same crop each time. Where an epoch is short, its answers fit a disk and
reading them is cheaper than computing them; that needs every epoch to cut the audio alike, which the
sampler then does (`UpdateSampler(fixed_crops=True)`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sslim.backbone.reading import Reading
from sslim.identity import COMPUTATION

_VERSION = f"computation {COMPUTATION}".encode()
"""What another version of the computing code left in the folder of an interrupted run is not used."""


class TargetCache:
    """Targets of batches, in bfloat16, under the hash of the batch's samples and the names of the states.

    Args:
        folder: made if missing; what an interrupted run left in it is used.
        limit: bytes it may hold. When it is full it keeps what it has: audio comes round in epochs, so what
            was written last is not needed sooner.
        processes: how many write to the folder; each may fill its share of the room that is left.
    """

    def __init__(self, folder: Path, limit: int, processes: int = 1) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.room = (limit - _held(folder)) // processes
        """Bytes that this process may still write."""
        self.read = self.computed = 0

    def targets(
        self, waveforms: torch.Tensor, names: Sequence[str], compute: Callable[[], Reading]
    ) -> Reading:
        """The teacher's named states for `waveforms` (batch, samples), in bfloat16, from disk or computed.

        Both ways give the same numbers, so a run does not depend on what happens to be on disk.
        """
        samples = waveforms.detach().cpu().contiguous()
        digest = hashlib.blake2b(samples.numpy().tobytes(), digest_size=16, key=_VERSION)
        digest.update("/".join(names).encode())
        path = self.folder / f"{digest.hexdigest()}-{len(samples)}.safetensors"
        if path.exists():
            try:
                loaded = load_file(path, device=str(waveforms.device))
                states = {name: loaded[name] for name in names}
                self.read += 1
                return states
            except (
                OSError,
                SafetensorError,
                KeyError,
            ):  # half a file that a kill left, or gone meanwhile
                pass
        states = _rounded(compute())
        self.computed += 1
        self._keep(path, states)
        return states

    def _keep(self, path: Path, states: Mapping[str, torch.Tensor]) -> None:
        size = sum(2 * state.numel() for state in states.values())
        if size > self.room:
            return
        tensors = {name: state.contiguous().cpu() for name, state in states.items()}
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            # Not synced: what a power cut spoils is computed again, and a sync costs more than that.
            save_file(tensors, aside)
            aside.replace(path)
            self.room -= size
        except (OSError, SafetensorError):  # a full disk ends the cache, not the run
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            self.room = 0


def _held(folder: Path) -> int:
    """Bytes in the folder's files, while other processes write and rename there."""
    held = 0
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):
            held += path.stat().st_size
    return held


def _rounded(states: Mapping[str, torch.Tensor]) -> Reading:
    return {name: state.to(torch.bfloat16) for name, state in states.items()}
