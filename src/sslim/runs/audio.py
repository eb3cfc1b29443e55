"""What a run hears, and what it keeps from hearing to be measured on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslim.audio import read_source
from sslim.audio.batch import SHORTEST
from sslim.audio.files import Files
from sslim.audio.manifest import Skipped
from sslim.audio.mixture import Mixture
from sslim.audio.shards import find_shards
from sslim.audio.source import HeldOut, Source
from sslim.config import RunConfig
from sslim.errors import AudioError, ConfigError
from sslim.plan import SAMPLING_RATE

Say = Callable[[str], None]


@dataclass(frozen=True)
class AudioChoice:
    """What a user named to be heard."""

    audio: str | Path | Sequence[str | Path]
    """The main source."""
    where: Mapping[str, str]
    """Rows of its CSV to take, as column -> value; empty: all."""
    mix: Mapping[str, float]
    """Further sources -> the share of the audio that each is; the main one is the rest."""

    @classmethod
    def of(
        cls,
        audio: str | Path | Sequence[str | Path],
        where: Mapping[str, str] | None,
        mix: Mapping[str, float] | Mapping[Path, float] | None,
    ) -> AudioChoice:
        """As the arguments of `compress` say.

        Raises:
            ConfigError: a share is not above 0, or they leave the main source nothing.
        """
        shares = {str(path): share for path, share in (mix or {}).items()}
        return cls(audio, dict(where or {}), shares)

    def __post_init__(self) -> None:
        for path, share in self.mix.items():
            if not 0 < share < 1:
                raise ConfigError(
                    f"the share of {path} in the mixture must be between 0 and 1, got {share:g}",
                    "give the share of the audio that is heard, such as 0.2",
                )
        if self.rest <= 0:
            raise ConfigError(
                f"the shares of the mixture sum to {1 - self.rest:g}, which leaves AUDIO nothing",
                "give shares that sum to less than 1; AUDIO has the rest",
            )

    @property
    def rest(self) -> float:
        """The share of the main source."""
        return 1 - math.fsum(self.mix.values())


def read_audio(config: RunConfig, choice: AudioChoice, say: Say) -> Source:
    """The audio of a run, checked.

    Raises:
        AudioError: it cannot be read, or nothing in it can be used.
        ConfigError: it does not go with a setting.
    """
    source = _source(config, choice.audio, choice.where)
    if choice.mix:
        _check_seconds(config, {**choice.mix, "AUDIO": choice.rest})
        further = [(_source(config, path, {}), share) for path, share in choice.mix.items()]
        source = Mixture(((source, choice.rest), *further))
    if config.target_cache_gib and not source.repeats_crops:
        raise ConfigError(
            "target_cache_gib needs audio that is heard alike each epoch, and shards are not",
            "leave it at 0",
        )
    for skipped in source.skipped[:5]:
        say(f"skipped {skipped.path}: {skipped.reason}")
    if len(source.skipped) > 5:
        say(f"skipped {len(source.skipped) - 5} more; all are listed in run/skipped.json")
    return source


def _source(
    config: RunConfig, audio: str | Path | Sequence[str | Path], where: Mapping[str, str]
) -> Source:
    shards = find_shards(audio, config.audio.min_seconds)
    if shards is None:
        return Files(read_source(audio, min_seconds=config.audio.min_seconds, where=where))
    if where:
        raise AudioError("shards have no columns to choose from", "leave out --where")
    shards.check()
    return shards


def _check_seconds(config: RunConfig, shares: Mapping[str, float]) -> None:
    """Refuses a source that would be heard in crops shorter than any clip may be."""
    path, share = min(shares.items(), key=lambda item: item[1])
    seconds = share * config.seconds_per_update
    least = max(config.audio.min_seconds, SHORTEST / SAMPLING_RATE)
    if seconds < least:
        raise ConfigError(
            f"the share {share:.3g} of {path} is {seconds:.3g} s of each update, and the shortest clip "
            f"(audio.min_seconds) has {least:g} s",
            "give a larger share, or raise seconds_per_update",
        )


def part(config: RunConfig, audio: Source, say: Say) -> HeldOut:
    """Parts the audio into what is trained on and what is held out, and says where nothing is."""
    parts = audio.hold_out(config.audio.held_out, config.seed)
    if not parts:
        say(
            f"held out of training: {parts.chosen}; the result is measured on audio it was trained on"
        )
    return parts


def clips_to_measure(
    config: RunConfig, audio: Source, count: int, say: Say
) -> Iterator[np.ndarray]:
    """About `count` waveforms, (samples,) each.

    What was lost since the start is passed over with a word, as in training.
    """

    def report(lost: Skipped) -> None:
        say(f"warning: not measured on {lost.path}: {lost.reason}")

    return audio.waveforms(count, config.audio.max_seconds, report)
