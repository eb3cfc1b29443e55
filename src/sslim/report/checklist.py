"""The rollout checklist: each item ticked from evidence in the run, or open with the command that closes it.

What no program can know (who, how often, under which licence, back to what) people write into `rollout.toml`
in the run's folder; `sslim checklist RUN --init` makes it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslim.errors import ConfigError, OutputError
from sslim.report.evidence import DECISIONS, Evidence
from sslim.report.words import Words

FIELDS = {
    "update_every": "how often the model is updated, such as month",
    "owner": "who trains and exports it",
    "reviewer": "who looks at its scores before it goes live",
    "operator": "who runs it and can go back",
    "teacher_licence": "the teacher's licence, and that it allows this use",
    "data_licence": "the audio's licence, and that it allows this use",
    "rollback_to": "the file or folder to go back to",
    "target_machine": "the machine it will run on",
}
TEMPLATE = "# Decisions about rolling this model out. Empty means open.\n" + "".join(
    f'\n# {text}\n{name} = ""\n' for name, text in FIELDS.items()
)


@dataclass(frozen=True)
class Item:
    """One line of the checklist."""

    key: str
    done: bool
    text: str
    """What is asked, in the report's language."""
    evidence: str
    """What was found, or what is missing."""
    command: str
    """Closes it; empty where it is done."""


def write_template(folder: Path) -> Path:
    """Makes `rollout.toml`, empty.

    Raises:
        OutputError: it exists, or cannot be written.
    """
    path = folder / DECISIONS
    if path.exists():
        raise OutputError(f"{path} exists", "edit it")
    try:
        path.write_text(TEMPLATE, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}", "check the folder"
        ) from error
    return path


def decisions(folder: Path) -> dict[str, str]:
    """What people have written, without what is empty.

    Raises:
        ConfigError: the file is no TOML, or holds something else.
    """
    path = folder / DECISIONS
    if not path.is_file():
        return {}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "mend it") from error
    unknown = sorted(set(found) - set(FIELDS))
    if unknown:
        raise ConfigError(f"{path} has {unknown[0]!r}", f"it knows {', '.join(FIELDS)}")
    return {name: str(value).strip() for name, value in found.items() if str(value).strip()}


def checklist(evidence: Evidence, words: Words) -> list[Item]:
    """All items, in the order in which a rollout meets them.

    Raises:
        ConfigError: `rollout.toml` is wrong.
    """
    say, folder = words.say, evidence.folder
    decided = decisions(folder)
    teacher = evidence.teacher or "TEACHER"
    init = f"sslim checklist {folder} --init" if not (folder / DECISIONS).exists() else ""
    edit = init or f"$EDITOR {folder / DECISIONS}"
    items: list[Item] = []

    def add(key: str, found: str, command: str) -> None:
        missing = say("check_missing")
        items.append(
            Item(key, bool(found), say(f"check_{key}"), found or missing, "" if found else command)
        )

    scored = ", ".join(dict.fromkeys(score["task"] for score in evidence.scores))
    judged = f"sslim evaluate {teacher} {folder} fbank --task ks --data clips.csv"
    add("own_data", scored, f"{judged} --json {folder}/evidence/ks.json")
    noisy = _conditions(evidence)
    add(
        "noise",
        ", ".join(noisy),
        f"{judged} --noise noises/ --conditions telephone,clipping --json {folder}/evidence/noise.json",
    )
    groups = dict.fromkeys(
        g["column"] for score in evidence.scores for g in score.get("groups", ())
    )
    add(
        "groups",
        ", ".join(groups),
        f"{judged} --group gender,age --json {folder}/evidence/groups.json",
    )
    exported = [e for e in evidence.exports if e["passed"]]
    files = ", ".join(f"{e['file']} ({e['format']})" for e in exported)
    add("export", files, f"sslim export {folder} {folder}/model-int8.onnx --format onnx-int8")
    add(
        "hardware",
        _hardware(evidence, words),
        f"sslim bench {teacher} {folder} --seconds 1,10 --json {folder}/evidence/bench.json",
    )
    add("machine", decided.get("target_machine", ""), edit)
    seconds = evidence.result.get("seconds")
    took = "" if seconds is None else say("check_minutes", minutes=f"{seconds / 60:.0f}")
    add("update_time", took, "sslim compress TEACHER AUDIO OUT --params 25%")
    add("update_every", decided.get("update_every", ""), edit)
    people = [decided.get(name, "") for name in ("owner", "reviewer", "operator")]
    add("people", ", ".join(people) if all(people) else "", edit)
    add("teacher_licence", decided.get("teacher_licence", ""), edit)
    add("data_licence", decided.get("data_licence", ""), edit)
    add("rollback", decided.get("rollback_to", ""), edit)
    return items


def _conditions(evidence: Evidence) -> list[str]:
    found: dict[str, None] = {}
    for score in evidence.scores:
        for row in score["results"]:
            found |= dict.fromkeys(row.get("conditions", {}))
    return list(found)


def _hardware(evidence: Evidence, words: Words) -> str:
    """The machine, where the model was faster than real time on it."""
    if evidence.bench is None:
        return ""
    rows: list[dict[str, Any]] = evidence.bench["results"]
    own = [row for row in rows if row["model"] != rows[0]["model"]] or rows
    best = min(own, key=lambda row: row["real_time_factor"])
    if best["real_time_factor"] >= 1:
        return ""
    return words.say(
        "check_real_time",
        machine=evidence.bench["machine"].get("processor", ""),
        runtime=best["runtime"],
        times=f"{1 / best['real_time_factor']:.0f}",
    )
