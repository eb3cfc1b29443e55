"""The nouns of the audio room: what is used, and what is left out and why."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any

from sslim.audio.opening import open_regular
from sslim.errors import AudioError, first_line
from sslim.identity import content_of, digest


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

    def relative(self, path: str) -> str:
        """A file's name relative to the source: the same however the source's path was spelt."""
        return os.path.relpath(os.path.abspath(path), self.root or "/")

    @property
    def seconds(self) -> float:
        """Length of all utterances together."""
        return sum(utterance.seconds for utterance in self.utterances)

    def described(self) -> str:
        """In words, for people."""
        return f"{len(self.utterances):,} utterances, {self.seconds / 3600:.2f} hours"

    def summary(self) -> dict[str, Any]:
        """Figures that say what was heard; `fingerprint` changes when any utterance does."""
        digest = hashlib.sha256()
        for utterance in self.utterances:
            digest.update(f"{utterance.identity}\t{utterance.seconds:.4f}\n".encode())
        return {
            "described": self.described(),
            "utterances": len(self.utterances),
            "seconds": round(self.seconds, 3),
            "skipped": len(self.skipped),
            "fingerprint": digest.hexdigest(),
        }
