"""Parts that are kept apart: a split where none is given, and everything that may leak between parts.

A leak flatters every model: the same audio under two names, stretches of one file that overlap, a speaker
who is spelt in two ways, a test clip that counts twice.
"""

from __future__ import annotations

import csv
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sslim import identity
from sslim.errors import ConfigError, OutputError, first_line
from sslim.evaluate.clips import PARTS, Clip, LabelledClips, file_content, folded
from sslim.files import written_whole

SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}
COLUMNS = ["clip", "split", "by"]
"""Of a split that is kept."""


def check_parts(
    data: LabelledClips,
    *,
    parts: Sequence[str] = PARTS,
    shared_role: str = "",
    allow_leaks: bool = False,
) -> tuple[str, ...]:
    """Refuses parts that are empty or share audio, and test clips that are there more than once.

    Clips of the `shared_role` may be in several parts: documents that the queries of every part are looked up
    in.

    Args:
        data: clips with their parts.
        parts: that there must be.
        shared_role: see above.
        allow_leaks: count audio that is in two parts, or twice in the test part, under another name or as an
            overlapping stretch, instead of refusing it. The very same clip is refused all the same.

    Returns:
        What was accepted, for people.

    Raises:
        ConfigError: see above.
    """
    for part in parts:
        if not data.part(part):
            raise ConfigError(
                f"{data.source} has no rows of the part {part!r}",
                "its split column must name train, valid and test; --split-column chooses another",
            )
    clips = [
        clip
        for clip in data.clips
        if clip.part and not (shared_role and clip.row.get("role") == shared_role)
    ]
    shared: set[str] = set()
    repeated: set[str] = set()
    overlapping: set[str] = set()
    for first, second, same in _overlaps(clips):
        very_same = same and os.path.realpath(first.utterance.path) == os.path.realpath(
            second.utterance.path
        )
        if first.part != second.part:
            if very_same:
                raise ConfigError(
                    f"{second.identity} is in {first.part} and in {second.part}",
                    "a clip may be in one part only",
                )
            if not allow_leaks:
                raise ConfigError(
                    f"{first.identity} in {first.part} and {second.identity} in {second.part} are the "
                    "same audio, or overlap",
                    "audio may be in one part only; take rows out, or accept it with --allow-leaks",
                )
            shared.add(second.identity)
        elif first.part == "test" and same:
            if very_same or not allow_leaks:
                raise ConfigError(
                    f"{second.identity} is in the test part more than once"
                    + ("" if very_same else f", the other time as {first.identity}"),
                    "intervals would be too narrow; take rows out"
                    + ("" if very_same else ", or accept it with --allow-leaks"),
                )
            repeated.add(second.identity)
        elif first.part == "test":
            overlapping.add(second.identity)
    notes = []
    if shared:
        notes.append(
            f"{len(shared):,} clips share audio with a clip of another part: scores flatter"
        )
    if repeated:
        notes.append(
            f"{len(repeated):,} test clips are there under another name too: intervals are too narrow"
        )
    if overlapping:
        notes.append(
            f"{len(overlapping):,} test clips overlap other test clips: intervals are too narrow"
        )
    return tuple(notes)


def _overlaps(clips: Sequence[Clip]) -> Iterator[tuple[Clip, Clip, bool]]:
    """Pairs of clips with common audio, and whether they are the same stretch; not all pairs of three or
    more, but for every clip one of each kind with every part that has one."""
    by_file: dict[str, list[tuple[int, int, Clip]]] = {}
    for clip in clips:
        utterance = clip.utterance
        start = utterance.start or 0
        end = start + round(utterance.seconds * utterance.sampling_rate)
        by_file.setdefault(file_content(utterance.path), []).append((start, end, clip))
    for stretches in by_file.values():
        stretches.sort(key=lambda stretch: stretch[:2])
        equal: dict[tuple[int, int, str], Clip] = {}
        reaching: dict[str, tuple[int, int, Clip]] = {}  # of each part, the one that ends last
        for start, end, clip in stretches:
            for part in PARTS:
                if (start, end, part) in equal:
                    yield equal[start, end, part], clip, True
                elif part in reaching and reaching[part][1] > start:
                    yield reaching[part][2], clip, False
            equal.setdefault((start, end, clip.part), clip)
            if clip.part not in reaching or end > reaching[clip.part][1]:
                reaching[clip.part] = start, end, clip


def check_speakers(data: LabelledClips, column: str = "speaker") -> None:
    """Raises ConfigError where a speaker, however spelt, is in two parts: scores would flatter the model."""
    if column not in data.columns:
        return
    seen: dict[str, Clip] = {}
    for clip in data.clips:
        speaker = folded(clip.row[column])
        if not clip.part or not speaker:
            continue
        first = seen.setdefault(speaker, clip)
        if first.part != clip.part:
            name, other = first.row[column].strip(), clip.row[column].strip()
            also = "" if name == other else f", there as {other!r}"
            raise ConfigError(
                f"speaker {name!r} of {data.source} is in {first.part} and in {clip.part}{also}",
                "split by speaker (leave the split column out, and sslim makes such a split), or "
                "accept it with --allow-leaks",
            )


