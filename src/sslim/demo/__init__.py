"""The embedded default: a small teacher, speech made on the spot, and a comparison of what comes out."""

from __future__ import annotations

from pathlib import Path

__all__ = ["teacher_path"]


def teacher_path() -> Path:
    """The folder of the small HuBERT that travels with the package; transformers loads it as it is."""
    return Path(__file__).parent / "teacher"
