"""The folder of a run: what may be written where, what may go, and who else is at it.

`--force` removes names that sslim writes, and only where a record proves that a run of sslim wrote them; all
else in the folder stays.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from sslim.audio.source import Source
from sslim.backbone import contents
from sslim.errors import OutputError, first_line
from sslim.files import FolderLock, partial_name, read_json
from sslim.identity import sha256_of
from sslim.runs.facts import RunRecord

RUN_FOLDER = "run"
"""Where a run keeps its log, state and checkpoints, inside the output folder."""
RECORD = "run.json"
LOCK = ".lock"
SKIPPED, HELD_OUT = "skipped.json", "held_out.json"

RUN_FILES = ("state.json", SKIPPED, HELD_OUT, "metrics.jsonl", "projections.safetensors")
PRODUCTS = "products"
"""Where the products of a run's steps are kept while it lasts."""
RUN_FOLDERS = ("checkpoints", PRODUCTS, "targets", "pruned", "sslim")
"""What a run writes into `run/` besides its record; `sslim` is where a tracker writes, `pruned` what earlier
versions wrote."""


def settled(out: str | Path) -> Path:
    """The folder itself where OUT is `.`, or a link to a folder; a name can then be put beside or in it.

    Raises:
        OutputError: no folder can ever be there: a link to itself, a name too long, no such user.
    """
    path = Path(os.path.expanduser(out))
    advice = "choose another folder"
    if str(path).startswith("~"):
        raise OutputError(f"{path} is the folder of nobody", advice)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be used: {first_line(error)}", advice) from error
    return path.resolve() if path.is_symlink() or path.name in ("", "..") else path


def keep_inputs_apart(
    out: Path,
    teacher: str | Path,
    audio: str | Path | Sequence[str | Path],
    mix: Iterable[str] = (),
) -> None:
    """The result must not be written over what it is made from.

    Raises:
        OutputError: the teacher or the audio lies in `out`.
    """
    inputs = [("teacher", teacher)]
    main = [audio] if isinstance(audio, str | Path) else audio
    inputs += [("audio", one) for one in (*main, *mix)]
    _refuse_inside(out, inputs)


def keep_audio_apart(out: Path, audio: Source) -> None:
    """As `keep_inputs_apart`, for every single file that a list, a manifest or shards name.

    Raises:
        OutputError: one of them lies in `out`.
    """
    _refuse_inside(out, (("audio", path) for path in audio.paths()))


def _refuse_inside(out: Path, inputs: Iterable[tuple[str, str | Path]]) -> None:
    inside = os.path.join(os.path.realpath(out), "")
    parents: dict[str, str] = {}
    for what, given in inputs:
        path = os.path.expanduser(given)
        try:
            if not os.path.exists(path):
                continue
            parent, name = os.path.split(path)
            if parent not in parents:
                parents[parent] = os.path.realpath(parent or ".")
            whole = os.path.join(parents[parent], name)
            if os.path.islink(path) or name in ("", ".", ".."):
                whole = os.path.realpath(path)
        except (OSError, ValueError):  # no name that a file can have
            continue
        if os.path.join(whole, "").startswith(inside):
            raise OutputError(
                f"the {what} {given} lies in the output folder {out}",
                "choose another folder for OUT",
            )


def check_writable(out: Path, *, resume: bool, force: bool) -> None:
    """Refuses what would overwrite, or could not be written, before anything is read or made.

    Raises:
        OutputError: `out` holds what must not be lost, or nothing to resume, or is no place to write to.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file", "give a folder for the result")
    try:
        os.path.realpath(out).encode("utf-8")
    except UnicodeEncodeError as error:
        # Known now, not when the weights are written after days of training.
        raise OutputError(
            f"the path of {out} is not UTF-8, which weights cannot be written to",
            "choose another name for OUT",
        ) from error
    try:
        names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        blank = names in ([], [RUN_FOLDER]) and _is_blank(out / RUN_FOLDER)
    except OSError as error:
        raise OutputError(
            f"{out} cannot be read: {first_line(error)}", "choose another folder"
        ) from error
    if resume:
        if not (out / RUN_FOLDER / RECORD).is_file():
            left = (
                "holds a model, but not its run/ folder"
                if contents.RECORD in names
                else "holds no run"
            )
            raise OutputError(f"{out} {left} to resume", "run without --resume to start one")
        return
    if not blank and not force:
        raise OutputError(
            f"{out} already holds something",
            "use --resume to go on, --force to replace a run that is there, or a new folder",
        )
    if not blank and not _is_ours(out):
        raise OutputError(
            f"{out} holds files that are not from sslim, or no readable record (run/run.json, sslim.json) "
            "that they are",
            "choose an empty folder, or empty this one yourself",
        )
    _check_way(out)
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{nearest} may not be written to", "choose another folder for OUT")


def _is_blank(run: Path) -> bool:
    """Whether nothing was begun in a run's folder: an earlier try may have left its lock."""
    if not run.is_dir():
        return not run.exists()
    return all(path.name == LOCK or path.name.endswith(".partial") for path in run.iterdir())


