"""A CSV with one row per labelled clip, checked before anything is computed.

Columns: `path`, and `start`, `end` in samples where a file holds several clips; what the task wants (`label`,
`text`, `phones`, ...); `speaker`; `split` with train, valid and test. Every other column is a group that
scores can be compared over.
"""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sslim.audio import read_source
from sslim.errors import AudioError, ConfigError, first_line
from sslim.evaluate.clips import Clip, LabelledClips, check_columns
from sslim.evaluate.splits import make_split

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
ALIKE = 0.7
"""How alike a word and the name of a part are (difflib's ratio) for the word to be a misspelling of it."""


def read_clips(
    source: str | Path,
    *,
    columns: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
    split_column: str = "split",
    speaker_column: str = "speaker",
    seed: int = 0,
    split_file: Path | None = None,
    cache_folder: Path | None = None,
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
        cache_folder: where it is kept if the CSV's own folder may not be written.

    Raises:
        ConfigError: a column is missing, the name of a part is misspelt, or no split can be made.
        AudioError: the CSV or its audio cannot be read.
    """
    path = Path(source)
    rows = _rows(path)
    known = tuple(rows[0]) if rows else ()
    if rows:
        named = [split_column] if split_column not in ("", "split") else []
        check_columns(str(path), known, ["path", *(where or {}), *named, *columns])
    chosen = [
        row for row in rows if all(row[name] == value for name, value in (where or {}).items())
    ]
    if not chosen:
        conditions = ", ".join(f"{name}={value}" for name, value in (where or {}).items())
        raise ConfigError(
            f"{path} has no rows" + (f" with {conditions}" if conditions else ""),
            "check --where" if conditions else "write a row for every clip",
        )
    clips = _clips(path, chosen, dict(where or {}))
    if not split_column:
        return LabelledClips(str(path), tuple(clips), known)
    if split_column in known:
        clips, notes = _parts(path, clips, split_column)
    else:
        clips, notes = make_split(path, clips, speaker_column, seed, split_file, cache_folder)
    return LabelledClips(str(path), tuple(clips), known, tuple(notes))


def _parts(path: Path, clips: Sequence[Clip], column: str) -> tuple[list[Clip], list[str]]:
    """Clips with the parts that a column names, and a note on those that are in none."""
    names = [clip.row[column].strip().lower() for clip in clips]
    others = Counter(name for name in names if name not in PART_NAMES)
    for name, count in others.items():
        near = difflib.get_close_matches(name, PART_NAMES, n=1, cutoff=ALIKE)
        if near:
            raise ConfigError(
                f"{count} row(s) of {path} have {name!r} in the column {column!r}",
                f"did you mean {near[0]!r}? Leave the field empty where a row shall take no part",
            )
    notes = []
    if others:
        listed = [
            f"{count:,} with {name!r}" if name else f"{count:,} with nothing"
            for name, count in others.most_common(5)
        ]
        more = ", and others" if len(others) > 5 else ""
        notes.append(
            f"{others.total():,} of {len(clips):,} rows take no part, by the column {column!r}: "
            f"{', '.join(listed)}{more}"
        )
    labelled = [
        replace(clip, part=PART_NAMES.get(name, ""))
        for clip, name in zip(clips, names, strict=True)
    ]
    return labelled, notes


def _rows(path: Path) -> list[dict[str, str]]:
    if path.suffix.lower() != ".csv":
        raise ConfigError(
            f"{path} is no CSV", "give a CSV with the columns path, label (or text), split"
        )
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may have no end
            raise OSError(None, "it is not a file")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = []
            for row in reader:
                if reader.line_num <= 2:
                    _check_header(path, reader.fieldnames or ())
                if any("\0" in (value or "") for value in row.values() if isinstance(value, str)):
                    raise ConfigError(
                        f"{path}, line {reader.line_num}: holds a byte of zero", "write it again"
                    )
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
        raise ConfigError(
            f"{path} cannot be read: {first_line(error)}", "give a UTF-8 CSV"
        ) from error


def _check_header(path: Path, names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(f"{path} has the column {twice[0]!r} twice", "rename one of them")


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
    if len(manifest.utterances) != len(rows):
        raise ConfigError(
            f"{path} has {len(rows)} rows, and {len(manifest.utterances)} of audio",
            "take line breaks out of its fields",
        )
    return [
        Clip(utterance, row, "") for utterance, row in zip(manifest.utterances, rows, strict=True)
    ]
