"""The moment at which an output folder becomes a run's, or a run that is there is gone on with.

Nothing is made or removed before everything else has been checked. Then the record is written, and from there
on the folder is the new run's: what is still there of another goes, now or, after a kill, when it is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from sslim.audio import Manifest
from sslim.audio.held_out import HeldOut
from sslim.config import RunConfig
from sslim.runs import folder, record
from sslim.runs.facts import RunRecord, SkippedAudio
from sslim.runs.folder import RUN_FOLDER
from sslim.runs.state import RunState

Say = Callable[[str], None]


def begin(
    out: Path,
    new: RunRecord,
    audio: HeldOut,
    held: ExitStack,
    *,
    locked: bool,
    force: bool,
    say: Say,
) -> None:
    """Makes `out` a new run's.

    Args:
        out: the output folder, checked.
        new: the run's record.
        audio: what it is trained on, and what is held out; both are listed, and what is not used.
        held: what holds the folder's lock.
        locked: whether it does already; else, as there was no folder, it does from here on.
        force: whether a run that is there is replaced.
        say: told what stays.

    Raises:
        OutputError: the folder cannot be written, or has become somebody else's in the meantime.
    """
    run = out / RUN_FOLDER
    folder.make_folder(out)
    if not locked:  # two may have come here at once
        folder.hold(out, held)
        folder.check_writable(out, resume=False, force=force)
    new.write(run / folder.RECORD)
    _clear(out, new, say)
    skipped = audio.training.skipped if isinstance(audio.training, Manifest) else ()
    SkippedAudio(skipped=tuple(skipped)).write(run / folder.SKIPPED)
    audio.listed().write(run / folder.HELD_OUT)


def go_on(
    out: Path,
    before: RunRecord,
    now: RunRecord,
    config: RunConfig,
    mended: Mapping[str, tuple[Any, Any]],
    *,
    shards: bool,
    say: Say,
) -> None:
    """Makes sure that what is resumed is the same run.

    Args:
        out: the output folder.
        before: its record.
        now: the record that a new run of the same inputs would have.
        config: its settings now.
        mended: those of them that were changed after a failure.
        shards: whether the audio is shared by shards.
        say: told what may differ in the last digits.

    Raises:
        ConfigError: something differs that changes the result.
    """
    record.compare_teacher(out, before, now.teacher.fingerprint)
    record.compare_audio(out, before, now.audio)
    for line in record.compare_place(out, before, now, shards=shards):
        say(line)
    if mended:
        state = RunState(out / RUN_FOLDER, {}, resumed=True).facts
        at = f"{state.stage or 'the start'}, update {state.update or 0}"
        before = record.mended(before, config, mended, at)
        before.write(out / RUN_FOLDER / folder.RECORD)
    if not before.cleared:
        _clear(out, before, say)


def _clear(out: Path, facts: RunRecord, say: Say) -> None:
    folder.remove(folder.left_over(out))
    kept = folder.stays(out)
    if kept:
        say(f"left in {out} as it was: {', '.join(kept)}")
    replace(facts, cleared=True).write(out / RUN_FOLDER / folder.RECORD)
