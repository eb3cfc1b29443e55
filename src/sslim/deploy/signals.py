"""Waveforms to calibrate and to check with: the user's, the run's own, or made here.

What is calibrated on is never what is checked on. Besides clips, the check hears something longer than most
programs' clips, so that what is computed in pieces or grows with the length is compared as well.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslim.audio import load_audio, read_source
from sslim.audio.manifest import Utterance
from sslim.errors import AudioError, OutputError, first_line
from sslim.plan import SAMPLING_RATE
from sslim.runs.folder import RECORD, RUN_FOLDER
from sslim.runs.record import read_record

UTTERANCES = 32
SECONDS = 10.0
"""Of one utterance, at most."""
LONG_SECONDS = 24.0
"""Of the one long waveform in the check; shorter ones are joined, or one is repeated, up to it."""
HALF_SECONDS = 1.0
"""What each half of a single utterance must have, to calibrate on one and check on the other."""


@dataclass(frozen=True)
class Signals:
    """Waveforms (samples,) at 16 kHz: some to calibrate with, others to check with."""

    described: str
    calibration: tuple[np.ndarray, ...]
    check: tuple[np.ndarray, ...]
    made_here: bool
    remarks: tuple[str, ...] = ()
    """What a user should know of how they were chosen, a sentence each."""

    @property
    def long(self) -> np.ndarray:
        """`LONG_SECONDS` of the check's audio, one after the other, from the start again where it ends."""
        wanted = round(LONG_SECONDS * SAMPLING_RATE)
        parts: list[np.ndarray] = []
        for waveform in itertools.cycle(self.check):
            parts.append(waveform)
            if sum(map(len, parts)) >= wanted:
                break
        return np.concatenate(parts)[:wanted]


def find_signals(
    folder: Path | None,
    audio: str | Path | None,
    where: Mapping[str, str],
    *,
    calibrates: bool = True,
) -> Signals:
    """Audio that the user gives; else what the model in `folder` was trained on, where it still lies; else
    speech-like signals made here.

    Args:
        folder: where the model lies.
        audio: the user's source.
        where: rows of it, where it is a CSV.
        calibrates: whether some of the audio is needed for calibration; else all is for the check.

    Raises:
        AudioError: the audio given cannot be used.
    """
    if audio is not None:
        return _read(audio, where, calibrates)
    made_because: tuple[str, ...] = ()
    run_audio = _of_the_run(folder)
    if isinstance(run_audio, tuple):
        try:
            return _read(*run_audio, calibrates)
        except AudioError as error:
            made_because = (f"the run's own audio is not used: {error.problem}",)
    elif run_audio:
        made_because = (f"the run's own audio is not used: {run_audio}",)
    made = tuple(speech_like(seed, 2.0 + seed % 3) for seed in range(16))
    return Signals("speech-like signals made here", made[::2], made[1::2], True, made_because)


def _of_the_run(folder: Path | None) -> tuple[str, Mapping[str, str]] | str:
    """Source and rows that the model was trained on; or why they are not known, "" where there was no run."""
    if folder is None or not (folder / RUN_FOLDER / RECORD).is_file():
        return ""
    try:
        audio = read_record(folder / RUN_FOLDER).audio
    except OutputError:
        return "run/run.json does not say where it is"
    source, where = audio.path or audio.source, audio.where
    # A relative path means another thing in another folder, and a CSV holds rows that were kept for testing.
    if not Path(source).is_absolute():
        return "run/run.json gives no absolute path"
    if where is None and source.lower().endswith(".csv"):
        return "run/run.json does not say which rows of the CSV it is"
    if not Path(source).exists():
        return f"{source} is gone"
    return source, where or {}


def _read(source: str | Path, where: Mapping[str, str], calibrates: bool) -> Signals:
    refuse_pipes(source)
    manifest = read_source(source, where=where)
    name = Path(str(source)).name
    waveforms = [_cropped(utterance) for utterance in _spread(manifest.utterances)]
    if not calibrates:
        return Signals(_counted(len(waveforms), name), (), tuple(waveforms), False)
    if len(waveforms) > 1:
        described = (
            f"{_counted(len(waveforms[1::2]), name)} ({len(waveforms[::2])} others to calibrate)"
        )
        return Signals(described, tuple(waveforms[::2]), tuple(waveforms[1::2]), False)
    half = len(waveforms[0]) // 2
    if half < HALF_SECONDS * SAMPLING_RATE:
        raise AudioError(
            f"{source} holds one utterance of {len(waveforms[0]) / SAMPLING_RATE:.1f} s, too little to "
            "calibrate on one part and to compare on another",
            f"give several utterances, or one of at least {2 * HALF_SECONDS:g} s",
        )
    return Signals(
        f"the second half of the one utterance of {name} (the first to calibrate)",
        (waveforms[0][:half],),
        (waveforms[0][half:],),
        False,
        ("there is one utterance only: give more speech like yours with --audio",),
    )


def refuse_pipes(source: str | Path) -> None:
    """Refuses a source that would be waited for without end.

    Raises:
        AudioError: it is a pipe or a device, or no possible name.
    """
    try:
        mode = os.stat(Path(source).expanduser()).st_mode
    except FileNotFoundError:
        return  # whoever reads it says so
    except (OSError, ValueError, RuntimeError) as error:
        raise AudioError(
            f"the audio source {source} cannot be looked at: {first_line(error)}", "check the path"
        ) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise AudioError(f"{source} is neither a file nor a folder", "give audio, or a list of it")


def _spread(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Up to `UTTERANCES` of them, evenly over all."""
    count = min(UTTERANCES, len(utterances))
    return [utterances[index * len(utterances) // count] for index in range(count)]


def _cropped(utterance: Utterance) -> np.ndarray:
    return load_audio(utterance)[: round(SECONDS * SAMPLING_RATE)]


def _counted(number: int, name: str) -> str:
    return f"{number} utterance{'' if number == 1 else 's'} of {name}"


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
