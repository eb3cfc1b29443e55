"""The nouns of the audio room: what is used, and what is left out and why."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any


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
