"""The nouns of the audio room: what is used, and what is left out and why."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sslim.audio.opening import open_regular
from sslim.errors import AudioError, first_line
from sslim.identity import content_of, digest

CHECKED_HOURS = 20.0
"""Of audio whose contents are looked at before training starts."""
_PIECE = 4096


@dataclass(frozen=True)
class Utterance:
    """A stretch of one file."""

    path: str
    start: int | None
    """First sample, in the file's own rate; None: from the beginning."""
    end: int | None
    """Sample after the last, in the file's own rate; None: to the end."""
    sampling_rate: int
    """The file's own rate in Hz."""
    seconds: float
    identity: str
    """A name for messages: the path, and the stretch where it is not the whole file."""
    channels: tuple[int, ...] = ()
    """Channels of the file that are averaged, from 0; empty: all."""
    speaker: str = ""
    """Who speaks, where the source says so."""


def content_identity(utterance: Utterance) -> str:
    """Identity of what is heard: the file's contents, the stretch and the channels; no name, no time.

    Raises:
        AudioError: the file cannot be read.
    """
    try:
        os.close(open_regular(utterance.path))  # a pipe would be waited for without end
        content = content_of(utterance.path)
    except (OSError, ValueError) as error:
        raise AudioError(
            f"{utterance.path} cannot be read: {first_line(error)}", "bring it back, or remove it"
        ) from error
    return digest(content, utterance.start, utterance.end, utterance.channels)


@dataclass(frozen=True)
class Skipped:
    """Something in the source that is not used."""

    path: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """All utterances of a source, in a fixed order, and what was skipped."""

    utterances: tuple[Utterance, ...]
    skipped: tuple[Skipped, ...]
    root: str = ""
    """Folder of the source, absolute."""
    where: tuple[tuple[str, str], ...] = ()
    """Columns and values that chose the rows of a CSV."""

    @property
    def seconds(self) -> float:
        """Length of all utterances together."""
        return sum(utterance.seconds for utterance in self.utterances)

    @cached_property
    def checked_files(self) -> frozenset[str]:
        """Files whose contents are looked at before training: those of the first `CHECKED_HOURS`."""
        files: set[str] = set()
        seconds = 0.0
        for utterance in self.utterances:
            if seconds < CHECKED_HOURS * 3600 or utterance.path in files:
                files.add(utterance.path)
                seconds += utterance.seconds
        return frozenset(files)

    def relative(self, path: str) -> str:
        """A file's name relative to the source: the same however the source's path was spelt."""
        return os.path.relpath(os.path.abspath(path), self.root or "/")

    def without(self, unusable: Iterable[Skipped]) -> Manifest:
        """The same without utterances that turned out to be of no use."""
        reasons = {item.path: item for item in unusable}
        return replace(
            self,
            utterances=tuple(item for item in self.utterances if item.identity not in reasons),
            skipped=(*self.skipped, *reasons.values()),
        )

    def described(self) -> str:
        """In words, for people."""
        return f"{len(self.utterances):,} utterances, {self.seconds / 3600:.2f} hours"

    def summary(self) -> dict[str, Any]:
        """Figures that say what was heard.

        `fingerprint` is of the contents, in their order, whatever the files are called: all of a file among
        `checked_files`, its size and pieces of the others. It is computed once.
        """
        return {
            "described": self.described(),
            "utterances": len(self.utterances),
            "seconds": round(self.seconds, 3),
            "skipped": len(self.skipped),
            "where": dict(self.where),
            "fingerprint": self._fingerprint,
        }

    @cached_property
    def _fingerprint(self) -> str:
        paths = list(dict.fromkeys(utterance.path for utterance in self.utterances))
        whole = self.checked_files

        def content(path: str) -> str:
            try:
                return content_of(path) if path in whole else sample_of(path)
            except (OSError, ValueError):
                return "unreadable"

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            contents = dict(zip(paths, pool.map(content, paths), strict=True))
        result = hashlib.sha256()
        for item in self.utterances:
            line = digest(contents[item.path], item.start, item.end, item.channels, item.speaker)
            result.update(line.encode("ascii"))
        return result.hexdigest()


def sample_of(path: str) -> str:
    """SHA-256 over the size, the beginning (a FLAC file's has the hash of its audio), middle and end."""
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        result = hashlib.sha256(str(size).encode("ascii"))
        for place in (0, size // 2, max(0, size - _PIECE)):
            result.update(os.pread(descriptor, _PIECE, place))
        return result.hexdigest()
    finally:
        os.close(descriptor)
