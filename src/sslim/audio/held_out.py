"""A small part of the audio that training never hears, so that what was learned can be measured on it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from sslim.audio.archives import Clip
from sslim.audio.manifest import Manifest, Utterance
from sslim.audio.shards import Shards
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
STREAM_SHARE = 0.01
COUNTED = 2000
"""Clips of a stream that are counted, to hold out a larger share where there are few."""


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
    """None of shards, whose clips' names are known only once they are read."""
    seed: int | None = None
    """Of shards: what a clip's lot is drawn with."""
    below: str | None = None
    """Of shards: clips whose lot is below this."""


@dataclass(frozen=True)
class HeldOut:
    """Audio in two parts that have nothing in common."""

    training: Manifest | Shards
    held_out: Manifest | Shards
    """Not heard in training; a manifest without utterances where nothing is held out."""
    chosen: str
    """How, in a few words: `by speaker (3 of 60)`, `nothing: too little audio`."""

    def __bool__(self) -> bool:
        """Whether anything is held out."""
        return isinstance(self.held_out, Shards) or bool(self.held_out.utterances)

    def listed(self) -> HeldOutClips:
        """Which clips these are, so that others can leave them out or measure on them again.

        Names of clips in shards are known only once they are read: `seed` and `below` say which they are.
        """
        if isinstance(self.held_out, Shards):
            return HeldOutClips(self.chosen, seed=self.held_out.seed, below=self.held_out.below)
        return HeldOutClips(
            self.chosen,
            tuple(Stretch(item.path, item.start, item.end) for item in self.held_out.utterances),
        )


def hold_out(audio: Manifest | Shards, *, share: float = SHARE, seed: int) -> HeldOut:
    """Divides audio into what is trained on and what is measured on.

    By speaker where nearly all utterances have one, else by file (all stretches of a file stay together),
    and for shards by clip. Between 16 and 256 utterances, at most `share` of them where that is 16 or more;
    never more than a quarter.

    The choice is drawn from the names of the utterances, relative to their source, and the seed: neither
    the order of the utterances nor the spelling of the source's path changes it.

    Args:
        audio: the source.
        share: of the utterances; 0 holds out nothing.
        seed: of the draw.
    """
    if share <= 0:
        return HeldOut(audio, Manifest((), ()), "nothing: not wanted")
    if isinstance(audio, Shards):
        return _of_stream(audio, seed)
    count = len(audio.utterances)
    least, most = _bounds(count, share)
    if most == 0:
        return HeldOut(audio, Manifest((), ()), "nothing: too little audio")
    groupings = [("file", _files(audio))]
    if sum(bool(item.speaker) for item in audio.utterances) >= NEARLY_ALL * count:
        groupings.insert(0, ("speaker", _speakers(audio.utterances)))
    # Speakers or files that are too large for the share are taken up to a quarter of the utterances.
    for limit in (most, max(most, int(MOST_SHARE * count))):
        for kind, groups in groupings:
            chosen = _draw(groups, least, most, limit, seed)
            if chosen:
                held = {place for name in chosen for place in groups[name]}
                return HeldOut(
                    replace(audio, utterances=_without(audio, held)),
                    replace(audio, utterances=_only(audio, held), skipped=()),
                    f"by {kind} ({len(chosen):,} of {len(groups):,})",
                )
    return HeldOut(audio, Manifest((), ()), "nothing: its files are too large to spare one")


def _bounds(count: int, share: float) -> tuple[int, int]:
    """Fewest and most utterances that are held out of `count`; (0, 0): none."""
    quarter = int(MOST_SHARE * count)
    least = min(AT_LEAST, quarter)
    return least, max(least, min(AT_MOST, int(share * count)))


def _draw(groups: dict[str, list[int]], least: int, most: int, limit: int, seed: int) -> list[str]:
    """Groups in an order drawn from `seed`, until `most` are reached; none where `least` cannot be."""
    chosen: list[str] = []
    held = 0
    for name in sorted(groups, key=lambda name: digest("held out", seed, name)):
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


def _without(audio: Manifest, held: set[int]) -> tuple[Utterance, ...]:
    return tuple(item for place, item in enumerate(audio.utterances) if place not in held)


def _only(audio: Manifest, held: set[int]) -> tuple[Utterance, ...]:
    return tuple(item for place, item in enumerate(audio.utterances) if place in held)


def _of_stream(audio: Shards, seed: int) -> HeldOut:
    """Clips whose names' hash is below a threshold: known for each clip alone, as a stream asks."""
    clips = (item for item in audio.clips(list(range(len(audio.shards)))) if isinstance(item, Clip))
    lots = [audio.lot(clip, seed) for clip in itertools.islice(clips, COUNTED)]
    count = len(lots)
    if count < COUNTED:
        wanted, _ = _bounds(count, STREAM_SHARE)
        if wanted == 0:
            return HeldOut(audio, Manifest((), ()), "nothing: too little audio")
        below = sorted(lots)[wanted]
        chosen = f"by clip ({wanted} of {count:,})"
    else:
        below = f"{int(STREAM_SHARE * 16**8):08x}"
        chosen = f"by clip (about {STREAM_SHARE:.0%})"
    return HeldOut(
        replace(audio, seed=seed, below=below, held=False),
        replace(audio, seed=seed, below=below, held=True),
        chosen,
    )
