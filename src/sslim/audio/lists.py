"""Text that names audio: a list, Kaldi's scp, a fairseq tsv, a CSV or a lhotse manifest -> entries.

Anybody may have written it: it is read line by line, within bounds, and what is wrong is said with its line.
Names of files that are not UTF-8 are kept as the bytes they are.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import functools
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sslim.audio.cuts import Cut, file_of, parse_line
from sslim.audio.opening import open_regular
from sslim.errors import AudioError, first_line

LIST_ENDINGS = ("", ".txt", ".lst", ".list", ".scp")
LHOTSE_ENDINGS = (".jsonl", ".jsonl.gz")

LONGEST_LINE = 16 * 2**20
"""Characters."""
LONGEST_TEXT = 4 * 2**30
"""Characters of one list, unpacked."""
MOST_LINES = 50_000_000
LONGEST_PATH = 4096


@dataclass(frozen=True)
class Entry:
    """One utterance of a source, before its file has been looked at."""

    path: Path
    start: int | None = None
    end: int | None = None
    cut: Cut | None = None
    """Where the stretch is in seconds, which the file's rate turns into samples."""
    channels: tuple[int, ...] = ()
    speaker: str = ""


def _read_lines(path: Path) -> Generator[str]:
    try:
        with os.fdopen(open_regular(path), "rb") as stream:
            plain = gzip.GzipFile(fileobj=stream) if path.suffix == ".gz" else stream
            text = io.TextIOWrapper(
                plain,
                encoding="utf-8-sig",
                errors="surrogateescape",
                newline="",
            )
            length = number = 0
            while line := text.readline(LONGEST_LINE + 1):
                length += len(line)
                number += 1
                if len(line) > LONGEST_LINE or length > LONGEST_TEXT or number > MOST_LINES:
                    raise ValueError("it is larger than any list of audio")
                if "\0" in line:
                    raise ValueError(f"line {number} holds a NUL character")
                yield line
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise AudioError(
            f"{path} cannot be read as text: {first_line(error)}", "give a UTF-8 text file"
        ) from error


def lines_of(path: Path) -> contextlib.closing[Generator[str]]:
    """Lines of a text file, packed where its name ends in `.gz`, with their ends; a context manager.

    Raises (while iterating):
        AudioError: it is no regular file, no text, or larger than any list of audio.
    """
    return contextlib.closing(_read_lines(path))


def named(name: str, at: str) -> str:
    """The name of a file, where it may be one.

    Raises:
        AudioError: it is longer than any path.
    """
    if len(name) > LONGEST_PATH:
        raise AudioError(
            f"{at} has {len(name):,} characters, which is no path", "give a list of files"
        )
    return name


def read_entries(path: Path, where: Mapping[str, str]) -> Iterator[Entry] | None:
    """What a text file names, by its ending; None: it has no ending of a list.

    Raises:
        AudioError (while iterating too): it cannot be read, or a line of it makes no sense.
    """
    ending = path.suffix.lower()
    if ending == ".csv":
        return _entries(path, functools.partial(_csv, where=where))
    if ending == ".tsv":
        return _entries(path, _tsv)
    if str(path).lower().endswith(LHOTSE_ENDINGS):
        return _entries(path, _lhotse)
    if ending == ".scp":
        return _entries(path, _scp)
    return _entries(path, _list) if ending in LIST_ENDINGS else None


def _entries(path: Path, read: Callable[[Path, Iterator[str]], Iterator[Entry]]) -> Iterator[Entry]:
    with lines_of(path) as lines:
        yield from read(path, lines)


def _list(path: Path, lines: Iterator[str]) -> Iterator[Entry]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield Entry(path.parent / named(line.strip(), f"{path}, line {number}"))


