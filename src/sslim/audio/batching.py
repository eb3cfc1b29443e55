"""Batches: clips -> equally long crops -> tensors, decoded beside the training.

Crops depend on (seed, update, place in the update) alone. A file that vanishes or breaks in mid-run is left
out of its batch and reported; only a whole update without usable audio stops the run.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sslim.audio.batch import SHORTEST, Batch
from sslim.audio.manifest import Skipped
from sslim.audio.sound import reason_in
from sslim.errors import AudioError
from sslim.plan import SAMPLING_RATE

LENGTH_STEP = 800
"""Lengths of batches are rounded down to this (50 ms): a library prepares itself anew for every shape that it
has not met before, which made an update a sixth slower."""

WORKER_GRACE = 30
"""Seconds a worker goes on after SIGTERM, so that the training can finish and save."""

PATIENCE = 10
"""Updates in a row to which one of several sources may give nothing because its files cannot be read."""

Update = tuple[int, list[Batch], list[Skipped]]
"""Its index, this process's batches, and what could not be read."""
UpdateSet = Dataset[Update]


class Undecoded(Protocol):
    """Audio that is not decoded yet."""

    @property
    def identity(self) -> str:
        """For messages."""
        ...

    @property
    def seconds(self) -> float:
        """Its length."""
        ...


Item = TypeVar("Item", bound=Undecoded)


def collate(
    clips: Sequence[Item],
    crop: Callable[[Item, int, str], np.ndarray],
    *,
    max_seconds: float,
    seed: str,
    rank: int = 0,
    processes: int = 1,
) -> tuple[Batch | None, list[Skipped]]:
    """Crops clips to the shortest of them, at places drawn from `seed`.

    Several processes may share a batch: each decodes every n-th clip, and the crops are the same as one
    process would have made.

    Args:
        clips: of the whole batch.
        crop: a clip, a number of samples and a seed -> that many samples at 16 kHz; may raise AudioError.
        max_seconds: longer clips are cropped to this.
        seed: of this batch.
        rank: this process among those that share the batch.
        processes: how many share it.

    Returns:
        The batch of this process, None where it has nothing, and what could not be read.
    """
    length = common_length([clip.seconds for clip in clips], max_seconds)
    crops: list[np.ndarray] = []
    names: list[str] = []
    lost: list[Skipped] = []
    for place in range(rank, len(clips), processes):
        clip = clips[place]
        try:
            waveform = crop(clip, length, f"{seed}/{place}")
        except AudioError as error:
            lost.append(Skipped(clip.identity, reason_in(error, clip.identity)))
            continue
        crops.append(waveform)
        names.append(clip.identity)
    if not crops:
        return None, lost
    return Batch(torch.from_numpy(np.stack(crops)), tuple(names)), lost


def common_length(seconds: Sequence[float], max_seconds: float) -> int:
    """Samples that a batch of such clips is cropped to: what the shortest has, rounded down."""
    samples = round(min([max_seconds, *seconds]) * SAMPLING_RATE)
    if samples >= 2 * LENGTH_STEP:
        samples -= samples % LENGTH_STEP
    return max(SHORTEST, samples)


class UpdateStream:
    """An iterator of (update, batches) over data sets that all give the same updates.

    Use it as a context manager: leaving it stops the workers.

    Args:
        datasets: of a source (`Source.datasets`); an update has the batches of each.
        workers: processes that decode ahead, divided among the data sets; 0 decodes in this one. A stream
            has one at most: more would have to share it and hear it in another order.
        pin_memory: whether the batches go to a GPU.
        on_lost: called with what could not be read when it should have been heard.

    Raises (while iterating):
        AudioError: nothing of an update could be read, or nothing of one data set for a while.
    """

    def __init__(
        self,
        datasets: Sequence[UpdateSet],
        *,
        workers: int = 0,
        pin_memory: bool = False,
        on_lost: Callable[[Skipped], None] | None = None,
    ) -> None:
        self.seconds_waited = 0.0
        """Time the training spent waiting for audio."""
        self.seconds_heard = [0.0] * len(datasets)
        """Audio that each data set gave to this process."""
        self.on_lost = on_lost
        each = max(1, workers // len(datasets)) if workers else 0
        self.loaders = [_loader(dataset, each, pin_memory) for dataset in datasets]
        self._iterators: list[Iterator[Update]] = []
        self._missed = [0] * len(datasets)

    def __enter__(self) -> UpdateStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._iterators = []  # the loaders' workers end with their iterators

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        # A loader draws a seed for its workers from the global generator; training's stays untouched.
        state = torch.get_rng_state()
        self._iterators = [iter(loader) for loader in self.loaders]
        torch.set_rng_state(state)
        while self._iterators:
            asked = time.perf_counter()
            try:
                parts = [next(iterator) for iterator in self._iterators]
            except StopIteration:
                return
            self.seconds_waited += time.perf_counter() - asked
            yield parts[0][0], self._heard(parts)

    def _heard(self, parts: Sequence[Update]) -> list[Batch]:
        """The batches of all parts of an update."""
        heard: list[Batch] = []
        missing: list[Skipped] = []
        for place, (update, batches, lost) in enumerate(parts):
            for item in lost:
                if self.on_lost is not None:
                    self.on_lost(item)
            self.seconds_heard[place] += sum(batch.samples for batch in batches) / SAMPLING_RATE
            self._missed[place] = self._missed[place] + 1 if lost and not batches else 0
            if self._missed[place] >= PATIENCE:
                raise _unreadable(update, lost)
            heard += batches
            missing += lost
        if missing and not heard:
            raise _unreadable(parts[0][0], missing)
        return heard


def _unreadable(update: int, lost: Sequence[Skipped]) -> AudioError:
    return AudioError(
        f"none of the {len(lost)} files of update {update + 1} can be read any more; the "
        f"first is {lost[0].path}: {lost[0].reason}",
        "bring the audio back and run again with --resume",
    )


def _loader(dataset: UpdateSet, workers: int, pin_memory: bool) -> DataLoader[Any]:
    if isinstance(dataset, IterableDataset):
        workers = min(1, workers)
    settings: dict[str, Any] = {"prefetch_factor": 2} if workers else {}
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_begin_worker,
        **settings,
    )


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of the terminal, a scheduler's SIGTERM every process of the job; only the
    # training decides when its workers end. A worker that nobody ends gives up by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_GRACE))
