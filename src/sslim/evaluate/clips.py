"""Labelled clips, what tasks are trained and scored on; `clip_table` reads them."""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sslim.audio import Utterance, load_audio
from sslim.audio.manifest import content_identity
from sslim.errors import AudioError, ConfigError, first_line
from sslim.identity import content_of

PARTS = ("train", "valid", "test")


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

    @property
    def content(self) -> str:
        """The same exactly when the audio is, whatever the file is called and wherever it lies."""
        return content_identity(self.utterance)

    def waveform(self) -> np.ndarray:
        """(samples,) float32 at 16 kHz."""
        return load_audio(self.utterance)


def file_content(path: str) -> str:
    """Identity of a file's contents.

    Raises:
        AudioError: it cannot be read.
    """
    try:
        return content_of(path)
    except OSError as error:
        raise AudioError(
            f"{path} cannot be read: {first_line(error)}", "check that it is still there"
        ) from error


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
        check_columns(self.source, self.columns, columns)


def folded(name: str) -> str:
    """A name as people tell names apart: without case, blanks around it, or ways of coding a letter."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def check_columns(source: str, known: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises ConfigError unless all `wanted` columns are among the `known` ones."""
    for column in wanted:
        if column not in known:
            near = difflib.get_close_matches(column, known, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"{source} has no column {column!r}",
                f"{guess}The columns are {', '.join(known)}",
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
