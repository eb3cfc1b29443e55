"""Where a model lies: a local folder, a checkpoint file, or `owner/name@revision` on the hub.

Whatever it is, loading goes on with a local path: of the hub, the named files of one commit are brought into
its cache first. Nothing that was downloaded is executed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sslim.errors import TeacherError, first_line

HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
"""owner/name, and the branch, tag or commit behind an @."""
CHECKPOINTS = {".pt", ".pth", ".safetensors", ".bin"}


@dataclass(frozen=True)
class Place:
    """A model's folder or file on this machine."""

    name: str
    """What finds it again: the path, or owner/name@revision."""
    path: Path
    repository: str | None = None
    """owner/name, where it is on the hub."""
    commit: str | None = None
    """The commit that the hub's revision stands for."""

    def bring(self, names: Sequence[str]) -> list[str]:
        """Brings files of the same commit from the hub; those that are there now, by name.

        Raises:
            TeacherError: the hub cannot be asked whether it has one.
        """
        if self.repository is not None:
            for name in names:
                _download(self.repository, name, self.commit)
        return [name for name in names if (self.path / name).is_file()]


def exists(path: Path) -> bool:
    """Whether there is such a path; what can be no path is not there."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def find(source: str | Path, revision: str | None = None) -> Place:
    """Finds a model; of one on the hub, its `config.json` is brought here.

    Args:
        source: a folder, a file, or owner/name or owner/name@revision.
        revision: a branch, tag or commit of the hub.

    Raises:
        TeacherError: there is no such thing, or a revision is given for a local path.
    """
    path = Path(source)
    if str(source).strip() and exists(path):
        if revision is not None:
            raise TeacherError(
                f"{source} lies on this machine, where there is no revision {revision!r}",
                "leave --revision out, or give the id of a model on the hub",
            )
        return Place(str(source), path)
    named = HUB_ID.fullmatch(str(source))
    local = str(source).startswith((".", "/", "~")) or path.suffix in CHECKPOINTS
    if named is None or (local and named[2] is None):
        raise TeacherError(
            f"the teacher {source} does not exist",
            "give a folder with config.json, a checkpoint file, or a hub id such as "
            "facebook/hubert-base-ls960",
        )
    repository, inside = named[1], named[2]
    if revision is not None and inside not in (None, revision):
        raise TeacherError(
            f"{source} names the revision {inside!r}, --revision {revision!r}", "give one of them"
        )
    revision = revision or inside
    name = f"{repository}@{revision}" if revision else repository
    config = _download(repository, "config.json", revision, name)
    if config is None:
        raise TeacherError(f"{name} has no config.json on the hub", "give the id of a model")
    folder = config.parent
    return Place(name, folder, repository, folder.name)


def _download(
    repository: str, file: str, revision: str | None, name: str | None = None
) -> Path | None:
    """A file of a model on the hub, in the hub's cache on this machine; None where it has no such file.

    Raises:
        TeacherError: the hub cannot be asked, or has no such model or revision.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = name or repository
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it reports each retry of an unreachable hub
    try:
        kept = try_to_load_from_cache(repository, file, revision=revision)
        if kept is not None and not isinstance(kept, str):  # known not to be there
            return None
        return Path(hf_hub_download(repository, file, revision=revision))
    except LocalEntryNotFoundError as error:
        raise TeacherError(
            f"cannot load {name}: {file} is not on this machine, and the hub cannot be asked",
            "connect to the network once, or give a local folder",
        ) from error
    except EntryNotFoundError:
        return None
    except RepositoryNotFoundError as error:
        raise TeacherError(
            f"the hub has no model {repository}, or keeps it from you",
            "check the id, or log in with hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise TeacherError(
            f"{repository} has no revision {revision!r} on the hub",
            "give a branch, tag or commit that it has",
        ) from error
    except Exception as error:  # a wrong id, no such model or revision, no access, no network
        raise TeacherError(
            f"cannot load {name}: {first_line(error)}",
            "give a local folder, a checkpoint file, or the id of a model on the hub",
        ) from error
    finally:
        log.setLevel(level)
