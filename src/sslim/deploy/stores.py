"""Files of features, written piece by piece: npz, safetensors, Parquet.

Features arrive in a plain file first (`.partial`, float32, appended chunk by chunk), which is what an
interrupted run goes on from. When a recording is finished they are copied, in bounded memory, into the format
that was asked for.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sslim.errors import ConfigError
from sslim.files import written_whole

FORMATS = ("npz", "safetensors", "parquet")
COPIED = 2**24
"""Bytes that are copied at once."""


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
        whole = path.stat().st_size // self.frame_bytes if path.exists() else 0
        self.frames = whole - whole % chunk
        if path.exists():
            with path.open("r+b") as stream:
                stream.truncate(self.frames * self.frame_bytes)

    def append(self, features: np.ndarray) -> None:
        """Adds frames."""
        with self.path.open("ab") as stream:
            stream.write(np.ascontiguousarray(features, dtype="<f4").tobytes())
        self.frames += len(features)

    def blocks(self) -> Iterator[np.ndarray]:
        """All frames, some at a time."""
        count = max(1, COPIED // self.frame_bytes)
        with self.path.open("rb") as stream:
            while data := stream.read(count * self.frame_bytes):
                yield np.frombuffer(data, "<f4").reshape(-1, *self.shape)

    def finish(self, out: Path, about: dict[str, str]) -> None:
        """Copies into the format that `out` is named for, and goes away."""
        shape = (self.frames, *self.shape)
        with written_whole(out) as aside:
            WRITERS[out.suffix.removeprefix(".")](aside, shape, self.blocks(), about)
        self.path.unlink()


def _npz(
    path: Path, shape: tuple[int, ...], blocks: Iterator[np.ndarray], about: dict[str, str]
) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("features.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_2_0(stream, header)
            for block in blocks:
                stream.write(block.tobytes())
        for name, text in about.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, np.array(text), allow_pickle=False)


def _safetensors(
    path: Path, shape: tuple[int, ...], blocks: Iterator[np.ndarray], about: dict[str, str]
) -> None:
    size = 4 * int(np.prod(shape))
    header = {
        "__metadata__": about,
        "features": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for block in blocks:
            stream.write(block.tobytes())


def _parquet(
    path: Path, shape: tuple[int, ...], blocks: Iterator[np.ndarray], about: dict[str, str]
) -> None:
    arrow, parquet = _pyarrow()
    width = int(np.prod(shape[1:]))
    kind = arrow.list_(arrow.float32(), width)
    schema = arrow.schema([("frame", arrow.int64()), ("features", kind)], metadata=about)
    at = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for block in blocks:
            rows = arrow.FixedSizeListArray.from_arrays(arrow.array(block.reshape(-1)), width)
            index = arrow.array(np.arange(at, at + len(block)))
            writer.write_table(arrow.Table.from_arrays([index, rows], schema=schema))
            at += len(block)


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
