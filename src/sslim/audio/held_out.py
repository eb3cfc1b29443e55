"""Which part of the audio training never hears, so that what was learned can be measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sslim.audio.manifest import Manifest, Utterance
from sslim.identity import digest
from sslim.records import Record

SHARE = 0.05
AT_LEAST = 16
"""Utterances: fewer say little."""
AT_MOST = 256
"""Utterances: more take longer and say hardly more."""
MOST_SHARE = 0.25
"""However few there are, training keeps the rest."""
NEARLY_ALL = 0.95
"""Share of the utterances whose speaker must be known for a choice by speaker."""

NOT_WANTED = "not wanted"
TOO_LITTLE = "too little audio"


@dataclass(frozen=True)
class Stretch:
    """A stretch of a file."""

    path: str
    start: int | None
    """First sample, in the file's own rate; None: from the beginning."""
    end: int | None
    """Sample after the last; None: to the end."""


@dataclass(frozen=True)
class HeldOutClips(Record):
    """`run/held_out.json`: which clips are held out of training."""

    KIND: ClassVar[str] = "held-out"
    TITLE: ClassVar[str] = "a list of held-out audio"

    chosen: str
    """How, in a few words."""
    utterances: tuple[Stretch, ...] | None = None
    """None of shards, whose clips' names are known only once they are read, and of mixtures."""
    seed: int | None = None
    """Of shards: what a clip's lot is drawn with."""
    below: str | None = None
    """Of shards: clips whose lot is below this."""
    parts: tuple[HeldOutClips, ...] | None = None
    """Of a mixture: those of its sources."""


def choose(audio: Manifest, *, share: float = SHARE, seed: int) -> tuple[frozenset[int], str]:
    """Chooses the utterances that are held out.

    By speaker where nearly all utterances have one, else by file (all stretches of a file stay together).
    Between 16 and 256 utterances, at most `share` of them where that is 16 or more; never more than a
    quarter.

    The choice is drawn from the names of the utterances, relative to their source, and the seed: neither
    the order of the utterances nor the spelling of the source's path changes it.

    Args:
        audio: all utterances.
        share: of the utterances; 0 holds out nothing.
        seed: of the draw.

    Returns:
        Places of the utterances in the manifest and how they were chosen; none, and why.
    """
    if share <= 0:
        return frozenset(), NOT_WANTED
    count = len(audio.utterances)
    least, most = bounds(count, share)
    if most == 0:
        return frozenset(), TOO_LITTLE
    groupings = [("file", _files(audio))]
    if sum(bool(item.speaker) for item in audio.utterances) >= NEARLY_ALL * count:
        groupings.insert(0, ("speaker", _speakers(audio.utterances)))
    # Speakers or files that are too large for the share are taken up to a quarter of the utterances.
    for limit in (most, max(most, int(MOST_SHARE * count))):
        for kind, groups in groupings:
            chosen = _draw(groups, least, most, limit, seed)
            if chosen:
                places = frozenset(place for name in chosen for place in groups[name])
                return places, f"by {kind} ({len(chosen):,} of {len(groups):,})"
    return frozenset(), "its files are too large to spare one"


def lot(name: str, seed: int) -> str:
    """What a name draws: hexadecimal digits, evenly distributed, the same in every run of a seed."""
    return digest("held out", seed, name)


def bounds(count: int, share: float) -> tuple[int, int]:
    """Fewest and most utterances that are held out of `count`; (0, 0): none."""
    quarter = int(MOST_SHARE * count)
    least = min(AT_LEAST, quarter)
    return least, max(least, min(AT_MOST, int(share * count)))


def _draw(groups: dict[str, list[int]], least: int, most: int, limit: int, seed: int) -> list[str]:
    """Groups in an order drawn from `seed`, until `most` are reached; none where `least` cannot be."""
    chosen: list[str] = []
    held = 0
    for name in sorted(groups, key=lambda name: lot(name, seed)):
        size = len(groups[name])
        if held + size <= limit:
            chosen.append(name)
            held += size
        if held >= (most if limit == most else least):
            break
    return chosen if held >= least else []


def _speakers(utterances: Sequence[Utterance]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, utterance in enumerate(utterances):
        if utterance.speaker:
            found.setdefault(utterance.speaker, []).append(place)
    return found


def _files(audio: Manifest) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, utterance in enumerate(audio.utterances):
        found.setdefault(audio.relative(utterance.path), []).append(place)
    return found
