"""What a run hears, and what it keeps from hearing to be measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sslim.audio import read_source
from sslim.audio.files import Files
from sslim.audio.manifest import Skipped
from sslim.audio.shards import find_shards
from sslim.audio.source import HeldOut, Source
from sslim.config import RunConfig
from sslim.errors import AudioError, ConfigError

Say = Callable[[str], None]


def read_audio(
    config: RunConfig,
    audio: str | Path | Sequence[str | Path],
    where: Mapping[str, str] | None,
    say: Say,
) -> Source:
    """The audio of a run, checked.

    Raises:
        AudioError: it cannot be read, or nothing in it can be used.
        ConfigError: it does not go with a setting.
    """
    source = _source(config, audio, where)
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
    config: RunConfig, audio: str | Path | Sequence[str | Path], where: Mapping[str, str] | None
) -> Source:
    shards = find_shards(audio, config.audio.min_seconds)
    if shards is None:
        return Files(read_source(audio, min_seconds=config.audio.min_seconds, where=where))
    if where:
        raise AudioError("shards have no columns to choose from", "leave out --where")
    shards.check()
    return shards


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
