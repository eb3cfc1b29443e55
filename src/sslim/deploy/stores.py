"""Files of features, written piece by piece: npz, safetensors, Parquet.

Features arrive in a plain file first (`.partial`, float32, appended chunk by chunk), which is what an
interrupted run goes on from. When a recording is finished they are copied into the format that was asked for,
mapped into memory rather than read, so that hours of features need none of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sslim.errors import ConfigError
from sslim.files import written_whole

FORMATS = ("npz", "safetensors", "parquet")
ROW_GROUP = 2**24
"""Bytes of features in each row group of a Parquet file."""


class Partial:
    """The growing file of one recording.

    Args:
        path: where.
        shape: of one frame: (D,) or (L, D).
        chunk: frames per chunk; what an interruption left of one is dropped.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], chunk: int) -> None:
        self.path, self.shape = path, shape
        self.frame_bytes = 4 * int(np.prod(shape))
        complete = path.stat().st_size // self.frame_bytes if path.exists() else 0
        self.frames = complete - complete % chunk
        if path.exists():
            with path.open("r+b") as stream:
                stream.truncate(self.frames * self.frame_bytes)

    def append(self, features: np.ndarray) -> None:
        """Adds frames."""
        with self.path.open("ab") as stream:
            stream.write(np.ascontiguousarray(features, dtype="<f4").tobytes())
        self.frames += len(features)

    def finish(self, out: Path, about: dict[str, str]) -> None:
        """Copies into the format that `out` is named for, and goes away."""
        features = np.memmap(self.path, "<f4", "r", shape=(self.frames, *self.shape))
        with written_whole(out) as aside:
            WRITERS[out.suffix.removeprefix(".")](aside, features, about)
        self.path.unlink()


def _npz(path: Path, features: np.ndarray, about: dict[str, str]) -> None:
    arrays: dict[str, Any] = {"features": features, **about}
    with path.open("wb") as stream:  # of a name alone, numpy would make one that ends in .npz
        np.savez(stream, **arrays)


def _safetensors(path: Path, features: np.ndarray, about: dict[str, str]) -> None:
    """By hand: the library writes `about` in another order each time, so no two files would be equal."""
    header = {
        "__metadata__": about,
        "features": {
            "dtype": "F32",
            "shape": list(features.shape),
            "data_offsets": [0, features.nbytes],
        },
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.write(features.data)


def _parquet(path: Path, features: np.ndarray, about: dict[str, str]) -> None:
    arrow, parquet = _pyarrow()
    width = int(np.prod(features.shape[1:]))
    kind = arrow.list_(arrow.float32(), width)
    schema = arrow.schema([("frame", arrow.int64()), ("features", kind)], metadata=about)
    count = max(1, ROW_GROUP // (4 * width))
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(features), count):
            values = np.array(features[start : start + count])
            rows = arrow.FixedSizeListArray.from_arrays(arrow.array(values.reshape(-1)), width)
            index = arrow.array(np.arange(start, start + len(values)))
            writer.write_table(arrow.Table.from_arrays([index, rows], schema=schema))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            "Parquet needs the package pyarrow, which is not installed",
            "run: pip install 'sslim[parquet]', or choose npz or safetensors",
        ) from error
    return pyarrow, parquet


def check_format(name: str) -> None:
    """Refuses a format that is unknown or cannot be written here, before anything is computed.

    Raises:
        ConfigError: as said.
    """
    if name not in FORMATS:
        raise ConfigError(f"the format {name!r} is unknown", f"use one of {', '.join(FORMATS)}")
    if name == "parquet":
        _pyarrow()


WRITERS = {"npz": _npz, "safetensors": _safetensors, "parquet": _parquet}
