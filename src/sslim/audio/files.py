"""Utterances in plain files, listed before training: any of them can be asked for at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from sslim.audio.batch import Batch
from sslim.audio.batching import Update, UpdateSet, collate
from sslim.audio.held_out import HeldOutClips, Stretch, choose
from sslim.audio.loading import load_audio, load_crop
from sslim.audio.manifest import Manifest, Skipped, Utterance
from sslim.audio.sampling import UpdateSampler
from sslim.audio.sound import reason_in
from sslim.audio.source import HeldOut, StreamSettings
from sslim.errors import AudioError
from sslim.plan import SAMPLING_RATE


@dataclass(frozen=True)
class Files:
    """A source of the utterances of a manifest (`sslim.audio.source.Source`)."""

    manifest: Manifest

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What is not used."""
        return self.manifest.skipped

    @property
    def divided_by_process(self) -> bool:
        """No: the processes share each batch."""
        return False

    @property
    def repeats_crops(self) -> bool:
        """Yes: any crop can be asked for again."""
        return True

    def described(self) -> str:
        """In words, for people."""
        return self.manifest.described()

    def summary(self) -> dict[str, Any]:
        """As `Manifest.summary`."""
        return self.manifest.summary()

    def paths(self) -> Iterator[str]:
        """Every file that is read."""
        return (utterance.path for utterance in self.manifest.utterances)

    def longest(self, max_seconds: float) -> float:
        """Seconds of the longest crop."""
        return min(max_seconds, max(item.seconds for item in self.manifest.utterances))

    def hold_out(self, share: float, seed: int) -> HeldOut:
        """By speaker where nearly all utterances have one, else by file: `sslim.audio.held_out.choose`."""
        chosen, how = choose(self.manifest, share=share, seed=seed)
        if not chosen:
            return HeldOut.nothing(self, how)
        kept: list[Utterance] = []
        held: list[Utterance] = []
        for place, utterance in enumerate(self.manifest.utterances):
            (held if place in chosen else kept).append(utterance)
        return HeldOut(
            Files(replace(self.manifest, utterances=tuple(kept))),
            Files(replace(self.manifest, utterances=tuple(held), skipped=())),
            how,
            HeldOutClips(how, tuple(Stretch(item.path, item.start, item.end) for item in held)),
        )

    def datasets(self, settings: StreamSettings, first: int, last: int) -> list[UpdateSet]:
        """Updates that do not depend on the number of processes: each decodes every n-th utterance."""
        return [_Updates(self.manifest, settings, first, last)]

    def waveforms(
        self, count: int, max_seconds: float, on_lost: Callable[[Skipped], None]
    ) -> Iterator[np.ndarray]:
        """Spread over the manifest; of an utterance that is too long, a crop from a fixed place."""
        longest = int(max_seconds * SAMPLING_RATE)
        every = -(-len(self.manifest.utterances) // count)
        for utterance in islice(self.manifest.utterances, 0, None, every):
            try:
                if utterance.seconds * SAMPLING_RATE > longest:  # hours, perhaps
                    waveform = load_crop(utterance, longest, "measured")
                else:
                    waveform = load_audio(utterance)
            except AudioError as error:
                on_lost(Skipped(utterance.identity, reason_in(error, utterance.identity)))
                continue
            yield waveform[:longest]


class _Updates(Dataset[Update]):
    """Place among the updates -> update; what a loader's worker runs."""

    def __init__(self, manifest: Manifest, settings: StreamSettings, first: int, last: int) -> None:
        self.manifest = manifest
        self.settings = settings
        self.first = first
        self.last = last
        self.sampler = UpdateSampler(
            [utterance.seconds for utterance in manifest.utterances],
            seconds_per_update=settings.seconds_per_update,
            # A batch is shared by all processes.
            seconds_per_batch=settings.processes * settings.seconds_per_batch,
            max_seconds=settings.max_seconds,
            seed=settings.seed,
            fixed_crops=settings.fixed_crops,
        )

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, place: int) -> Update:
        update = self.first + place
        batches: list[Batch] = []
        lost: list[Skipped] = []
        for number, indices in enumerate(self.sampler.update(update)):
            batch, missing = collate(
                [self.manifest.utterances[index] for index in indices],
                load_crop,
                max_seconds=self.settings.max_seconds,
                seed=f"{self.sampler.crop_seed(update)}/{number}",
                rank=self.settings.rank,
                processes=self.settings.processes,
            )
            lost += missing
            if batch is not None:
                batches.append(batch)
        return update, batches, lost
