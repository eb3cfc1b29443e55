"""Frozen features, computed once: one vector per layer and clip, or all frames, kept on disk.

A frozen model says the same of a clip each time, so what a head learns from is computed once per model and
clip, in pieces that are kept: an interrupted evaluation goes on where it was. A piece is found again by what
it was computed from: the model with its configuration, the clip's contents, the condition with the contents
of its noises or rooms, the version of the code. Names, places and times of writing play no part.

Shape legend: N clips, L layers, T frames, D width.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from sslim import identity
from sslim.backbone.frozen import Frozen
from sslim.errors import AudioError, TeacherError
from sslim.evaluate.cache import HEADER, FeatureCache
from sslim.evaluate.clips import Clip
from sslim.plan import SAMPLING_RATE

PIECE = 256
"""Clips per file of pooled features."""

BATCH_SAMPLES = 16 * SAMPLING_RATE
"""Audio that passes through a model at once."""

HALF_ERROR = 1e-3
"""What float16 may take off a layer's values on average; rounding alone takes half of it."""

Alter = Callable[[np.ndarray, str], np.ndarray]
"""A condition: a waveform and its clip's identity -> what the model hears instead."""
Progress = Callable[[int, int], None]
Found = TypeVar("Found")
Shape = tuple[int, int]
"""L and D."""


@dataclass(frozen=True)
class FeatureStore:
    """Where features are kept.

    Args:
        folder: None keeps nothing on disk.
        limit: bytes of all features on disk (frames in memory where there is no folder); what does not fit is
            computed again when it is needed.
        say: told when the disk is full.
    """

    folder: Path | None = None
    limit: int = 20 * 2**30
    say: Callable[[str], None] = print

    @cached_property
    def cache(self) -> FeatureCache | None:
        return None if self.folder is None else FeatureCache(self.folder, self.limit, self.say)

    def pooled(
        self,
        upstream: Frozen,
        clips: Sequence[Clip],
        *,
        alter: Alter | None = None,
        condition: str = "",
        on_progress: Progress | None = None,
    ) -> np.ndarray:
        """Mean over time of every layer, (N, L, D) float32.

        Args:
            upstream: the model.
            clips: in any order.
            alter: what happens to each waveform first.
            condition: the identity of `alter`: the same exactly when it does the same.
            on_progress: called with (clips done, clips in all).

        Raises:
            AudioError: a clip cannot be decoded, or is too short for one frame.
            TeacherError: the model gives values that are not finite.
        """
        _check_condition(alter, condition)
        keys = [clip.content for clip in clips]
        pooled = np.empty((len(clips), upstream.layers, upstream.width), dtype=np.float32)
        missing = self._kept_pools(upstream, condition, keys, pooled)
        for start in range(0, len(missing), PIECE):
            piece = missing[start : start + PIECE]
            pooled[piece] = _pool(upstream, [clips[index] for index in piece], alter)
            self._keep_pools(upstream, condition, [keys[index] for index in piece], pooled[piece])
            if on_progress is not None:
                on_progress(len(clips) - len(missing) + start + len(piece), len(clips))
        return pooled

    def frames(
        self,
        upstream: Frozen,
        clips: Sequence[Clip],
        *,
        alter: Alter | None = None,
        condition: str = "",
        on_progress: Progress | None = None,
    ) -> FrameFeatures:
        """All frames of all clips, in float16 as far as that holds them, on disk as far as there is room.

        Raises:
            AudioError, TeacherError: as `pooled`.
        """
        _check_condition(alter, condition)
        features = FrameFeatures(self, upstream, tuple(clips), alter, condition)
        features.prepare(on_progress)
        return features

    def _kept_pools(
        self, upstream: Frozen, condition: str, keys: Sequence[str], pooled: np.ndarray
    ) -> list[int]:
        """Fills in what any piece of this model and condition holds, whatever the clips were asked for
        together with; returns the rest."""
        missing = set(range(len(keys)))
        if self.cache is None:
            return sorted(missing)
        self.cache.serve(upstream.identity)
        pieces = self.cache.folder.glob(_pool_name(upstream, condition, "*.npz"))
        for name in sorted(path.name for path in pieces):
            if not missing:
                break
            found = self.cache.read(name, partial(_load_pools, shape=pooled.shape[1:]))
            if found is None:
                continue
            rows = {key: row for row, key in enumerate(found[0])}
            there = [index for index in missing if keys[index] in rows]
            pooled[there] = found[1][[rows[keys[index]] for index in there]]
            missing.difference_update(there)
        return sorted(missing)

    def _keep_pools(
        self, upstream: Frozen, condition: str, keys: Sequence[str], pooled: np.ndarray
    ) -> None:
        if self.cache is not None:
            name = _pool_name(upstream, condition, f"{identity.digest(*keys)[:32]}.npz")
            names = np.array([key.encode("ascii") for key in keys])
            self.cache.write(
                name,
                names.nbytes + pooled.nbytes,
                lambda stream: np.savez(stream, keys=names, pooled=pooled),
            )


