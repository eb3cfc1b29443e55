"""Frozen features, computed once: one vector per layer and clip, or all frames, kept on disk.

A frozen model says the same of a clip each time, so what a head learns from is computed once per model and
set of clips, in pieces that are kept: an interrupted evaluation goes on where it was.

Shape legend: N clips, L layers, T frames, D width.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

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
        keys = [_key(clip) for clip in clips]
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

    def _kept_pools(
        self, upstream: Upstream, condition: str, keys: Sequence[str], pooled: np.ndarray
    ) -> list[int]:
        """Fills in what any piece of this model and condition holds, whatever the clips were asked for
        together with; returns the rest."""
        missing = set(range(len(keys)))
        pieces = self.folder.glob(_pool_name(upstream, condition, "*")) if self.folder else ()
        for path in sorted(pieces):
            try:
                with path.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
                    rows = {key: row for row, key in enumerate(kept["keys"].tolist())}
                    found = [index for index in missing if keys[index] in rows]
                    if found:
                        pooled[found] = kept["pooled"][[rows[keys[index]] for index in found]]
            except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # half a file
                continue
            missing.difference_update(found)
        return sorted(missing)

    def _keep_pools(
        self, upstream: Upstream, condition: str, keys: Sequence[str], pooled: np.ndarray
    ) -> None:
        if self.folder is not None:
            name = _pool_name(upstream, condition, _digest(*keys))
            _write(
                self.folder / name, lambda stream: np.savez(stream, keys=list(keys), pooled=pooled)
            )

    def _frames_path(self, upstream: Upstream, clip: Clip, condition: str) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"frames-{_digest(upstream.fingerprint, condition, _key(clip))}.npy"


def _pool_name(upstream: Upstream, condition: str, piece: str) -> str:
    return f"pooled-{_digest(upstream.fingerprint, condition)}-{piece}.npz"


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]


def _key(clip: Clip) -> str:
    """Changes with the clip and with its file."""
    return f"{clip.identity}\t{_stamp(clip.utterance.path)}\n"


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
        path = self.store._frames_path(self.upstream, self.clips[index], self.condition)
        kept = self._held.get(index)
        if kept is None:
            kept = _load(path)
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
                index: self.store._frames_path(self.upstream, self.clips[index], self.condition)
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
                    path = paths[index]
                    if path is None:
                        self._held[index] = half
                    else:
                        _write(path, partial(np.save, arr=half))
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


def _load(path: Path | None) -> np.ndarray | None:
    if path is None or not path.exists():
        return None
    try:
        kept: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError):  # half a file that a kill left
        return None
    return kept


def _write(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as stream:
        write(stream)
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
