"""A small part of the audio that training never hears, so that what was learned can be measured on it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sslim.audio.manifest import Manifest
from sslim.audio.shards import Shards
from sslim.identity import digest


@dataclass(frozen=True)
class HeldOut:
    """Audio in two parts that have nothing in common."""

    training: Manifest | Shards
    held_out: Manifest | Shards
    """Not heard in training; a manifest without utterances where nothing is held out."""
    chosen: str
    """How, in a few words."""

    def __bool__(self) -> bool:
        """Whether anything is held out."""
        return isinstance(self.held_out, Shards) or bool(self.held_out.utterances)


def hold_out(audio: Manifest | Shards, *, share: float = 0.05, seed: int) -> HeldOut:
    """Divides audio into what is trained on and what is measured on, by file."""
    if share <= 0:
        return HeldOut(audio, Manifest((), ()), "nothing: not wanted")
    count = 0 if isinstance(audio, Shards) else len(audio.utterances)
    wanted = max(min(16, count // 4), min(256, int(share * count)))
    if isinstance(audio, Shards) or wanted == 0:
        return HeldOut(audio, Manifest((), ()), "nothing: too little audio")
    drawn = sorted(
        audio.utterances, key=lambda item: digest(seed, item.identity.rpartition("/")[2])
    )[:wanted]
    return HeldOut(
        replace(audio, utterances=tuple(x for x in audio.utterances if x not in drawn)),
        replace(audio, utterances=tuple(x for x in audio.utterances if x in drawn), skipped=()),
        f"by file ({wanted:,} of {count:,})",
    )