def _check_condition(alter: Alter | None, condition: str) -> None:
    if alter is not None and not condition:
        raise ValueError("audio that is altered needs the identity of what alters it")


def _pool_name(upstream: Frozen, condition: str, piece: str) -> str:
    return f"pooled-{identity.digest(upstream.identity, condition)[:32]}-{piece}"


def _load_pools(stream: IO[bytes], shape: tuple[int, ...]) -> tuple[list[str], np.ndarray]:
    with np.load(stream, allow_pickle=False) as kept:
        keys, pooled = kept["keys"].tolist(), kept["pooled"]
    if pooled.shape != (len(keys), *shape) or pooled.dtype != np.float32:
        raise ValueError(f"holds {pooled.dtype} {pooled.shape}")
    return [key.decode("ascii") for key in keys], pooled


class FrameFeatures:
    """The frames of clips: `features[index]` is (L, T, D) float32."""

    def __init__(
        self,
        store: FeatureStore,
        upstream: Frozen,
        clips: tuple[Clip, ...],
        alter: Alter | None,
        condition: str,
    ) -> None:
        self.store = store
        self.upstream = upstream
        self.clips = clips
        self.alter = alter
        self.names = [
            f"frames-{identity.digest(upstream.identity, condition, clip.content)[:32]}.npy"
            for clip in clips
        ]
        self._held: dict[int, np.ndarray] = {}
        """What is kept in memory, where nothing is kept on disk."""

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> np.ndarray:
        kept = self._held.get(index)
        if kept is None:
            kept = self._read(index, _load_frames)
        if kept is None:
            # As the disk would hold it.
            kept = compact(_extract(self.upstream, [self.clips[index]], self.alter)[0])
        return kept.astype(np.float32)

    def _read(self, index: int, load: Callable[[IO[bytes], Shape], Found]) -> Found | None:
        if self.store.cache is None:
            return None
        shape = (self.upstream.layers, self.upstream.width)
        return self.store.cache.read(self.names[index], lambda stream: load(stream, shape))

    def prepare(self, on_progress: Progress | None = None) -> None:
        """Computes what is not there yet, up to the bound."""
        cache, used, done = self.store.cache, 0, 0
        if cache is not None:
            cache.serve(self.upstream.identity)
        for indices in _same_length(self.clips, range(len(self.clips)), self.alter is not None):
            missing = [index for index in indices if not self._read(index, _check_frames)]
            size = sum(self._size(index) for index in missing)
            if cache is None:
                room = used + size <= self.store.limit
            else:
                room = cache.has_room(size)
            if missing and room:
                clips = [self.clips[index] for index in missing]
                for index, states in zip(
                    missing, _extract(self.upstream, clips, self.alter), strict=True
                ):
                    found = compact(states)
                    if cache is None:
                        self._held[index] = found
                        used += found.nbytes
                    else:
                        cache.write(self.names[index], found.nbytes, partial(np.save, arr=found))
            done += len(indices)
            if on_progress is not None:
                on_progress(done, len(self.clips))

    def _size(self, index: int) -> int:
        """About how many bytes a clip's frames are."""
        frames = self.upstream.frames(round(self.clips[index].utterance.seconds * SAMPLING_RATE))
        return 2 * self.upstream.layers * self.upstream.width * frames + HEADER