# --- a split that is made ------------------------------------------------------------------------


def make_split(
    path: Path,
    clips: Sequence[Clip],
    speaker_column: str,
    seed: int,
    file: Path | None,
    cache_folder: Path | None,
) -> tuple[list[Clip], list[str]]:
    """Parts by speaker where speakers are known, by file otherwise; the same again from the same seed.

    A split that is kept is taken up as far as it goes: a new clip of a known speaker joins that speaker. One
    that was made another way, or that parts a speaker, is made anew.

    Raises:
        ConfigError: there are too few speakers or files, or the kept split is damaged.
    """
    speakers_known = speaker_column in clips[0].row
    by = "speaker" if speakers_known else "file"
    files = [file or path.with_name(f"{path.stem}.split.csv")]
    if cache_folder is not None:
        name = identity.digest("split", os.path.realpath(path))[:32]
        files.append(cache_folder / f"split-{name}.csv")
    names = [_name(clip) for clip in clips]
    owners = [_owner(clip, speaker_column if speakers_known else "") for clip in clips]
    if len(set(owners)) < 3:
        raise ConfigError(
            f"{path} has no split column, and {len(set(owners))} "
            f"{'speaker(s)' if speakers_known else 'file(s)'} cannot be split in three",
            "add a split column with train, valid and test",
        )
    notes = []
    split_file = next((candidate for candidate in files if candidate.is_file()), None)
    kept, made_by = _read_split(split_file) if split_file is not None else ({}, by)
    part_of: dict[str, str] = {}
    conflict = any(
        part_of.setdefault(owner, kept[name]) != kept[name]
        for name, owner in zip(names, owners, strict=True)
        if name in kept
    )
    if made_by != by or conflict:
        how = f"was made by {made_by or 'an earlier version'}"
        why = how if made_by != by else "parts a speaker"
        notes.append(f"the split kept in {split_file} {why}, and is made anew")
        kept, part_of = {}, {}
    _deal(Counter(owners), part_of, seed)
    parts = {name: part_of[owner] for name, owner in zip(names, owners, strict=True)}
    if not parts.keys() <= kept.keys():
        split_file = _write_split(kept | parts, by, files)
    where = "cannot be kept anywhere" if split_file is None else f"is kept in {split_file}"
    notes.append(f"there is no split column: a split by {by} was made and {where}")
    return [replace(clip, part=parts[name]) for clip, name in zip(clips, names, strict=True)], notes


def _name(clip: Clip) -> str:
    """A clip as the CSV names it, so that the split moves with it; `./` keeps spreadsheets from taking a
    name for a formula."""
    utterance = clip.utterance
    path = clip.row["path"]
    stretch = (
        ""
        if utterance.start is None and utterance.end is None
        else f"[{utterance.start}:{utterance.end}]"
    )
    return f"{'' if path.startswith(('/', './')) else './'}{path}{stretch}"


def _owner(clip: Clip, column: str) -> str:
    """Who or what must not be on two sides of a split; copies of a file are one file."""
    speaker = folded(clip.row[column]) if column else ""
    return f"speaker {speaker}" if speaker else f"file {file_content(clip.utterance.path)}"


def _deal(counts: Mapping[str, int], part_of: dict[str, str], seed: int) -> None:
    """Gives every owner that has no part yet one."""
    filled = dict.fromkeys(PARTS, 0.0)
    for owner, part in part_of.items():
        filled[part] += counts.get(owner, 0)
    names = sorted(counts.keys() - part_of.keys())
    random.Random(seed).shuffle(names)
    names.sort(key=lambda name: -counts[name])
    for name in names:  # the largest first, each to the part that lacks most
        part = min(PARTS, key=lambda part: filled[part] / SHARES[part])
        part_of[name] = part
        filled[part] += counts[name]


def _read_split(file: Path) -> tuple[dict[str, str], str]:
    """Clip -> part, and what the split was made by; empty where an earlier version made it."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
        if rows and "by" not in rows[0]:
            return {}, ""
        kept = {row["clip"]: row["split"] for row in rows}
        made = {row["by"] for row in rows}
        if not rows or len(made) > 1 or not set(kept.values()) <= set(PARTS):
            raise ValueError("it does not name train, valid and test")
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise ConfigError(
            f"{file} cannot be read as a split that was kept: {first_line(error)}",
            "remove it, and a split is made anew",
        ) from error
    return kept, made.pop()


def _write_split(parts: Mapping[str, str], by: str, files: Sequence[Path]) -> Path | None:
    """Writes the first file that may be written; None where there is none."""
    for file in files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with (
                written_whole(file) as aside,
                aside.open("w", encoding="utf-8", newline="", errors="backslashreplace") as stream,
            ):
                writer = csv.writer(stream)
                writer.writerow(COLUMNS)
                writer.writerows([name, part, by] for name, part in parts.items())
            return file
        except (OSError, OutputError):
            continue
    return None
