"""Writing whole or not at all, reading what others wrote, and keeping two programs apart.

Every file that must survive a kill or a full disk is written aside, synced and renamed: a reader sees the old
file or the new one, never half of it. This is the one place where that is done.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sslim.errors import OutputError, SslimError, first_line

LARGEST_JSON = 256 * 2**20
"""Bytes of a JSON file that is still read; ours are far smaller."""


def fsync_file(path: Path) -> None:
    """Makes a file's contents durable."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def fsync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def partial_name(path: Path) -> Path:
    """Where `path` is written before it is whole: beside it, hidden.

    Raises:
        OSError: it is the root, beside which there is nothing.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` when the block ends well.

    What is left of a block that raised is removed; `path` is as it was. Errors pass through as they are.
    """
    aside = partial_name(path)
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)  # a link to itself would be replaced by what should be written where it leads
    try:
        yield aside
        _share(aside)
        fsync_file(aside)
        aside.replace(path)
        fsync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the error that matters is the one on its way
            aside.unlink(missing_ok=True)
        raise


def _share(path: Path) -> None:
    """Gives a file the rights that any new file has here: some libraries write for the owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all; what is no UTF-8 (names of files) is escaped."""
    with written_whole(path) as aside, aside.open("w", encoding="utf-8", newline="") as stream:
        stream.write(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path, what: str, error: type[SslimError] = OutputError) -> dict[str, Any]:
    """The JSON object in a file that anybody may have written.

    Args:
        path: the file.
        what: what it should be, in words for the message, such as "a run's description".
        error: raised where it is not.

    Raises:
        error: the file cannot be read, is too large, is no JSON, is nested too deeply, or holds no object.
    """
    try:
        if not path.is_file():
            raise OSError(None, "it is not a file" if path.exists() else "it does not exist")
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it is larger than {LARGEST_JSON // 2**20} MiB")
        # bytes that are no UTF-8 are a ValueError too
        data = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as problem:
        raise error(
            f"{path} cannot be read as {what}: {first_line(problem)}", "restore or remove it"
        ) from problem
    if not isinstance(data, dict):
        raise error(f"{path} is not {what}: it holds no object", "restore or remove it")
    return data


def swap_folder(fresh: Path, out: Path) -> None:
    """Puts a complete folder in the place of `out`; what was there goes last."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    fsync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


def _let_go_in_child() -> None:
    """A forked child (an audio decoder) would hold its parent's locks beyond the parent's death."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


class FolderLock:
    """Keeps a second program out of a folder as long as the first one lives, however it ends.

    On a file system that has no locks nobody is kept out.

    Args:
        path: the lock's file; its folder must exist. The file stays: removing it would let two in.
        doing: what the holder does, for the other's message.

    Raises (on entering):
        OutputError: another program holds it.
    """

    def __init__(self, path: Path, doing: str) -> None:
        self.path = path
        self.doing = doing
        self._descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise OutputError(
                f"another process ({holder or 'unknown'}) is {self.doing} {self.path.parent}",
                "wait for it or stop it, or choose another folder",
            ) from error
        except OSError:
            os.close(descriptor)
            return self
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        _held.add(descriptor)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._descriptor is not None:
            if self._descriptor in _held:  # not in a child, which has closed it already
                _held.discard(self._descriptor)
                os.close(self._descriptor)
            self._descriptor = None