def compact(states: np.ndarray) -> np.ndarray:
    """States (L, T, D) in float16, or as they are where a layer does not fit into it."""
    with np.errstate(over="ignore", under="ignore"):
        half = states.astype(np.float16)
    lost = np.abs(half - states).sum(axis=(1, 2))  # infinite or NaN where a value does not fit
    if (lost <= HALF_ERROR * np.abs(states).sum(axis=(1, 2))).all():
        return half
    return states


def _check_frames(stream: IO[bytes], shape: Shape) -> bool:
    """Raises ValueError unless a file is whole and holds frames of this shape; reads its header only."""
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("is of another version")
    dimensions, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if len(dimensions) != 3 or (dimensions[0], dimensions[2]) != shape:
        raise ValueError(f"holds {dimensions}")
    if dtype not in (np.float16, np.float32):
        raise ValueError(f"holds {dtype}")
    if os.fstat(stream.fileno()).st_size != stream.tell() + dtype.itemsize * math.prod(dimensions):
        raise ValueError("is cut short")
    return True


def _load_frames(stream: IO[bytes], shape: Shape) -> np.ndarray:
    _check_frames(stream, shape)
    stream.seek(0)
    kept: np.ndarray = np.load(stream, allow_pickle=False)
    return kept


def _same_length(
    clips: Sequence[Clip], indices: Sequence[int] | range, alone: bool
) -> Iterator[list[int]]:
    """Indices of clips of exactly equal length, a batch at a time: nothing is ever padded."""
    by_length: dict[tuple[float, int], list[int]] = {}
    for index in indices:
        utterance = clips[index].utterance
        key = (-1.0, index) if alone else (utterance.seconds, utterance.sampling_rate)
        by_length.setdefault(key, []).append(index)
    for (seconds, _), group in by_length.items():
        size = 1 if alone else max(1, int(BATCH_SAMPLES / (max(seconds, 0.01) * SAMPLING_RATE)))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _pool(upstream: Frozen, clips: Sequence[Clip], alter: Alter | None) -> np.ndarray:
    pooled = np.zeros((len(clips), upstream.layers, upstream.width), dtype=np.float32)
    for indices in _same_length(clips, range(len(clips)), alter is not None):
        states = _extract(upstream, [clips[index] for index in indices], alter)
        for index, found in zip(indices, states, strict=True):
            pooled[index] = found.mean(axis=1)
    return pooled


def _extract(upstream: Frozen, clips: Sequence[Clip], alter: Alter | None) -> Sequence[np.ndarray]:
    """(L, T, D) of clips, together where they are equally long."""
    waveforms = []
    for clip in clips:
        waveform = clip.waveform()
        if alter is not None:
            waveform = alter(waveform, clip.content)
        if len(waveform) < upstream.shortest:
            raise AudioError(
                f"{clip.identity} has {len(waveform)} samples, {upstream.name} needs "
                f"{upstream.shortest} for one frame",
                "remove its row",
            )
        waveforms.append(waveform)
    together = len({len(waveform) for waveform in waveforms}) == 1
    batches = [np.stack(waveforms)] if together else [waveform[None] for waveform in waveforms]
    states = [state for batch in batches for state in upstream.hidden_states(batch)]
    for clip, state in zip(clips, states, strict=True):
        if not np.isfinite(state).all():
            raise TeacherError(
                f"{upstream.name} gives values that are not finite for {clip.identity}",
                "check the model's weights",
            )
    return states