def _scp(path: Path, lines: Iterator[str]) -> Iterator[Entry]:
    """Kaldi's `key path`; a plain list of files may carry that ending too."""
    for number, line in enumerate(lines, 1):
        at = f"{path}, line {number}"
        name = named(line.strip(), at)
        if not name:
            continue
        if name.endswith("|"):
            raise AudioError(
                f"{at} is a command, and commands are never run",
                "run it, and list the files it writes",
            )
        rest = name.split(None, 1)[1] if len(name.split(None, 1)) == 2 else ""
        if not rest or os.path.exists(path.parent / name):
            yield Entry(path.parent / name)
            continue
        if re.search(r"\.ark:\d+(\[.*\])?$", rest):
            raise AudioError(
                f"{at} points into a Kaldi archive",
                "unpack it with Kaldi's wav-copy, and list the files",
            )
        # Kaldi's names are relative to where its recipe is run.
        file = path.parent / rest
        yield Entry(file if os.path.exists(file) or not os.path.exists(rest) else Path(rest))


def _tsv(path: Path, lines: Iterator[str]) -> Iterator[Entry]:
    first = next(lines, "")
    if not first.strip() or "\t" in first:
        raise AudioError(
            f"{path}, line 1: a fairseq tsv starts with the root folder, got {first.rstrip()[:80]!r}",
            "write the folder of the audio on the first line",
        )
    root = Path(named(first.strip(), f"{path}, line 1"))
    if not root.is_absolute() and not os.path.isdir(root):
        root = path.parent / root
    if not os.path.isdir(root):
        raise AudioError(
            f"{path}, line 1: the root folder {root} does not exist", "correct the path"
        )
    for number, line in enumerate(lines, 2):
        if line.strip():
            name = line.rstrip("\r\n").split("\t")[0]
            yield Entry(root / named(name, f"{path}, line {number}"))


def _csv(path: Path, lines: Iterator[str], where: Mapping[str, str]) -> Iterator[Entry]:
    reader = csv.DictReader(lines)
    try:
        columns = list(reader.fieldnames or [])
        twice = [column for column in columns if columns.count(column) > 1]
        if twice:
            raise AudioError(f"{path} has the column {twice[0][:60]!r} twice", "rename one of them")
        for wanted in ("path", *where):
            if wanted not in columns:
                near = difflib.get_close_matches(wanted, columns, n=1)
                listed = ", ".join(columns)[:200]
                hint = f"did you mean {near[0]!r}?" if near else f"the columns are {listed}"
                raise AudioError(f"{path} has no column {wanted!r}", hint)
        for row in reader:
            if any(row[column] != value for column, value in where.items()):
                continue
            at = f"{path}, line {reader.line_num}"
            start, end = _sample(row, "start", at), _sample(row, "end", at)
            if end is not None and end <= (start or 0):
                raise AudioError(
                    f"{at}: end {end} is not after start {start or 0}", "correct the line"
                )
            if not row["path"]:
                raise AudioError(f"{at}: there is no path", "correct the line")
            speaker = (row.get("speaker") or "").strip()
            yield Entry(path.parent / named(row["path"], at), start, end, speaker=speaker)
    except csv.Error as error:
        raise AudioError(
            f"{path}, line {reader.line_num}: {first_line(error)}", "correct the line"
        ) from error


def _sample(row: Mapping[str, str | None], column: str, at: str) -> int | None:
    text = (row.get(column) or "").strip()
    if not text:
        return None
    try:
        value = float(text)
        number = int(value)
    except (ValueError, OverflowError):
        value, number = 0.5, 0
    if value != number or not 0 <= number < 2**53:
        raise AudioError(
            f"{at}: {column} is {text[:40]!r}, not a number of samples", "correct the line"
        )
    return number


def _lhotse(path: Path, lines: Iterator[str]) -> Iterator[Entry]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        at = f"{path}, line {number}"
        cut = parse_line(line, at)
        file, channels = file_of(cut, at)
        named(str(file), at)
        if not file.is_absolute() and not os.path.exists(file):
            file = path.parent / file
        yield Entry(file, cut=cut, channels=channels, speaker=cut.speaker)
