"""What a run is, in `run/run.json`: written once, and compared with what a resume brings.

Whatever changes the result must be what it was, or the resume is refused by the name of what differs. Only
what a person may lower after a failure, to get past it, may change, and that is written down.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sslim.config import SAFE_TO_CHANGE, RunConfig, to_dict
from sslim.errors import ConfigError
from sslim.files import read_json
from sslim.identity import COMPUTATION
from sslim.train.device import versions
from sslim.train.folder import RECORD
from sslim.train.state import read_state

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
    teacher: Mapping[str, Any],
    audio: Mapping[str, Any],
    where: Mapping[str, str] | None,
    device: str,
    processes: int,
    precision: torch.dtype,
) -> dict[str, Any]:
    """What a run is, with an id of its own."""
    return {
        "id": secrets.token_hex(8),
        "computation": COMPUTATION,
        "config": to_dict(config),
        "recipe": recipe,
        "teacher": dict(teacher),
        "audio": dict(audio),
        "where": dict(where or {}),
        "device": device,
        "processes": processes,
        "precision": str(precision).removeprefix("torch."),
        "versions": versions(),
        "changed": [],
    }


def place_of(audio: str | Path | Sequence[str | Path]) -> dict[str, str]:
    """Where the audio lies: as the user called it, and so that it is found from any other folder too.

    `path` is empty where several sources are given.
    """
    single = isinstance(audio, str | Path)
    return {
        "source": str(audio),
        "path": os.path.abspath(os.path.expanduser(str(audio))) if single else "",
    }


def read_record(folder: Path) -> dict[str, Any]:
    """The record in a run's folder.

    Raises:
        OutputError: it cannot be read, or is no record.
    """
    record = read_json(folder / RECORD, "the record of a run")
    parts = {"config": dict, "teacher": dict, "audio": dict, "versions": dict}
    wrong = [name for name, kind in parts.items() if not isinstance(record.get(name), kind)]
    if wrong:
        raise ConfigError(
            f"{folder / RECORD} is no record of a run: it has no {wrong[0]}",
            "restore it, or begin anew in another folder",
        )
    return record


def compare_settings(out: Path, before: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """Refuses other settings than a run was started with; the ones that were changed on purpose.

    Returns:
        Name of each setting that is mended after a failure -> (before, now).

    Raises:
        ConfigError: names what differs.
    """
    version = before["versions"].get("sslim", "an older version")
    if before.get("computation") != COMPUTATION:
        raise ConfigError(
            f"the run in {out} was started by sslim {version}, which computes other numbers",
            f"finish it with that version, {ANEW}",
        )
    old, new = _flat(before["config"]), _flat(to_dict(config))
    changed = {
        name: (old.get(name, "unknown"), new.get(name, "unknown"))
        for name in {**old, **new}
        # What `auto` has come to counts, and is compared elsewhere.
        if name not in SAFE_TO_CHANGE | {"precision"} and old.get(name) != new.get(name)
    }
    state = read_state(out / "run")
    failed = state.get("status") == "failed" and state.get("error") == "TrainingError"
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


def compare_teacher(out: Path, before: Mapping[str, Any], fingerprint: str) -> None:
    """Refuses another teacher.

    Raises:
        ConfigError: it has other weights, or a configuration that computes something else.
    """
    if before["teacher"].get("fingerprint") != fingerprint:
        raise ConfigError(
            f"the run in {out} was started with another teacher, or the teacher has changed since",
            f"resume with {before['teacher'].get('source')} as it was, {ANEW}",
        )


def compare_where(out: Path, before: Mapping[str, Any], where: Mapping[str, str] | None) -> None:
    """Refuses other rows of a CSV.

    Raises:
        ConfigError: other rows were asked for.
    """
    old, new = before.get("where") or {}, dict(where or {})
    if old != new:
        options = " ".join(f"--where {column}={value}" for column, value in old.items())
        raise ConfigError(
            f"the run in {out} was started with {options or 'no --where'}, not with "
            f"{' '.join(f'--where {column}={value}' for column, value in new.items()) or 'none'}",
            f"resume with {options or 'no --where'}, {ANEW}",
        )


def compare_mix(out: Path, before: Mapping[str, Any], mix: Mapping[str, float]) -> None:
    """Refuses other shares; whether the sources are the same, their contents say (`compare_audio`).

    Raises:
        ConfigError: other shares were asked for.
    """
    old = before["audio"].get("mix") or {}
    if list(old.values()) != list(mix.values()):
        one, two = (
            " ".join(f"--mix {path}={share:g}" for path, share in shares.items()) or "no --mix"
            for shares in (old, mix)
        )
        raise ConfigError(
            f"the run in {out} was started with {one}, not with {two}",
            f"resume with {one}, {ANEW}",
        )


def compare_audio(out: Path, before: Mapping[str, Any], audio: Mapping[str, Any]) -> None:
    """Refuses other audio, by what is in it and not by where it lies.

    Raises:
        ConfigError: it is not what the run was started with.
    """
    old = before["audio"]
    if old.get("fingerprint") == audio.get("fingerprint"):
        return
    words = [str(one.get("described", "something else")) for one in (old, audio)]
    told = f": {words[0]} before, {words[1]} now" if words[0] != words[1] else ""
    missing = f" ({audio['skipped']} cannot be used)" if told and audio.get("skipped") else ""
    raise ConfigError(
        f"the audio is not what the run in {out} was started with{told}{missing}",
        f"resume with {old.get('source')} as it was, {ANEW}",
    )


def compare_place(
    out: Path, before: Mapping[str, Any], now: Mapping[str, Any], *, shards: bool
) -> list[str]:
    """Refuses another precision, and another number of processes where that changes what is heard.

    Returns:
        Warnings about what may change the last digits only.

    Raises:
        ConfigError: names what differs.
    """
    if before.get("precision") != now["precision"]:
        raise ConfigError(
            f"the run in {out} was started in {before.get('precision')}, here it would go on in "
            f"{now['precision']}",
            f"resume with --set precision={before.get('precision')}, {ANEW}",
        )
    if shards and before.get("processes") != now["processes"]:
        raise ConfigError(
            f"the run in {out} was started with {before.get('processes')} processes, which shared the "
            f"shards, not with {now['processes']}",
            f"start as many processes as before, {ANEW}",
        )
    warnings = [
        f"{name} {before['versions'].get(name, 'none')} before, {version} now"
        for name, version in now["versions"].items()
        if before["versions"].get(name) != version
    ]
    warnings += [
        f"{name} {before.get(name)} before, {now[name]} now"
        for name in ("device", "processes")
        if before.get(name) != now[name]
    ]
    return [f"warning: the last digits may differ: {'; '.join(warnings)}"] if warnings else []


def mended(
    before: Mapping[str, Any], config: RunConfig, changed: Mapping[str, Any], at: str
) -> dict[str, Any]:
    """The record with settings that were changed on purpose, and what they were before."""
    earlier = before.get("changed")
    changes = [
        {"setting": name, "before": old, "now": new, "at": at}
        for name, (old, new) in changed.items()
    ]
    return {
        **before,
        "config": to_dict(config),
        "changed": [*(earlier if isinstance(earlier, list) else []), *changes],
    }


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
