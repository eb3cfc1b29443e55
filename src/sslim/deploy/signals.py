"""Waveforms to calibrate and to check with: the user's, the run's own, or made here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslim.audio import load_audio, read_source
from sslim.errors import AudioError
from sslim.plan import SAMPLING_RATE

UTTERANCES = 32
SECONDS = 10.0


@dataclass(frozen=True)
class Signals:
    """Waveforms (samples,) at 16 kHz, half to calibrate with and half to check with."""

    described: str
    calibration: tuple[np.ndarray, ...]
    check: tuple[np.ndarray, ...]
    made_here: bool


def find_signals(
    folder: Path | None, audio: str | Path | None, where: Mapping[str, str]
) -> Signals:
    """Audio that the user gives; else what the model in `folder` was trained on, where it still lies; else
    speech-like signals made here.

    Raises:
        AudioError: the audio given cannot be used.
    """
    if audio is None and folder is not None and (folder / "run" / "run.json").is_file():
        try:
            facts = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
            if Path(facts["audio"]["source"]).exists():
                return _read(facts["audio"]["source"], where)
        except (AudioError, KeyError, TypeError, ValueError):
            pass  # shards are no utterances, and a CSV may need the rows to be chosen again
    if audio is not None:
        return _read(audio, where)
    made = tuple(speech_like(seed) for seed in range(16))
    return Signals("speech-like signals made here", made[::2], made[1::2], True)


def _read(source: str | Path, where: Mapping[str, str]) -> Signals:
    manifest = read_source(source, where=where)
    step = max(1, len(manifest.utterances) // UTTERANCES)
    waveforms = []
    for utterance in manifest.utterances[::step][:UTTERANCES]:
        waveforms.append(load_audio(utterance)[: round(SECONDS * SAMPLING_RATE)])
    if len(waveforms) == 1:
        waveforms *= 2
    return Signals(
        f"{len(waveforms)} utterances of {Path(str(source)).name}",
        tuple(waveforms[::2]),
        tuple(waveforms[1::2]),
        False,
    )


def speech_like(seed: int, seconds: float = 3.0) -> np.ndarray:
    """Syllables of voiced and unvoiced sound with moving formants and pauses, (samples,) float32.

    Not speech, but it moves a speech model's features over the range that speech does, which noise or a
    tone does not.
    """
    random = np.random.default_rng(seed)
    total = round(seconds * SAMPLING_RATE)
    waveform = np.zeros(total)
    level = 10 ** random.uniform(-1.5, -0.3)
    pitch = random.uniform(90, 240)
    at = round(0.1 * SAMPLING_RATE)
    while at < total - 800:
        length = min(round(random.uniform(0.08, 0.3) * SAMPLING_RATE), total - at)
        time = np.arange(length) / SAMPLING_RATE
        glide = pitch * (1 + random.uniform(-0.15, 0.15) * time / time[-1])
        phase = 2 * np.pi * np.cumsum(glide) / SAMPLING_RATE
        formants = [
            np.linspace(random.uniform(low, high), random.uniform(low, high), length)
            for low, high in ((250, 900), (800, 2400), (2200, 3400))
        ]
        voiced = random.random() < 0.75
        syllable = np.zeros(length)
        if voiced:
            for harmonic in range(1, int(5000 / pitch)):
                frequency = harmonic * glide
                gain = sum(
                    weight / (1 + ((frequency - formant) / 110) ** 2)
                    for weight, formant in zip((1.0, 0.6, 0.3), formants, strict=True)
                )
                syllable += gain * np.sin(harmonic * phase)
        else:
            syllable = np.diff(random.standard_normal(length + 1)) * 0.3
        syllable *= np.hanning(length) / max(1e-9, float(np.abs(syllable).max()))
        waveform[at : at + length] += syllable * (1.0 if voiced else 0.3)
        pause = 0.02 if random.random() < 0.8 else 0.25
        at += length + round(random.uniform(0.0, pause) * SAMPLING_RATE)
    waveform += 1e-3 * random.standard_normal(total)
    return (level * waveform).astype(np.float32)
