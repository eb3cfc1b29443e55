"""Which utterances are heard together: a pure function of (seed, update).

A library's sampler walks through an epoch and must be replayed to be resumed, and gives each process its own
share; here any update can be asked for directly, so a resumed run and any number of processes hear
the same.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

JITTER = 0.1
"""Lengths are shuffled by up to this share before sorting, so that batches differ between epochs."""


class UpdateSampler:
    """Cuts an endless, reshuffled sequence of epochs into updates, each a list of batches.

    Utterances of similar length share a batch, because a batch is cropped to its shortest. Every epoch has
    every utterance exactly once, and the same number of updates, so update i lies in epoch i // n. An update
    hears at least one utterance: where utterances are longer than `seconds_per_update`, an epoch has as many
    updates as utterances, and each hears more than was asked for.

    Args:
        seconds: length of every utterance.
        seconds_per_update: audio of one optimiser step.
        seconds_per_batch: audio that passes through the models at once.
        max_seconds: longer utterances are cropped to this.
        seed: of the shuffling.
        fixed_crops: every epoch is cut into the same batches and crops, heard in another order; for audio
            whose teacher's states are kept.
    """

    def __init__(
        self,
        seconds: Sequence[float],
        *,
        seconds_per_update: float,
        seconds_per_batch: float,
        max_seconds: float = float("inf"),
        seed: int = 0,
        fixed_crops: bool = False,
    ) -> None:
        if not seconds:
            raise ValueError("there are no utterances")
        self.seconds = [min(length, max_seconds) for length in seconds]
        self.seed = seed
        self.fixed_crops = fixed_crops
        self.batch_seconds = min(seconds_per_batch, seconds_per_update)
        wanted = max(1, round(sum(self.seconds) / seconds_per_update))
        self.updates_per_epoch = min(len(self.seconds), wanted)
        self.repeats = max(1, round(seconds_per_update / sum(self.seconds)))
        """Passes over the data in one update, where the data are shorter than an update."""
        self._epoch: tuple[int, list[list[list[int]]]] | None = None

    def update(self, index: int) -> list[list[int]]:
        """Batches of utterance indices of update `index` (from 0)."""
        if self.repeats > 1:
            first = 0 if self.fixed_crops else index * self.repeats
            passes = range(first, first + self.repeats)
            return [batch for epoch in passes for batch in self._epoch_updates(epoch)[0]]
        epoch, place = self._place(index)
        return self._epoch_updates(epoch)[place]

    def crop_seed(self, index: int) -> str:
        """What the crops of update `index` are drawn from."""
        if not self.fixed_crops:
            return f"{self.seed}/{index}"
        return f"{self.seed}/alike/{self._place(index)[1] if self.repeats == 1 else 0}"

    def _place(self, index: int) -> tuple[int, int]:
        """Epoch whose batches are heard in update `index`, and which of its updates."""
        epoch, place = divmod(index, self.updates_per_epoch)
        if not self.fixed_crops:
            return epoch, place
        order = list(range(self.updates_per_epoch))
        random.Random(f"{self.seed}/order/{epoch}").shuffle(order)
        return 0, order[place]

    def _epoch_updates(self, epoch: int) -> list[list[list[int]]]:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._deal(epoch)
        return self._epoch[1]

    def _deal(self, epoch: int) -> list[list[list[int]]]:
        """One epoch: batches of similar lengths, dealt to the updates so that each hears about as much."""
        shuffle = random.Random(f"{self.seed}/{epoch}")
        keys = [length * (1.0 + JITTER * shuffle.random()) for length in self.seconds]
        order = sorted(range(len(keys)), key=lambda index: (keys[index], index))
        batches: list[list[int]] = []
        batch: list[int] = []
        longest = 0.0
        for index in order:
            longest = max(longest, self.seconds[index])
            if batch and longest * (len(batch) + 1) > self.batch_seconds:
                batches.append(batch)
                batch, longest = [], self.seconds[index]
            batch.append(index)
        batches.append(batch)
        shuffle.shuffle(batches)
        if len(batches) < self.updates_per_epoch:  # split the largest
            batches = self._split(batches, self.updates_per_epoch)
        # The fullest batches are dealt first, each to the update that has heard least so far.
        heard = [(0.0, place) for place in range(self.updates_per_epoch)]
        updates: list[list[list[int]]] = [[] for _ in heard]
        for batch in sorted(batches, key=self._heard, reverse=True):
            least, target = heard[0]
            updates[target].append(batch)
            heapq.heapreplace(heard, (least + self._heard(batch), target))
        shuffle.shuffle(updates)
        return updates

    def _heard(self, batch: list[int]) -> float:
        return len(batch) * min(self.seconds[index] for index in batch)

    def _split(self, batches: list[list[int]], wanted: int) -> list[list[int]]:
        """Halves the largest until there are as many as `wanted`; there are as many utterances at least."""
        pieces = dict(enumerate(batches))
        largest = [(-len(batch), place) for place, batch in pieces.items()]
        heapq.heapify(largest)
        for place in range(len(batches), 2 * wanted - len(batches), 2):
            batch = pieces.pop(heapq.heappop(largest)[1])
            middle = len(batch) // 2
            for at, half in ((place, batch[:middle]), (place + 1, batch[middle:])):
                pieces[at] = half
                heapq.heappush(largest, (-len(half), at))
        return list(pieces.values())
