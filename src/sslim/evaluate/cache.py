"""The folder of computed features: files found again by identity, bounded, and no one else's files touched.

Any number of evaluations may share it. What was used longest ago makes room for what is new.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from sslim.errors import OutputError, first_line
from sslim.files import written_whole

Kept = TypeVar("Kept")

OURS = re.compile(
    r"pooled-[0-9a-f]{32}-[0-9a-f]{32}\.npz|frames-[0-9a-f]{32}\.npy|split-[0-9a-f]{32}\.csv"
)
"""Names that this room writes; nothing else is ever counted or removed."""
UNFINISHED = re.compile(rf"\.{{1,2}}(\d+-)?({OURS.pattern})(\.partial|\.\d+)?")
"""What a killed process leaves, in this version (`..PID-name.partial`) and in earlier ones (`.name.PID`)."""
ABANDONED_SECONDS = 3600.0
"""An unfinished file that nobody wrote to for so long belongs to nobody. (Its process could be asked for,
but not where containers or machines share the folder.)"""
HEADER = 1024
"""Bytes of a file besides the numbers, at most."""


@dataclass(frozen=True)
class KeptFile:
    """A file of the cache."""

    path: Path
    size: int
    used: float
    """When it was last read or written, seconds since the epoch."""


def default_folder() -> Path:
    """Where features are kept unless somebody says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sslim" / "features"


def kept_files(folder: Path) -> list[KeptFile]:
    """The files that this room wrote, the one used longest ago first."""
    return sorted(_matching(folder, OURS), key=lambda file: (file.used, file.path.name))


def unfinished_files(folder: Path, older_than: float = ABANDONED_SECONDS) -> list[KeptFile]:
    """What killed processes left."""
    now = time.time()
    return [file for file in _matching(folder, UNFINISHED) if now - file.used > older_than]


def remove(file: KeptFile) -> bool:
    """Removes a file; False where it may not be. That it is gone already is no failure."""
    try:
        file.path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def check_folder(folder: Path) -> None:
    """Makes the folder and writes to it, so that what cannot be kept is known before hours of work.

    Raises:
        OutputError: it is no folder, or may not be written.
    """
    probe = folder / f".{os.getpid()}-split-{'0' * 32}.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"features cannot be kept in {folder}: {first_line(error)}",
            "name a folder that can be written with --cache",
        ) from error


def _matching(folder: Path, pattern: re.Pattern[str]) -> Iterator[KeptFile]:
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # removed since, by another process
                if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    facts = entry.stat(follow_symlinks=False)
                    yield KeptFile(Path(entry.path), facts.st_size, facts.st_mtime)


class FeatureCache:
    """A folder of features with a bound.

    Args:
        folder: made when the first file is written.
        limit: bytes of all files together.
        say: told once when no more can be kept.
    """

    def __init__(self, folder: Path, limit: int, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.limit = limit
        self.say = say
        self._closed = False
        self._user = ""
        self._held: dict[str, int] = {}
        """Sizes of what the present user read or wrote: never removed for its own sake."""
        self._others: OrderedDict[str, int] | None = None
        """Sizes of everything else, the one used longest ago first; None until the folder was looked at."""
        self._used = 0
        """Bytes of both together."""

    def serve(self, user: str) -> None:
        """From now on features of `user` (a model) are asked for; files of others may make room."""
        if self._others is None:
            for file in unfinished_files(self.folder):
                remove(file)
            self._others = OrderedDict(
                (file.path.name, file.size) for file in kept_files(self.folder)
            )
            self._used = sum(self._others.values())
        if user != self._user:
            self._others.update(self._held)
            self._held = {}
            self._user = user

    def read(self, name: str, load: Callable[[IO[bytes]], Kept]) -> Kept | None:
        """What a file holds; None where there is none, or none that can be read."""
        path = self.folder / name
        try:
            with path.open("rb") as stream:
                content = load(stream)
        except FileNotFoundError:
            return None
        except Exception:  # whatever a power cut or a bad disk left, it is computed again
            with contextlib.suppress(OSError):
                path.unlink()
            self._forget(name)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        self._count(name)
        return content

    def has_room(self, size: int) -> bool:
        """Whether a file of so many bytes can be kept; removes what was used longest ago where it must."""
        if self._closed or size > self.limit or self._others is None:
            return False
        while self._used + size > self.limit and self._others:
            name = next(iter(self._others))
            self._forget(name)
            with contextlib.suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)
        return self._used + size <= self.limit

    def write(self, name: str, size: int, write: Callable[[IO[bytes]], None]) -> bool:
        """Keeps a file, whole or not at all; False where it does not fit. A full disk is no error."""
        if not self.has_room(size + HEADER):
            return False
        # Under this process's own name first: another may be writing the same.
        temporary = self.folder / f".{os.getpid()}-{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_whole(temporary) as aside, aside.open("wb") as stream:
                write(stream)
            temporary.replace(self.folder / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._closed = True
            self.say(
                f"no more features can be kept in {self.folder} ({first_line(error)}): they are computed "
                "each time they are needed"
            )
            return False
        self._count(name)
        return True

    def _count(self, name: str) -> None:
        """Puts a file among those that the present user holds."""
        self._forget(name)
        with contextlib.suppress(OSError):  # another process removed it
            self._held[name] = (self.folder / name).stat().st_size
            self._used += self._held[name]

    def _forget(self, name: str) -> None:
        """Takes a file out of the count."""
        for counted in (self._held, self._others or {}):
            self._used -= counted.pop(name, 0)
