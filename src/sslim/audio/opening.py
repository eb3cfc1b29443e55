"""Opening files that anybody may have put there: regular files only, and never waiting for one."""

from __future__ import annotations

import os
import stat

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor for reading, which the caller closes.

    A pipe would be waited for without end and a device may never end, so neither is opened, nor read where
    it has taken the place of a file in the meantime.

    Raises:
        OSError: it cannot be opened, or is no regular file; `strerror` says what it is.
    """
    try:
        _refuse_others(os.stat(path))
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL character in the name
        raise OSError(None, "is no possible name of a file") from error
    try:
        _refuse_others(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_others(state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        kind = next((words for test, words in KINDS if test(state.st_mode)), "something else")
        raise OSError(None, f"is {kind}, not a file")
