"""The folder of a run: what may be written where, and whether a resumed run is still the same run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sslim.config import SAFE_TO_CHANGE, difference, from_dict
from sslim.errors import ConfigError, OutputError
from sslim.files import write_json
from sslim.train.stage import Session

RUN_FOLDER = "run"
"""Where a run keeps its log, state and checkpoints, inside the output folder."""


def keep_inputs_apart(
    out: Path, teacher: str | Path, audio: str | Path | Sequence[str | Path]
) -> None:
    """The result must not be written over what it is made from.

    Raises:
        OutputError: the teacher or the audio lies in `out`.
    """
    inputs = [("teacher", teacher)]
    if isinstance(audio, (str, Path)):
        inputs.append(("audio", audio))
    for what, path in inputs:
        if Path(path).exists() and Path(path).resolve().is_relative_to(out.resolve()):
            raise OutputError(
                f"the {what} {path} lies in the output folder {out}",
                "choose another folder for OUT",
            )


def may_write(out: Path, *, resume: bool, force: bool) -> bool:
    """Refuses to overwrite; False where the run that should be resumed has already finished.

    Raises:
        OutputError: `out` holds what must not be lost, or nothing to resume.
    """
    if out.is_file():
        raise OutputError(f"{out} is a file", "give a folder for the result")
    holds = out.is_dir() and any(out.iterdir())
    if resume:
        if not (out / RUN_FOLDER / "run.json").is_file():
            raise OutputError(f"{out} holds no run to resume", "run without --resume to start one")
        return not (out / "sslim.json").is_file()
    if holds and not force:
        raise OutputError(
            f"{out} already holds something",
            "use --resume to go on, --force to replace it, or a new folder",
        )
    if holds and not ((out / RUN_FOLDER).is_dir() or (out / "sslim.json").is_file()):
        raise OutputError(
            f"{out} holds files that are not from sslim, and --force would remove them",
            "choose an empty folder, or empty this one yourself",
        )
    return True


def create_folder(out: Path) -> None:
    """Only now, when everything has been checked, goes what `--force` replaces."""
    try:
        if out.is_dir():
            shutil.rmtree(out)
        (out / RUN_FOLDER).mkdir(parents=True)
    except OSError as error:
        raise OutputError(
            f"cannot create {out}: {error.strerror}", "choose another folder"
        ) from error


def write_run(session: Session, facts: Mapping[str, Any], *, resume: bool) -> None:
    """Writes what the run is, or checks that a resumed run is still the same.

    Raises:
        ConfigError: settings or teacher differ from those that the run was started with.
    """
    path = session.folder / "run.json"
    if not resume:
        write_json(path, facts)
        skipped = getattr(session.audio, "skipped", ())
        write_json(session.folder / "skipped.json", {"skipped": [asdict(item) for item in skipped]})
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = difference(from_dict(before["config"]), session.config)
    unsafe = {name: pair for name, pair in changed.items() if name not in SAFE_TO_CHANGE}
    if unsafe:
        listed = ", ".join(
            f"{name} ({old} before, {new} now)" for name, (old, new) in unsafe.items()
        )
        raise ConfigError(
            f"the run in {session.folder.parent} was started with other settings: {listed}",
            "resume with the same settings, or start anew with --force",
        )
    if before["teacher"]["fingerprint"] != facts["teacher"]["fingerprint"]:
        raise ConfigError(
            f"the run in {session.folder.parent} was started with another teacher",
            f"resume with {before['teacher']['source']}, or start anew with --force",
        )
    if before["audio"] != json.loads(json.dumps(facts["audio"])):
        session.progress.say("warning: the audio is not what the run was started with")
