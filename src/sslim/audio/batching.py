"""Batches: utterances -> equally long crops -> tensors, decoded beside the training.

Crops depend on (seed, update, place in the update) alone. A file that vanishes or breaks in mid-run is left
out of its batch and reported; only a whole update without usable audio stops the run.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sslim.audio.batch import SHORTEST, Batch
from sslim.audio.loading import load_crop
from sslim.audio.manifest import Manifest, Skipped, Utterance
from sslim.audio.sampling import UpdateSampler
from sslim.audio.sound import reason_in
from sslim.errors import AudioError
from sslim.plan import SAMPLING_RATE

LENGTH_STEP = 800
"""Lengths of batches are rounded down to this (50 ms): a library prepares itself anew for every shape that it
has not met before, which made an update a sixth slower."""

WORKER_GRACE = 30
"""Seconds a worker goes on after SIGTERM, so that the training can finish and save."""


def collate(
    utterances: Sequence[Utterance],
    *,
    max_seconds: float,
    seed: str,
    rank: int = 0,
    processes: int = 1,
) -> tuple[Batch | None, list[Skipped]]:
    """Crops utterances to the shortest of them, at places drawn from `seed`.

    Several processes share a batch: each decodes every n-th utterance, and the crops are the same as one
    process would have made.

    Returns:
        The batch of this process, None where it has nothing, and what could not be read.
    """
    length = common_length([utterance.seconds for utterance in utterances], max_seconds)
    crops: list[np.ndarray] = []
    names: list[str] = []
    lost: list[Skipped] = []
    for place in range(rank, len(utterances), processes):
        utterance = utterances[place]
        try:
            waveform = load_crop(utterance, length, f"{seed}/{place}")
        except AudioError as error:
            lost.append(Skipped(utterance.identity, reason_in(error, utterance.identity)))
            continue
        crops.append(waveform)
        names.append(utterance.identity)
    if not crops:
        return None, lost
    return Batch(torch.from_numpy(np.stack(crops)), tuple(names)), lost


def common_length(seconds: Sequence[float], max_seconds: float) -> int:
    """Samples that a batch of such utterances is cropped to: what the shortest has, rounded down."""
    samples = round(min([max_seconds, *seconds]) * SAMPLING_RATE)
    if samples >= 2 * LENGTH_STEP:
        samples -= samples % LENGTH_STEP
    return max(SHORTEST, samples)


class _Updates(Dataset[tuple[int, list[Batch], list[Skipped]]]):
    """Update index -> its batches; what a loader's worker runs."""

    def __init__(
        self,
        manifest: Manifest,
        sampler: UpdateSampler,
        max_seconds: float,
        first: int,
        last: int,
        rank: int,
        processes: int,
    ) -> None:
        self.manifest = manifest
        self.sampler = sampler
        self.max_seconds = max_seconds
        self.first = first
        self.last = last
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, place: int) -> tuple[int, list[Batch], list[Skipped]]:
        update = self.first + place
        batches, lost = [], []
        for number, indices in enumerate(self.sampler.update(update)):
            utterances = [self.manifest.utterances[index] for index in indices]
            seed = f"{self.sampler.crop_seed(update)}/{number}"
            batch, missing = collate(
                utterances,
                max_seconds=self.max_seconds,
                seed=seed,
                rank=self.rank,
                processes=self.processes,
            )
            lost += missing
            if batch is not None:
                batches.append(batch)
        return update, batches, lost


class UpdateStream:
    """An iterator of (update, batches) over a data set of (update, batches, lost).

    Use it as a context manager: leaving it stops the workers.

    Args:
        workers: processes that decode ahead; 0 decodes in this one.
        pin_memory: whether the batches go to a GPU.
        on_lost: called with what could not be read when it should have been heard.

    Raises (while iterating):
        AudioError: nothing of an update could be read.
    """

    def __init__(
        self,
        updates: Dataset[Any],
        *,
        workers: int = 0,
        pin_memory: bool = False,
        on_lost: Callable[[Skipped], None] | None = None,
    ) -> None:
        self.seconds_waited = 0.0
        """Time the training spent waiting for audio."""
        self.on_lost = on_lost
        settings: dict[str, Any] = {"prefetch_factor": 2} if workers else {}
        self.loader: DataLoader[Any] = DataLoader(
            updates,
            batch_size=None,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=_begin_worker,
            **settings,
        )
        self._iterator: Iterator[Any] | None = None

    def __enter__(self) -> UpdateStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._iterator = None  # the loader's workers end with their iterator

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        # The loader draws a seed for its workers from the global generator; training's stays untouched.
        state = torch.get_rng_state()
        self._iterator = iter(self.loader)
        torch.set_rng_state(state)
        while self._iterator is not None:
            asked = time.perf_counter()
            try:
                update, batches, lost = next(self._iterator)
            except StopIteration:
                return
            self.seconds_waited += time.perf_counter() - asked
            for item in lost:
                if self.on_lost is not None:
                    self.on_lost(item)
            if lost and not batches:
                raise AudioError(
                    f"none of the {len(lost)} files of update {update + 1} can be read any more; the "
                    f"first is {lost[0].path}: {lost[0].reason}",
                    "bring the audio back and run again with --resume",
                )
            yield update, batches


class Batches(UpdateStream):
    """The updates of a manifest, from `first_update` up to and without `last_update`.

    Args:
        max_seconds: longer utterances are cropped to this.
        rank: this training process among its peers.
        processes: how many training processes share each batch.
        settings: as for UpdateStream.
    """

    def __init__(
        self,
        manifest: Manifest,
        sampler: UpdateSampler,
        *,
        first_update: int,
        last_update: int,
        max_seconds: float,
        rank: int = 0,
        processes: int = 1,
        **settings: Any,
    ) -> None:
        updates = _Updates(
            manifest, sampler, max_seconds, first_update, last_update, rank, processes
        )
        super().__init__(updates, **settings)


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of the terminal, a scheduler's SIGTERM every process of the job; only the
    # training decides when its workers end. A worker that nobody ends gives up by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_GRACE))
