"""What may be written where: known before hours of computing, and never over a file that is not ours."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sslim.errors import OutputError, first_line
from sslim.files import partial_name


def prepare_file(path: Path) -> None:
    """Makes the folder of a file that will be written, and tries whether it can be.

    Raises:
        OutputError: it cannot, or `path` is a folder or a device.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder", f"name a file in it, such as {path / 'out.json'}")
    if path.exists() and not path.is_file():
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
