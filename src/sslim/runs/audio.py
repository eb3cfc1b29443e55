"""What a run hears, and what it keeps from hearing to be measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from sslim.audio import Manifest, read_source
from sslim.audio.held_out import HeldOut, hold_out
from sslim.audio.loading import load_audio, load_crop
from sslim.audio.shards import Shards, check_usable, find_shards, first_clips
from sslim.config import RunConfig
from sslim.errors import AudioError, ConfigError
from sslim.plan import SAMPLING_RATE

Say = Callable[[str], None]


def read_audio(
    config: RunConfig,
    audio: str | Path | Sequence[str | Path],
    where: Mapping[str, str] | None,
    say: Say,
) -> Manifest | Shards:
    """The audio of a run, checked.

    Raises:
        AudioError: it cannot be read, or nothing in it can be used.
        ConfigError: it does not go with a setting.
    """
    shards = find_shards(audio)
    if shards is not None:
        if where:
            raise AudioError("shards have no columns to choose from", "leave out --where")
        if config.target_cache_gib:
            raise ConfigError(
                "target_cache_gib needs audio that is heard alike each epoch, and shards are not",
                "leave it at 0",
            )
        check_usable(shards, config.audio.min_seconds)
        return shards
    manifest = read_source(
        audio,
        min_seconds=config.audio.min_seconds,
        where=where,
    )
    for skipped in manifest.skipped[:5]:
        say(f"skipped {skipped.path}: {skipped.reason}")
    if len(manifest.skipped) > 5:
        say(f"skipped {len(manifest.skipped) - 5} more; all are listed in run/skipped.json")
    return manifest


def part(config: RunConfig, audio: Manifest | Shards, say: Say) -> HeldOut:
    """Parts the audio into what is trained on and what is held out, and says where nothing is."""
    parts = hold_out(audio, share=config.audio.held_out, seed=config.seed)
    if isinstance(parts.training, Shards) and isinstance(parts.held_out, Shards):
        # Clips were drawn by name alone; either part may consist of what cannot be used.
        try:
            check_usable(parts.training, config.audio.min_seconds)
            check_usable(parts.held_out, config.audio.min_seconds)
        except AudioError:
            parts = HeldOut(audio, Manifest((), ()), "nothing: too few clips can be used")
    if not parts:
        say(
            f"held out of training: {parts.chosen}; the result is measured on audio it was trained on"
        )
    return parts


def clips_to_measure(
    config: RunConfig, audio: Manifest | Shards, count: int, say: Say
) -> Iterator[np.ndarray]:
    """At most `count` waveforms, (samples,) each, spread over the audio.

    What was lost since the start is passed over with a word, as in training.
    """
    longest = int(config.audio.max_seconds * SAMPLING_RATE)
    if not isinstance(audio, Manifest):
        for clip in first_clips(audio, count, config.audio.min_seconds):
            yield clip[:longest]
        return
    every = -(-len(audio.utterances) // count)
    for utterance in islice(audio.utterances, 0, None, every):
        try:
            if utterance.seconds * SAMPLING_RATE > longest:  # hours, perhaps
                clip = load_crop(utterance, longest, "measured")
            else:
                clip = load_audio(utterance)
        except AudioError as error:
            say(f"warning: not measured on {utterance.identity}: {error.problem}")
            continue
        yield clip[:longest]
