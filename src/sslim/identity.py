"""One identity for a model, a file, a clip, a condition: what every cache, resume and piece of evidence asks.

Two things have the same identity exactly when whatever is computed from them is the same. So an identity
holds *contents* (never a path as it was typed, a name that somebody chose, or a time of writing), the
settings that the computation reads, and the version of the code that computes.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

COMPUTATION = 2
"""Version of what is computed from a waveform: decoding, resampling, normalising, the models' own arithmetic,
log-mel features, pooling. Raise it whenever any of these gives other numbers than before; every cache and
every piece of evidence made by older code is then known to be another's."""

SAMPLED_ABOVE = 64 * 2**20
"""Bytes above which `content_of(..., whole=False)` reads pieces of a file instead of all of it."""
_PIECE = 2**20
_PIECES = 16

_known: dict[tuple[str, bool], tuple[tuple[int, ...], str]] = {}


def digest(*parts: Any) -> str:
    """SHA-256 over parts that JSON can hold, in their order; no two different lists give the same text."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as `sha256sum` gives it.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_of(path: str | Path, *, whole: bool = True) -> str:
    """SHA-256 over the contents of a file; computed once per process as long as the file is left alone.

    Args:
        path: the file.
        whole: read all of it. False reads, of a file above `SAMPLED_ABOVE`, its length and sixteen pieces of
            1 MiB spread over it, the first and the last among them: enough to tell recordings apart, not to
            prove that nothing was changed.

    Raises:
        OSError: it cannot be read.
    """
    real = os.path.realpath(path)
    with open(real, "rb") as stream:
        state = os.fstat(stream.fileno())
        # A change in place moves the time of change, which nobody can set back; a replaced file has
        # another inode.
        seen = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        known = _known.get((real, whole))
        if known is not None and known[0] == seen:
            return known[1]
        result = hashlib.sha256(str(state.st_size).encode())
        if whole or state.st_size <= SAMPLED_ABOVE:
            while block := stream.read(_PIECE):
                result.update(block)
        else:
            for number in range(_PIECES):
                stream.seek((state.st_size - _PIECE) * number // (_PIECES - 1))
                result.update(stream.read(_PIECE))
    _known[real, whole] = seen, result.hexdigest()
    return result.hexdigest()
