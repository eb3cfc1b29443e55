"""The place where a case happens: its inputs, its neighbours, and what must not have changed afterwards."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import soundfile

TINY = [
    "--params",
    "50%",
    "--device",
    "cpu",
    "--set",
    "seconds_per_update=2",
    "--set",
    "seconds_per_batch=1",
    "--set",
    "audio.min_seconds=0.2",
    "--set",
    "audio.max_seconds=1",
    "--set",
    "stage1.updates=2",
    "--set",
    "stage2.updates=1",
    "--set",
    "workers=0",
    "--set",
    "log_every=1",
    "--set",
    "checkpoint_every=1",
    "--set",
    "precision=float32",
]
"""A whole compression in a second."""

FAST = ["--seeds", "1", "--epochs", "1", "--learning-rates", "0.01"]
"""A whole evaluation in a second."""

WHOLE_BYTES = 2**25
"""Larger files are told apart by size and time alone: some inputs are sparse and have gigabytes."""


class Box:
    """A folder with `in` (the case's inputs), `out` (not made), and neighbours that nobody may touch.

    Args:
        root: an empty folder.
        shared: a folder with what all cases may read (see `share`).
    """

    def __init__(self, root: Path, shared: Path) -> None:
        self.root = root
        self.shared = shared
        self.input = root / "in"
        self.out = root / "out"
        self.work = root / "work"
        self.canary = root / "canary"
        for name in ("in", "work", "home", "temporary", "neighbour/thesis"):
            (root / name).mkdir(parents=True)
        (root / "neighbour/thesis/draft.tex").write_text("three years of work\n")
        (root / "work/notes.txt").write_text("mine\n")

    @property
    def places(self) -> dict[str, str]:
        """Names that a case's words may use."""
        shared = (
            {path.name: str(path) for path in self.shared.iterdir()} if self.shared.is_dir() else {}
        )
        return shared | {
            "in": str(self.input),
            "out": str(self.out),
            "root": str(self.root),
            "csv": str(self.shared / "speech" / "clips.csv"),
            "onnx": str(self.shared / "model.onnx"),
        }

    def words(self, given: str | tuple[str, ...]) -> list[str]:
        """The words of a command line."""
        found: list[str] = []
        for word in given.split() if isinstance(given, str) else given:
            if word == "{tiny}":
                found += TINY
            elif word == "{fast}":
                found += [*FAST, "--cache", str(self.root / "home" / "cache")]
            else:
                found.append(word.format(**self.places) if "{" in word else word)
        return found

    def copy(self, name: str, to: str = "") -> Path:
        """A copy of something shared, in `in`, for a case to spoil."""
        target = self.input / (to or name)
        source = self.shared / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
        return target

    def good(self, folder: str = "", count: int = 4) -> None:
        """Good recordings in (a folder of) `in`, beside which a bad one stands."""
        target = self.input / folder
        target.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            soundfile.write(target / f"good{number}.wav", speech(number), 16_000)

    def state(self) -> dict[str, str]:
        """Everything in the box and in what is shared: name -> what it is."""
        return {f"shared/{name}": what for name, what in tree(self.shared).items()} | {
            name: what
            for name, what in tree(self.root).items()
            if not name.startswith(("home/", "temporary/"))
        }


def speech(seed: int, seconds: float = 0.8, rate: int = 16_000) -> np.ndarray:
    """Something that is heard, (samples,) float32."""
    draw = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (150 + 40 * seed) * times) * (1 + np.sin(2 * np.pi * 4 * times))
    return (0.1 * tone + 0.02 * draw.standard_normal(len(times))).astype(np.float32)


def tree(folder: Path) -> dict[str, str]:
    """Relative name -> kind, mode and content of everything in a folder; links are not followed."""
    found: dict[str, str] = {}
    for parent, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            found[os.fsdecode(os.path.relpath(path, os.fsencode(folder)))] = _what(path)
    return found


def _what(path: bytes) -> str:
    facts = os.lstat(path)
    kind = stat.filemode(facts.st_mode)
    if stat.S_ISLNK(facts.st_mode):
        return f"{kind} to {os.readlink(path)!r}"
    if not stat.S_ISREG(facts.st_mode):
        return kind
    if facts.st_size > WHOLE_BYTES:
        return f"{kind} {facts.st_size} {facts.st_mtime_ns}"
    with open(path, "rb") as stream:
        return f"{kind} {hashlib.sha256(stream.read()).hexdigest()}"


def lacking(what: str) -> str:
    """Why something that a case needs cannot be had here, or an empty string."""
    if what == "permissions" and os.geteuid() == 0:
        return "the superuser may read and write everything"
    if what == "nodes" and os.geteuid() != 0:
        return "only the superuser makes device nodes"
    return ""
