"""Frozen features, computed once: one vector per layer and clip, or all frames, kept on disk.

A frozen model says the same of a clip each time, so what a head learns from is computed once per model and
set of clips, in pieces that are kept: an interrupted evaluation goes on where it was.

Shape legend: N clips, L layers, T frames, D width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslim.errors import AudioError, TeacherError
from sslim.evaluate.clips import Clip
from sslim.evaluate.upstream import Upstream

PIECE = 256
"""Clips per file of the cache."""

BATCH_SAMPLES = 16 * 16_000
"""Audio that passes through a model at once."""

Alter = Callable[[np.ndarray, str], np.ndarray]
"""A condition: a waveform and its clip's identity -> what the model hears instead."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FeatureStore:
    """Where features are kept.

    Args:
        folder: None keeps nothing on disk.
        limit: bytes of frame features on disk; what does not fit is computed again when it is needed.
    """

    folder: Path | None = None
    limit: int = 20 * 2**30

    def pooled(
        self,
        upstream: Upstream,
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
            condition: names `alter`, for the cache.
            on_progress: called with (clips done, clips in all).

        Raises:
            AudioError: a clip cannot be decoded, or is too short for one frame.
            TeacherError: the model gives values that are not finite.
        """
        pieces = []
        for start in range(0, len(clips), PIECE):
            part = clips[start : start + PIECE]
            path = self._path("pooled", upstream, part, condition)
            kept = _load(path, (len(part), upstream.layers, upstream.width))
            if kept is None:
                kept = _pool(upstream, part, alter)
                _save(path, kept)
            pieces.append(kept)
            if on_progress is not None:
                on_progress(start + len(part), len(clips))
        return np.concatenate(pieces)

    def frames(
        self,
        upstream: Upstream,
        clips: Sequence[Clip],
        *,
        alter: Alter | None = None,
        condition: str = "",
        on_progress: Progress | None = None,
    ) -> FrameFeatures:
        """All frames of all clips, in float16 on disk as far as the bound allows.

        Raises:
            AudioError, TeacherError: as `pooled`.
        """
        features = FrameFeatures(self, upstream, tuple(clips), alter, condition)
        features.prepare(on_progress)
        return features

    def _path(
        self, kind: str, upstream: Upstream, clips: Sequence[Clip], condition: str
    ) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(f"{upstream.fingerprint}\n{condition}\n".encode())
        for clip in clips:
            digest.update(f"{clip.identity}\t{_stamp(clip.utterance.path)}\n".encode())
        return self.folder / f"{kind}-{digest.hexdigest()[:32]}.npy"


class FrameFeatures:
    """The frames of clips: `features[index]` is (L, T, D) float32."""

    def __init__(
        self,
        store: FeatureStore,
        upstream: Upstream,
        clips: tuple[Clip, ...],
        alter: Alter | None,
        condition: str,
    ) -> None:
        self.store = store
        self.upstream = upstream
        self.clips = clips
        self.alter = alter
        self.condition = condition
        self._held: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> np.ndarray:
        path = self.store._path("frames", self.upstream, [self.clips[index]], self.condition)
        kept = self._held.get(index)
        if kept is None:
            kept = _load(path, None)
        if kept is None:
            kept = _extract(self.upstream, [self.clips[index]], self.alter)[0].astype(np.float16)
        return kept.astype(np.float32)

    def prepare(self, on_progress: Progress | None = None) -> None:
        """Computes what is not there yet, up to the bound."""
        used = 0
        folder = self.store.folder
        if folder is not None and folder.is_dir():
            used = sum(path.stat().st_size for path in folder.glob("frames-*.npy"))
        done = 0
        for indices in _same_length(self.clips, range(len(self.clips)), self.alter is not None):
            paths = {
                index: self.store._path(
                    "frames", self.upstream, [self.clips[index]], self.condition
                )
                for index in indices
            }
            missing = [index for index in indices if not _exists(paths[index])]
            size = sum(
                2
                * self.upstream.layers
                * self.upstream.width
                * self.upstream.frames(round(self.clips[index].utterance.seconds * 16_000))
                for index in missing
            )
            if missing and used + size <= self.store.limit:
                found = _extract(
                    self.upstream, [self.clips[index] for index in missing], self.alter
                )
                for index, states in zip(missing, found, strict=True):
                    half = states.astype(np.float16)
                    if paths[index] is None:
                        self._held[index] = half
                    else:
                        _save(paths[index], half)
                used += size
            done += len(indices)
            if on_progress is not None:
                on_progress(done, len(self.clips))


def _exists(path: Path | None) -> bool:
    return path is not None and path.exists()


def _stamp(path: str) -> str:
    """Changes when a file does."""
    try:
        facts = os.stat(path)
        return f"{facts.st_size}-{facts.st_mtime_ns}"
    except OSError:
        return ""


def _load(path: Path | None, shape: tuple[int, ...] | None) -> np.ndarray | None:
    if path is None or not path.exists():
        return None
    try:
        kept: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError):  # half a file that a kill left
        return None
    return kept if shape is None or kept.shape == shape else None


def _save(path: Path | None, array: np.ndarray) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as stream:
        np.save(stream, array)
    aside.replace(path)


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
        size = 1 if alone else max(1, int(BATCH_SAMPLES / (max(seconds, 0.01) * 16_000)))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _pool(upstream: Upstream, clips: Sequence[Clip], alter: Alter | None) -> np.ndarray:
    pooled = np.zeros((len(clips), upstream.layers, upstream.width), dtype=np.float32)
    for indices in _same_length(clips, range(len(clips)), alter is not None):
        states = _extract(upstream, [clips[index] for index in indices], alter)
        for index, found in zip(indices, states, strict=True):
            pooled[index] = found.mean(axis=1)
    return pooled


def _extract(
    upstream: Upstream, clips: Sequence[Clip], alter: Alter | None
) -> Sequence[np.ndarray]:
    """(L, T, D) of clips, together where they are equally long."""
    waveforms = []
    for clip in clips:
        waveform = clip.waveform()
        if alter is not None:
            waveform = alter(waveform, clip.identity)
        if len(waveform) < upstream.shortest:
            raise AudioError(
                f"{clip.identity} has {len(waveform)} samples, {upstream.name} needs "
                f"{upstream.shortest} for one frame",
                "remove its row",
            )
        waveforms.append(waveform)
    together = len({len(waveform) for waveform in waveforms}) == 1
    batches = [np.stack(waveforms)] if together else [waveform[None] for waveform in waveforms]
    states = [state for batch in batches for state in upstream.extract(batch)]
    for clip, state in zip(clips, states, strict=True):
        if not np.isfinite(state).all():
            raise TeacherError(
                f"{upstream.name} gives values that are not finite for {clip.identity}",
                "check the model's weights",
            )
    return states
