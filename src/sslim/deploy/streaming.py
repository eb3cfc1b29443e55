"""Long and live audio: chunks with context on both sides, so that memory is bounded whatever comes.

Attention and the first norm look at everything they are given, so the features of a chunk depend on its
context; what chunking changes against the whole file is measured by `chunking_error`, not assumed.

Shape legend: as in `extractor.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from sslim.deploy.extractor import Extractor
from sslim.errors import AudioError, ConfigError

LONGEST_SECONDS = 3600.0
"""Of a chunk or a context: attention grows with the square of their sum."""


@dataclass(frozen=True)
class Chunking:
    """How audio is cut, in seconds."""

    chunk: float = 20.0
    """New audio per chunk. Live: what is waited for, besides the right context."""
    left: float = 5.0
    """Context before it, computed again."""
    right: float = 5.0
    """Context after it, computed again."""

    def frames(self, hop: int, rate: int = 16_000) -> tuple[int, int, int]:
        """Chunk, left and right in frames.

        Raises:
            ConfigError: a length is negative, no number or too long, or the chunk shorter than a frame.
        """
        if not all(
            0 <= seconds <= LONGEST_SECONDS for seconds in (self.chunk, self.left, self.right)
        ):
            raise ConfigError(
                f"chunks of {self.chunk:g} s with {self.left:g} s and {self.right:g} s of context",
                f"give lengths from 0 to {LONGEST_SECONDS:g} s",
            )
        counts = [round(seconds * rate / hop) for seconds in (self.chunk, self.left, self.right)]
        if counts[0] < 1:
            raise ConfigError(
                f"chunks of {self.chunk:g} s with {self.left:g} s and {self.right:g} s of context",
                f"the chunk must hold a frame ({hop / rate:g} s)",
            )
        return counts[0], counts[1], counts[2]


@dataclass(frozen=True)
class Piece:
    """One chunk with its context."""

    waveform: np.ndarray
    skip: int
    """Frames of left context."""
    keep: int | None
    """Frames to keep; None: all that follow."""

    def own_frames(self, features: np.ndarray) -> np.ndarray:
        """The chunk's own frames."""
        end = None if self.keep is None else self.skip + self.keep
        return features[self.skip : end]


def pieces(
    blocks: Iterable[np.ndarray],
    hop: int,
    receptive_field: int,
    frames: tuple[int, int, int],
    first: int = 0,
) -> Iterator[Piece]:
    """Cuts a stream of samples into chunks with context, holding no more than one of them.

    Args:
        blocks: (samples,) each, of any lengths.
        hop: samples between two frames.
        receptive_field: samples that one frame reads.
        frames: chunk, left and right context in frames.
        first: frames that are there already (a multiple of the chunk); they are not given again.
    """
    chunk, left, right = frames
    buffer = np.zeros(0, np.float32)
    origin = 0  # frame at which the buffer begins
    at = 0  # frame at which the next chunk begins

    def between(start: int, end: int | None) -> np.ndarray:
        stop = None if end is None else (end - origin - 1) * hop + receptive_field
        return buffer[(start - origin) * hop : stop]

    for block in blocks:
        buffer = np.concatenate([buffer, block])
        while origin * hop + len(buffer) >= (at + chunk + right - 1) * hop + receptive_field:
            start = max(0, at - left)
            if at >= first:
                yield Piece(between(start, at + chunk + right), at - start, chunk)
            at += chunk
            keep_from = max(0, at - left)
            buffer = buffer[(keep_from - origin) * hop :]
            origin = keep_from
    start = max(0, at - left)
    rest = between(start, None)
    count = (len(rest) - receptive_field) // hop + 1
    skip = max(at, first) - start  # what is there already may reach into the last piece
    if len(rest) >= receptive_field and count > skip:
        yield Piece(rest, skip, None)


def features(
    extractor: Extractor,
    blocks: Iterable[np.ndarray],
    chunking: Chunking,
    *,
    batch: int = 1,
    first: int = 0,
) -> Iterator[np.ndarray]:
    """Features of a stream, chunk by chunk: (F, D) or (F, L, D) each, in order.

    For live audio give blocks as they come and `batch=1`: a chunk is answered once its right context is
    there, so the latency is `chunk` plus `right` plus computing.

    Args:
        extractor: the model.
        blocks: (samples,) float32 at 16 kHz.
        chunking: how the stream is cut.
        batch: chunks that are computed at once.
        first: frames to leave out, see `pieces`.
    """
    frames = chunking.frames(extractor.model.hop)
    waiting: list[Piece] = []

    def flush() -> Iterator[np.ndarray]:
        states = extractor.extract([piece.waveform for piece in waiting])
        yield from (
            piece.own_frames(features) for piece, features in zip(waiting, states, strict=True)
        )
        waiting.clear()

    for piece in pieces(blocks, extractor.model.hop, extractor.model.shortest, frames, first):
        if waiting and len(waiting[0].waveform) != len(piece.waveform):
            yield from flush()
        waiting.append(piece)
        if len(waiting) >= batch:
            yield from flush()
    if waiting:
        yield from flush()


@dataclass(frozen=True)
class ChunkingError:
    """What cutting changes: chunked features against those of the whole waveform."""

    seconds: float
    """Compared."""
    cosine: float
    """Mean over frames."""
    worst_cosine: float
    """Of a frame."""
    relative_error: float
    """Norm of the difference over norm of the whole."""
    audio: str = ""
    """Absolute path of the recording."""


def chunking_error(extractor: Extractor, waveform: np.ndarray, chunking: Chunking) -> ChunkingError:
    """Compares chunked features with those of the whole waveform.

    Raises:
        AudioError: features are not finite.
    """
    unchunked = extractor.extract([waveform])[0].astype(np.float64)
    parts = list(features(extractor, [waveform], chunking))
    chunked = np.concatenate(parts).astype(np.float64)
    assert chunked.shape == unchunked.shape, (chunked.shape, unchunked.shape)
    if not (np.isfinite(unchunked).all() and np.isfinite(chunked).all()):
        raise AudioError(
            "the model gives NaN or infinity", "check the model's weights and the recording"
        )
    norms = np.linalg.norm(unchunked, axis=-1) * np.linalg.norm(chunked, axis=-1)
    cosine = (unchunked * chunked).sum(-1) / np.maximum(norms, 1e-12)
    distance = float(
        np.linalg.norm(unchunked - chunked) / max(float(np.linalg.norm(unchunked)), 1e-12)
    )
    return ChunkingError(
        len(waveform) / 16_000, float(cosine.mean()), float(cosine.min()), distance
    )
