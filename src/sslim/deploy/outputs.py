"""What may be written where: known before hours of computing, and never over a file that is not ours."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from sslim.errors import OutputError, first_line
from sslim.files import partial_name


def kind_of(path: Path) -> str:
    """`file`, `folder`, `other` (a pipe, a device), or "" where there is nothing yet.

    Raises:
        OutputError: nobody can tell, so nothing can be written there either.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be looked into
        raise cannot_write(path, error) from error
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def prepare_file(path: Path) -> None:
    """Makes the folder of a file that will be written, and tries whether it can be.

    Raises:
        OutputError: it cannot, or `path` is a folder or a device.
    """
    kind = kind_of(path)
    if kind == "folder":
        raise OutputError(f"{path} is a folder", f"name a file in it, such as {path / 'out.json'}")
    if kind == "other":
        raise OutputError(f"{path} is no regular file", "name another file")
    aside = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            aside.unlink(missing_ok=True)


def cannot_write(path: Path, error: BaseException, hint: str = "") -> OutputError:
    """The sentence for a file that could not be written, disk full or not."""
    return OutputError(
        f"cannot write {path}: {first_line(error)}",
        hint or "free space, or choose another place",
    )