def _is_ours(out: Path) -> bool:
    """Whether a record proves that sslim wrote here: the run's, or the result's."""
    for path, parts in (
        (out / RUN_FOLDER / RECORD, {"config": dict, "teacher": dict}),
        (out / contents.RECORD, {"config": dict, "teacher": dict, "result": dict}),
        (out / contents.RECORD, {"fingerprint": str, "files": dict}),
    ):
        try:
            facts = read_json(path, "a record")
        except OutputError:
            continue
        if all(isinstance(facts.get(name), kind) for name, kind in parts.items()):
            return True
    return False


def _check_way(out: Path) -> None:
    """Refuses folders under the names of files that the run will write."""
    run = out / RUN_FOLDER
    files = [out / name for name in contents.FILES] + [run / name for name in (RECORD, *RUN_FILES)]
    for path in files:
        if path.is_dir():
            raise OutputError(f"{path} is a folder, where a file has to go", "move it away")
    for path in (run, *(run / name for name in RUN_FOLDERS)):
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file, where a folder has to go", "move it away")


def hold(out: Path, held: ExitStack) -> None:
    """Keeps other programs out of the run's folder, once it is there, as long as `held` is open.

    Raises:
        OutputError: another program is at it, or it may not be written to.
    """
    try:
        held.enter_context(FolderLock(out / RUN_FOLDER / LOCK, "training in"))
    except OSError as error:
        raise _cannot_write(out, error) from error


def make_folder(out: Path) -> None:
    """Makes the folders of a run where they are missing.

    Raises:
        OutputError: they cannot be made.
    """
    try:
        (out / RUN_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(out, error) from error


def _cannot_write(out: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {out}: {first_line(error)}", "choose another folder")


def left_over(out: Path) -> Iterator[Path]:
    """What an earlier run wrote in `out`, besides its record and its lock."""
    run = out / RUN_FOLDER
    yield from (out / name for name in contents.FILES)
    yield from (path for path in out.iterdir() if _is_part_of_weights(path.name))
    yield from (run / name for name in (*RUN_FILES, *RUN_FOLDERS))
    yield from _asides(out)
    yield from run.glob(".*.partial")
    yield from run.glob(".*.old")


def _asides(out: Path) -> tuple[Path, ...]:
    """Where a result is written before it is whole: in the folder, and beside it by earlier versions."""
    return out / contents.ASIDE, partial_name(out)


def clear_after(out: Path) -> None:
    """Removes what only a resume would have needed, as far as that is possible."""
    for path in (*(out / RUN_FOLDER / name for name in RUN_FOLDERS[:-1]), *_asides(out)):
        if not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def check_result(out: Path) -> None:
    """Compares the files of a finished run with the checksums that `sslim.json` has of them.

    Raises:
        OutputError: one is missing, or is another than was written.
    """
    for name, wanted in contents.FolderFacts.read(out / contents.RECORD).files.items():
        path = out / Path(name).name
        try:
            same = sha256_of(path) == wanted
        except OSError as error:
            problem = first_line(error)
        else:
            problem = "" if same else "is not what was written"
        if problem:
            raise OutputError(
                f"the run in {out} is finished, but {path.name}: {problem}",
                "bring the file back, or begin anew with --force instead of --resume",
            )


def remove(paths: Iterable[Path]) -> None:
    """Removes files and folders of ours; a link goes, what it leads to stays.

    Raises:
        OutputError: one of them stays.
    """
    for path in list(paths):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot remove {path}: {first_line(error)}",
                "remove it, then run the command again",
            ) from error


def stays(out: Path) -> list[str]:
    """Names in `out` that are nobody's but its owner's."""
    ours = {RUN_FOLDER, *contents.FILES}
    return sorted(
        path.name
        for path in out.iterdir()
        if path.name not in ours and not _is_part_of_weights(path.name)
    )


def _is_part_of_weights(name: str) -> bool:
    return re.fullmatch(contents.PART_OF_WEIGHTS, name) is not None


def is_finished(out: Path, record: RunRecord) -> bool:
    """Whether the run of `record` has written its result into `out`.

    Raises:
        OutputError: there is a `sslim.json` that cannot be read, or is of another run.
    """
    path = out / contents.RECORD
    if not path.exists() or not record.cleared:  # what is there is still the last run's
        return False
    facts = read_json(path, "the description of a finished run")
    if facts.get("run") != record.id:
        raise OutputError(
            f"{path} is not what the run in {out / RUN_FOLDER} wrote",
            "bring the file back, or begin anew with --force instead of --resume",
        )
    return True
