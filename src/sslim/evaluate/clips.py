"""Labelled clips: a CSV with one row per clip, checked before anything is computed.

Columns: `path`, and `start`, `end` in samples where a file holds several clips; what the task wants (`label`,
`text`, `phones`, ...); `speaker`; `split` with train, valid and test. Every other column is a group that
scores can be compared over.
"""

from __future__ import annotations

import csv
import difflib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sslim.audio import Utterance, load_audio, read_source
from sslim.errors import AudioError, ConfigError

PARTS = ("train", "valid", "test")
PART_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "dev": "valid",
    "val": "valid",
    "test": "test",
    "testing": "test",
}
SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}


@dataclass(frozen=True)
class Clip:
    """One labelled clip."""

    utterance: Utterance
    row: Mapping[str, str]
    """The CSV's columns."""
    part: str
    """`train`, `valid` or `test`; empty where it takes no part."""

    @property
    def identity(self) -> str:
        return self.utterance.identity

    def waveform(self) -> np.ndarray:
        """(samples,) float32 at 16 kHz."""
        return load_audio(self.utterance)


@dataclass(frozen=True)
class LabelledClips:
    """All clips of a source."""

    source: str
    clips: tuple[Clip, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was left out or made, for people."""

    def part(self, name: str) -> list[Clip]:
        """The clips of one part."""
        return [clip for clip in self.clips if clip.part == name]

    def need(self, *columns: str) -> None:
        """Raises ConfigError unless there are these columns."""
        _need(self.source, self.columns, columns)


def _need(source: str, known: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in known:
            near = difflib.get_close_matches(column, known, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"{source} has no column {column!r}",
                f"{guess}The columns are {', '.join(known)}",
            )


def read_clips(
    source: str | Path,
    *,
    columns: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
    split_column: str = "split",
    speaker_column: str = "speaker",
    seed: int = 0,
    split_file: Path | None = None,
) -> LabelledClips:
    """Reads a CSV of labelled clips.

    Without a split column a split is made that no speaker is on two sides of, 70/15/15, and saved.

    Args:
        source: the CSV; paths in it are relative to its folder.
        columns: what it must have, looked at before any audio is.
        where: rows to take, as column -> value.
        split_column: where train, valid and test are written; rows with anything else take no part. Empty:
            no parts are wanted (folds make their own).
        speaker_column: keeps the parts apart where the split is made.
        seed: of the split that is made.
        split_file: where a split that had to be made is kept (default: beside the CSV).

    Raises:
        ConfigError: a column is missing, a part is empty, or speakers or files leak between parts.
        AudioError: the CSV or its audio cannot be read.
    """
    path = Path(source)
    rows = _rows(path)
    known = tuple(rows[0]) if rows else ()
    if rows:
        own = [split_column] if split_column not in ("", "split") else []
        _need(str(path), known, ["path", *(where or {}), *own, *columns])
    chosen = [
        row for row in rows if all(row.get(name) == value for name, value in (where or {}).items())
    ]
    if not chosen:
        asked = ", ".join(f"{name}={value}" for name, value in (where or {}).items())
        raise ConfigError(
            f"{path} has no rows" + (f" with {asked}" if asked else ""), "check --where"
        )
    clips = _clips(path, chosen, dict(where or {}))
    notes = []
    if not split_column:
        return LabelledClips(str(path), tuple(clips), known)
    if split_column in known:
        clips = [
            replace(clip, part=PART_NAMES.get(clip.row[split_column].strip().lower(), ""))
            for clip in clips
        ]
    else:
        clips, note = _make_split(path, clips, speaker_column, seed, split_file)
        notes.append(note)
    return LabelledClips(str(path), tuple(clips), known, tuple(notes))


def check_parts(
    data: LabelledClips, *, parts: Sequence[str] = PARTS, shared_role: str = ""
) -> None:
    """Raises ConfigError where a part is empty or the same clip is in two parts.

    Clips of the `shared_role` may be: documents that the queries of every part are looked up in.
    """
    for part in parts:
        if not data.part(part):
            raise ConfigError(
                f"{data.source} has no rows of the part {part!r}",
                "its split column must name train, valid and test; --split-column chooses another",
            )
    seen: dict[str, str] = {}
    for clip in data.clips:
        if shared_role and clip.row.get("role") == shared_role:
            continue
        if clip.part and seen.setdefault(clip.identity, clip.part) != clip.part:
            raise ConfigError(
                f"{clip.identity} is in {seen[clip.identity]} and in {clip.part}",
                "a clip may be in one part only",
            )


def check_speakers(data: LabelledClips, column: str = "speaker") -> None:
    """Raises ConfigError where a speaker is in two parts: scores would flatter the model."""
    if column not in data.columns:
        return
    seen: dict[str, str] = {}
    for clip in data.clips:
        speaker = clip.row[column].strip()
        if clip.part and speaker and seen.setdefault(speaker, clip.part) != clip.part:
            raise ConfigError(
                f"speaker {speaker!r} of {data.source} is in {seen[speaker]} and in {clip.part}",
                "split by speaker (leave the split column out, and sslim makes such a split), or "
                "accept it with --allow-leaks",
            )


def check_classes(
    data: LabelledClips, labels: Mapping[str, Sequence[str]], *, fewest: int = 2
) -> None:
    """Raises ConfigError for a class that could not be learned or not be scored.

    Args:
        data: for the message.
        labels: the label of each clip, by part.
        fewest: classes that there must be.
    """
    counts = Counter(labels["train"])
    if len(counts) < fewest:
        raise ConfigError(
            f"{data.source} has {len(counts)} class in its training part",
            "a classification needs at least two; check the label column",
        )
    alone = sorted(label for label, count in counts.items() if count == 1)
    if alone:
        raise ConfigError(
            f"{len(alone)} class(es) of {data.source} have one training example, such as {alone[0]!r}",
            "add examples, or leave the class out",
        )
    for part in ("valid", "test"):
        unseen = sorted(set(labels[part]) - set(counts))
        if unseen:
            raise ConfigError(
                f"class {unseen[0]!r} of the part {part!r} of {data.source} has no training example"
                + (f", nor have {len(unseen) - 1} others" if len(unseen) > 1 else ""),
                "split so that every class has training examples",
            )


def _rows(path: Path) -> list[dict[str, str]]:
    if path.suffix.lower() != ".csv":
        raise ConfigError(
            f"{path} is no CSV", "give a CSV with the columns path, label (or text), split"
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise ConfigError(
                        f"{path}, line {reader.line_num}: not as many fields as there are columns",
                        "quote fields that hold commas",
                    )
                rows.append(dict(row))
            return rows
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist", "check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "give a UTF-8 CSV") from error


def _clips(path: Path, rows: Sequence[dict[str, str]], where: dict[str, str]) -> list[Clip]:
    """Rows with their audio looked at; what cannot be used is an error for one file and all."""
    manifest = read_source(path, where=where)
    if manifest.skipped:
        first = manifest.skipped[0]
        raise AudioError(
            f"{len(manifest.skipped)} clip(s) of {path} cannot be used; the first is {first.path}: "
            f"{first.reason}",
            "repair them or remove their rows, so that every model is scored on the same clips",
        )
    # Nothing was skipped, so there is an utterance for each row, in the same order.
    return [
        Clip(utterance, row, "") for utterance, row in zip(manifest.utterances, rows, strict=True)
    ]


def _make_split(
    path: Path, clips: list[Clip], speaker_column: str, seed: int, file: Path | None
) -> tuple[list[Clip], str]:
    """Parts by speaker where speakers are known, by file otherwise; the same again from the same seed."""
    file = file or path.with_name(f"{path.stem}.split.csv")
    known: dict[str, str] = {}
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as stream:
            known = {row["clip"]: row["split"] for row in csv.DictReader(stream)}
    named = speaker_column in clips[0].row
    if not all(clip.identity in known for clip in clips):
        owner = {
            clip.identity: clip.row[speaker_column] if named else clip.utterance.path
            for clip in clips
        }
        counts = Counter(owner.values())
        if len(counts) < 3:
            raise ConfigError(
                f"{path} has no split column, and {len(counts)} "
                f"{'speaker(s)' if named else 'file(s)'} cannot be split in three",
                "add a split column with train, valid and test",
            )
        names = sorted(counts)
        random.Random(seed).shuffle(names)
        names.sort(key=lambda name: -counts[name])
        held = dict.fromkeys(PARTS, 0.0)
        place: dict[str, str] = {}
        total = len(clips)
        for name in names:  # the largest first, each to the part that lacks most
            part = min(PARTS, key=lambda part: held[part] / (SHARES[part] * total))
            place[name] = part
            held[part] += counts[name]
        known = {clip.identity: place[owner[clip.identity]] for clip in clips}
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["clip", "split"])
            writer.writerows(known.items())
    by = "speaker" if named else "file"
    note = f"there is no split column: a split by {by} was made and is kept in {file}"
    return [replace(clip, part=known[clip.identity]) for clip in clips], note
