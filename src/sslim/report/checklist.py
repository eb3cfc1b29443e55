"""The rollout checklist: each item ticked from evidence in the run, or open with the command that closes it.

What no program can know (who, how often, under which licence, back to what) people write into `rollout.toml`
in the run's folder; `sslim checklist RUN --init` makes it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from sslim.errors import ConfigError, OutputError, first_line
from sslim.files import write_text
from sslim.report.evidence import DECISIONS, Evidence
from sslim.report.quoting import one_line, word
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
MOST_BYTES = 2**20
"""Of `rollout.toml`: some lines that people write."""
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
    if path.exists() or path.is_symlink():
        raise OutputError(f"{path} exists", "edit it")
    try:
        write_text(path, TEMPLATE)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {first_line(error)}", "check the folder"
        ) from error
    return path


def decisions(folder: Path) -> dict[str, str]:
    """What people have written, without what is empty.

    Raises:
        ConfigError: the file is no TOML, or holds something else.
    """
    path = folder / DECISIONS
    if not path.exists():
        return {}
    try:
        if not path.is_file():
            raise OSError(None, "it is not a file")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES // 2**20} MiB")
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {first_line(error)}", "mend it") from error
    unknown = sorted(set(entries) - set(FIELDS))
    if unknown:
        raise ConfigError(
            f"{path} has {one_line(unknown[0], 60)!r}", f"it knows {', '.join(FIELDS)}"
        )
    for name, value in entries.items():
        # `licence = false` must not tick a point as decided.
        if isinstance(value, (bool, list, dict)):
            raise ConfigError(f"{path}: {name} is no text", f'write {name} = "..."')
    decided = {name: one_line(value) for name, value in entries.items()}
    return {name: value for name, value in decided.items() if value}


def checklist(evidence: Evidence, words: Words) -> list[Item]:
    """All items, in the order in which a rollout meets them.

    Raises:
        ConfigError: `rollout.toml` is wrong.
    """
    say = words.say
    decided = decisions(evidence.folder)
    teacher, folder = word(evidence.teacher, "TEACHER"), word(evidence.folder, "RUN")
    decided_in = word(evidence.folder / DECISIONS, f"RUN/{DECISIONS}")
    init = "" if (evidence.folder / DECISIONS).exists() else f"sslim checklist {folder} --init"
    edit = init or f"$EDITOR {decided_in}"
    items: list[Item] = []

    def add(key: str, answer: str, command: str) -> None:
        missing = say("check_missing")
        items.append(
            Item(
                key, bool(answer), say(f"check_{key}"), answer or missing, "" if answer else command
            )
        )

    def written(name: str) -> str:
        return f"--json {word(evidence.folder / 'evidence' / name, f'RUN/evidence/{name}')}"

    scored = ", ".join(dict.fromkeys(scored.task for scored in evidence.scores))
    judged = f"sslim evaluate {teacher} {folder} fbank --task ks --data clips.csv"
    add("own_data", scored, f"{judged} {written('ks.json')}")
    add(
        "noise",
        ", ".join(_conditions(evidence)),
        f"{judged} --noise noises/ --conditions telephone,clipping {written('noise.json')}",
    )
    add(
        "groups",
        ", ".join(_groups(evidence)),
        f"{judged} --group gender,age {written('groups.json')}",
    )
    exported = [e for e in evidence.exports if e.passed]
    files = ", ".join(f"{e.file} ({e.format})" for e in exported)
    made = word(evidence.folder / "model-int8.onnx", "RUN/model-int8.onnx")
    add("export", files, f"sslim export {folder} {made} --format onnx-int8")
    add(
        "hardware",
        _hardware(evidence, words),
        f"sslim bench {teacher} {folder} --seconds 1,10 {written('bench.json')}",
    )
    add("machine", decided.get("target_machine", ""), edit)
    seconds = None if evidence.run is None else evidence.run.result.seconds
    took = "" if seconds is None else say("check_minutes", minutes=f"{seconds / 60:.1f}")
    add("update_time", took, "sslim compress TEACHER AUDIO OUT --params 25%")
    add("update_every", decided.get("update_every", ""), edit)
    people = [decided.get(name, "") for name in ("owner", "reviewer", "operator")]
    add("people", ", ".join(people) if all(people) else "", edit)
    add("teacher_licence", decided.get("teacher_licence", ""), edit)
    add("data_licence", decided.get("data_licence", ""), edit)
    add("rollback", decided.get("rollback_to", ""), edit)
    return items


def _conditions(evidence: Evidence) -> list[str]:
    """What this model was heard under besides clean audio."""
    names: dict[str, None] = {}
    for scored in evidence.scores:
        for row in filter(evidence.is_own, scored.results):
            names |= dict.fromkeys(row.conditions)
    return list(names)


def _groups(evidence: Evidence) -> list[str]:
    """Columns over which this model's scores were compared."""
    columns: dict[str, None] = {}
    for scored in evidence.scores:
        own_models = {row.model for row in filter(evidence.is_own, scored.results)}
        columns |= dict.fromkeys(
            report.column for report in scored.groups if own_models & set(report.scores)
        )
    return list(columns)


def _hardware(evidence: Evidence, words: Words) -> str:
    """The machine, where this model was faster than real time on it."""
    if evidence.bench is None:
        return ""
    own_rows = filter(evidence.is_own, evidence.bench.results)
    best = min(own_rows, key=lambda row: row.real_time_factor)
    if best.real_time_factor >= 1:
        return ""
    return words.say(
        "check_real_time",
        machine=evidence.bench.machine.processor or words.say("not_known"),
        runtime=best.runtime,
        times=f"{1 / best.real_time_factor:.1f}",
    )
