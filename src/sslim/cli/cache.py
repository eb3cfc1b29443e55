"""`sslim cache`: how large the kept features are, and how to be rid of them."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from sslim.cli.arguments import CacheFolder
from sslim.errors import ConfigError, OutputError

DAY = 86_400.0


def cache(
    folder: CacheFolder = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of them.")] = False,
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", help="Remove what was not used for so many days."),
    ] = None,
) -> None:
    """Show, or remove, what sslim evaluate keeps: features, and splits it had to make elsewhere.

    Only files that sslim wrote are counted and removed; whatever else is in the folder stays.
    """
    if clear and older_than is not None:
        raise ConfigError("both --clear and --older-than are given", "choose one")
    if older_than is not None and not 0 <= older_than <= 36_500:
        raise ConfigError(f"--older-than takes days from 0 to 36500, got {older_than:g}")

    from sslim.evaluate.cache import default_folder, kept_files, remove, unfinished_files

    cache_folder = folder or default_folder()
    if cache_folder.exists() and not cache_folder.is_dir():
        raise ConfigError(
            f"{cache_folder} is not a folder", "name the folder given to evaluate's --cache"
        )
    try:
        kept = kept_files(cache_folder)
        unfinished = unfinished_files(cache_folder)
    except OSError as error:
        raise OutputError(
            f"{cache_folder} cannot be read: {error.strerror}", "check its rights"
        ) from error
    typer.echo(f"{cache_folder}: {_counted(len(kept))}, {_size(sum(file.size for file in kept))}")
    if not clear and older_than is None:
        return
    before = time.time() - (older_than or 0.0) * DAY
    chosen = [file for file in kept if clear or file.used <= before]
    chosen += unfinished
    gone = [file for file in chosen if remove(file)]
    typer.echo(f"removed {_counted(len(gone))}, {_size(sum(file.size for file in gone))}")
    if len(gone) < len(chosen):
        raise OutputError(
            f"{_counted(len(chosen) - len(gone))} of {cache_folder} may not be removed",
            "check its rights",
        )


def _counted(files: int) -> str:
    return f"{files:,} file{'' if files == 1 else 's'}"


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 100 else f"{size / 2**20:.2f} MiB"
