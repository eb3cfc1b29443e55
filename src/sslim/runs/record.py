"""What a run is, in `run/run.json`: written once, and compared with what a resume brings.

Whatever changes the result must be what it was, or the resume is refused by the name of what differs. Only
what a person may lower after a failure, to get past it, may change, and that is written down.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sslim.audio.source import Source
from sslim.config import SAFE_TO_CHANGE, RunConfig, to_dict
from sslim.errors import ConfigError, OutputError
from sslim.identity import COMPUTATION
from sslim.runs.facts import AudioFacts, RunRecord, SettingChange, TeacherFacts
from sslim.runs.folder import RECORD, RUN_FOLDER
from sslim.runs.state import read_state
from sslim.version import versions

MAY_MEND = frozenset(
    {
        "stage1.learning_rate",
        "stage1.gate_learning_rate",
        "stage2.learning_rate",
        "clip_norm",
        "audio.max_seconds",
        "seconds_per_batch",
    }
)
"""Settings that may differ when a run is resumed after training has failed (a loss that was not finite, no
memory): without them the same update would fail in the same way. The record lists what was changed."""

ANEW = "or begin anew with --force instead of --resume"


def new_record(
    config: RunConfig,
    *,
    recipe: str,
    teacher: TeacherFacts,
    audio: AudioFacts,
    where: Mapping[str, str] | None,
    device: str,
    processes: int,
    precision: torch.dtype,
) -> RunRecord:
    """What a run is, with an id of its own."""
    return RunRecord(
        id=secrets.token_hex(8),
        computation=COMPUTATION,
        config=to_dict(config),
        recipe=recipe,
        teacher=teacher,
        audio=audio,
        where=dict(where or {}),
        device=device,
        processes=processes,
        precision=str(precision).removeprefix("torch."),
        versions=versions(),
    )


def audio_facts(
    called: str | Path | Sequence[str | Path], audio: Source, mix: Mapping[str, float] | None = None
) -> AudioFacts:
    """What is heard, and where it lies: as the user called it, and so that it is found from any folder."""
    single = isinstance(called, str | Path)
    path = os.path.abspath(os.path.expanduser(str(called))) if single else ""
    return AudioFacts(source=str(called), path=path, mix=dict(mix or {}), **audio.summary())


def read_record(folder: Path) -> RunRecord:
    """The record in a run's folder.

    Raises:
        OutputError: it cannot be read, or is no record.
    """
    try:
        return RunRecord.read(folder / RECORD)
    except OutputError as error:
        advice = f"{error.hint}, or begin anew in another folder"
        raise OutputError(error.problem, advice) from error


def compare_settings(out: Path, before: RunRecord, config: RunConfig) -> dict[str, Any]:
    """Refuses other settings than a run was started with; the ones that were changed on purpose.

    Returns:
        Name of each setting that is mended after a failure -> (before, now).

    Raises:
        ConfigError: names what differs.
    """
    version = before.versions.get("sslim", "an older version")
    if before.computation != COMPUTATION:
        raise ConfigError(
            f"the run in {out} was started by sslim {version}, which computes other numbers",
            f"finish it with that version, {ANEW}",
        )
    old, new = _flat(before.config), _flat(to_dict(config))
    changed = {
        name: (old.get(name, "unknown"), new.get(name, "unknown"))
        for name in {**old, **new}
        # What `auto` has come to counts, and is compared elsewhere.
        if name not in SAFE_TO_CHANGE | {"precision"} and old.get(name) != new.get(name)
    }
    state = read_state(out / RUN_FOLDER)
    failed = state.status == "failed" and state.error == "TrainingError"
    refused = {name: pair for name, pair in changed.items() if not (failed and name in MAY_MEND)}
    if refused:
        listed = ", ".join(f"{name} ({a} before, {b} now)" for name, (a, b) in refused.items())
        same = " ".join(
            f"--params {a}" if name == "budget" else f"--set {name}={_typed(a)}"
            for name, (a, _) in refused.items()
        )
        unknown = any("unknown" in pair for pair in refused.values())
        raise ConfigError(
            f"the run in {out} was started with other settings: {listed}",
            f"finish it with sslim {version}, {ANEW}"
            if unknown
            else f"resume with the same settings ({same}), {ANEW}",
        )
    return changed


def compare_teacher(out: Path, before: RunRecord, fingerprint: str) -> None:
    """Refuses another teacher.

    Raises:
        ConfigError: it has other weights, or a configuration that computes something else.
    """
    if before.teacher.fingerprint != fingerprint:
        raise ConfigError(
            f"the run in {out} was started with another teacher, or the teacher has changed since",
            f"resume with {before.teacher.source} as it was, {ANEW}",
        )


def compare_where(out: Path, before: RunRecord, where: Mapping[str, str] | None) -> None:
    """Refuses other rows of a CSV.

    Raises:
        ConfigError: other rows were asked for.
    """
    old, new = before.where, dict(where or {})
    if old != new:
        options = " ".join(f"--where {column}={value}" for column, value in old.items())
        raise ConfigError(
            f"the run in {out} was started with {options or 'no --where'}, not with "
            f"{' '.join(f'--where {column}={value}' for column, value in new.items()) or 'none'}",
            f"resume with {options or 'no --where'}, {ANEW}",
        )


def compare_mix(out: Path, before: RunRecord, mix: Mapping[str, float]) -> None:
    """Refuses other shares; whether the sources are the same, their contents say (`compare_audio`).

    Raises:
        ConfigError: other shares were asked for.
    """
    old = before.audio.mix
    if list(old.values()) != list(mix.values()):
        one, two = (
            " ".join(f"--mix {path}={share:g}" for path, share in shares.items()) or "no --mix"
            for shares in (old, mix)
        )
        raise ConfigError(
            f"the run in {out} was started with {one}, not with {two}",
            f"resume with {one}, {ANEW}",
        )


def compare_audio(out: Path, before: RunRecord, audio: AudioFacts) -> None:
    """Refuses other audio, by what is in it and not by where it lies.

    Raises:
        ConfigError: it is not what the run was started with.
    """
    old = before.audio
    if old.fingerprint == audio.fingerprint:
        return
    words = [old.described, audio.described]
    told = f": {words[0]} before, {words[1]} now" if words[0] != words[1] else ""
    missing = f" ({audio.skipped} cannot be used)" if told and audio.skipped else ""
    raise ConfigError(
        f"the audio is not what the run in {out} was started with{told}{missing}",
        f"resume with {old.source} as it was, {ANEW}",
    )


def compare_place(out: Path, before: RunRecord, now: RunRecord, *, shards: bool) -> list[str]:
    """Refuses another precision, and another number of processes where that changes what is heard.

    Returns:
        Warnings about what may change the last digits only.

    Raises:
        ConfigError: names what differs.
    """
    if before.precision != now.precision:
        raise ConfigError(
            f"the run in {out} was started in {before.precision}, here it would go on in "
            f"{now.precision}",
            f"resume with --set precision={before.precision}, {ANEW}",
        )
    if shards and before.processes != now.processes:
        raise ConfigError(
            f"the run in {out} was started with {before.processes} processes, which shared the "
            f"shards, not with {now.processes}",
            f"start as many processes as before, {ANEW}",
        )
    warnings = [
        f"{name} {before.versions.get(name, 'none')} before, {version} now"
        for name, version in now.versions.items()
        if before.versions.get(name) != version
    ]
    warnings += [
        f"{name} {earlier} before, {here} now"
        for name, earlier, here in (
            ("device", before.device, now.device),
            ("processes", before.processes, now.processes),
        )
        if earlier != here
    ]
    return [f"warning: the last digits may differ: {'; '.join(warnings)}"] if warnings else []


def mended(
    before: RunRecord, config: RunConfig, changed: Mapping[str, tuple[Any, Any]], at: str
) -> RunRecord:
    """The record with settings that were changed on purpose, and what they were before."""
    changes = (SettingChange(name, old, new, at) for name, (old, new) in changed.items())
    return replace(before, config=to_dict(config), changed=(*before.changed, *changes))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _typed(value: Any) -> str:
    """A value as `--set` takes it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
