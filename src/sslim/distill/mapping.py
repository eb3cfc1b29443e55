"""Which layers of the teacher a student learns: 0 is the front, k the output of layer k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sslim.errors import ConfigError


def default_layers(depth: int) -> tuple[int, ...]:
    """The front and every third of the depth (0, 4, 8, 12 for 12; DPHuBERT, section 3.1)."""
    return tuple(sorted({0, *(round(depth * third / 3) for third in (1, 2, 3))}))


def check_layers(layers: Sequence[int] | Literal["all"], depth: int) -> tuple[int, ...]:
    """The mapped layers of a teacher of `depth`; the default where none are given.

    Raises:
        ConfigError: a layer does not exist.
    """
    if layers == "all":
        return tuple(range(depth + 1))
    if not layers:
        return default_layers(depth)
    bad = [layer for layer in layers if not 0 <= layer <= depth]
    if bad:
        raise ConfigError(
            f"layers={list(layers)} names layer(s) {bad} but the teacher has {depth}",
            f"give numbers from 0 (feature projection) to {depth}",
        )
    return tuple(sorted(set(layers)))
