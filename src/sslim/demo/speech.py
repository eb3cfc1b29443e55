"""Spoken commands made on this machine: 24 words in four languages, said by 24 synthetic voices.

The sounds come from espeak-ng (GPL-3, used as the user installed it through the `espeakng-loader`
wheel; nothing of it is part of this package). Each clip lasts a second or a little more, like those of
Speech Commands; speed, pitch, position, microphone, level and noise vary from clip to clip, so that
neither task is a matter of comparing recordings.

Two tasks, in two columns of `manifest.csv`:

    split        which word?  train, valid and test hold different voices
    voice_split  which voice? all voices in each part; a word is heard in other takes elsewhere
"""

from __future__ import annotations

import csv
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from sslim.errors import OutputError, SslimError

SAMPLING_RATE = 16_000

WORDS: dict[str, tuple[str, ...]] = {
    "en": ("yes", "stop", "left", "right", "up", "down"),
    "de": ("ja", "halt", "links", "rechts", "hoch", "runter"),
    "fr": ("oui", "arrête", "gauche", "droite", "monte", "descends"),
    "es": ("sí", "alto", "izquierda", "derecha", "arriba", "abajo"),
}
"""Language -> the same six commands in it. A word with its language is one class."""

VOICES: dict[str, tuple[str, ...]] = {
    "train": (
        "m1", "m3", "m7", "f1", "f3", "f5", "Alex", "Annie",
        "Michael", "belinda", "grandpa", "robert", "pablo", "steph",
    ),
    "valid": ("m4", "f2", "Lee", "linda"),
    "test": ("m2", "f4", "Andy", "grandma", "john", "boris"),
}  # fmt: skip
"""Split of the word task -> the voices (variants of espeak-ng) that are heard in it and nowhere else."""

VOICE_TASK_PARTS = ("test", "valid", "train", "train")
"""Split of the voice task, dealt in turn to each voice's takes."""

COLUMNS = ("path", "label", "speaker", "lang", "split", "voice_split", "seconds")

TOO_LONG_A_PATH = 120
"""espeak-ng keeps its data path in a buffer of 160 bytes and appends to it."""


class DemoError(SslimError):
    """The demo's own ingredients (the speech synthesiser, the embedded teacher) are not there."""


@dataclass(frozen=True)
class SpeechSet:
    """What was made."""

    folder: Path
    manifest: Path
    clips: int
    seconds: float
    words: int
    voices: int


def file_names(takes: int = 2) -> list[str]:
    """Every clip that `make_speech` writes, beside `manifest.csv`."""
    return [
        _file_name(voice, f"{lang}-{word}", take)
        for voices in VOICES.values()
        for voice in voices
        for lang, words in WORDS.items()
        for word in words
        for take in range(takes)
    ]


def _file_name(voice: str, label: str, take: int) -> str:
    return f"clips/{voice}/{label}-{take}.flac"


def make_speech(
    folder: str | Path, *, takes: int = 2, seed: int = 0, snr: tuple[float, float] = (5.0, 25.0)
) -> SpeechSet:
    """Writes the clips (16 kHz mono FLAC) and `manifest.csv` into `folder`.

    Args:
        folder: made if missing; clips of an earlier call are overwritten.
        takes: how often each voice says each word.
        seed: of everything that varies between clips; the same seed gives the same samples.
        snr: bounds of the signal-to-noise ratio in dB, drawn uniformly per clip.

    Raises:
        DemoError: espeak-ng is not installed or does not work here.
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    random = np.random.default_rng(seed)
    rows: list[dict[str, str]] = []
    requests: list[dict[str, str | int]] = []
    for split, voices in VOICES.items():
        for turn, voice in enumerate(voices):
            for lang, words in WORDS.items():
                for index, word in enumerate(words):
                    for take in range(takes):
                        label = f"{lang}-{word}"
                        rows.append(
                            {
                                "path": _file_name(voice, label, take),
                                "label": label,
                                "speaker": voice,
                                "lang": lang,
                                "split": split,
                                "voice_split": VOICE_TASK_PARTS[(index + 2 * take + turn) % 4],
                            }
                        )
                        requests.append(
                            {
                                "voice": f"{lang}+{voice}",
                                "text": word,
                                "rate": int(random.integers(125, 215)),
                                "pitch": int(random.integers(32, 69)),
                                "range": int(random.integers(30, 71)),
                            }
                        )
    seconds = 0.0
    try:
        for row, dry in zip(rows, _synthesise(requests), strict=True):
            clip = _vary(dry, random, snr)
            path = folder / row["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, clip, SAMPLING_RATE, subtype="PCM_16")
            row["seconds"] = f"{len(clip) / SAMPLING_RATE:.4f}"
            seconds += len(clip) / SAMPLING_RATE
        manifest = folder / "manifest.csv"
        with manifest.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"cannot write the clips in {folder}: {reason}", "free space or choose another folder"
        ) from error
    return SpeechSet(
        folder=folder,
        manifest=manifest,
        clips=len(rows),
        seconds=seconds,
        words=sum(map(len, WORDS.values())),
        voices=sum(map(len, VOICES.values())),
    )


def _synthesise(requests: Sequence[dict[str, str | int]]) -> Iterator[np.ndarray]:
    """What espeak-ng says to each request, 16 kHz float32."""
    library, data = _library()
    with _short_path(data) as path:
        done = subprocess.run(
            [sys.executable, "-I", str(Path(__file__).with_name("espeak.py")), library, path],
            input=json.dumps(requests).encode(),
            capture_output=True,
            check=False,
        )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"it ended with code {done.returncode}"
        raise DemoError(
            f"the speech synthesiser does not work here: {reason}",
            "install it again: pip install --force-reinstall espeakng-loader",
        )
    answer = memoryview(done.stdout)
    (rate,) = struct.unpack_from("<i", answer)
    at = 4
    for _ in requests:
        (count,) = struct.unpack_from("<i", answer, at)
        samples = np.frombuffer(answer, dtype="<i2", count=count, offset=at + 4)
        at += 4 + 2 * count
        yield soxr.resample(samples.astype(np.float32) / 32768.0, rate, SAMPLING_RATE)


def _library() -> tuple[str, str]:
    """Where espeak-ng's library and data lie."""
    try:
        import espeakng_loader

        library, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    except (ImportError, RuntimeError) as error:
        raise DemoError(
            f"the speech synthesiser espeak-ng is not installed ({error})",
            "install it with pip install 'sslim[demo]'",
        ) from error
    return str(library), str(data)


@contextmanager
def _short_path(data: str) -> Iterator[str]:
    """`data`, or a link to it where espeak-ng would cut its name short."""
    if len(data.encode()) <= TOO_LONG_A_PATH:
        yield data
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "espeak-ng-data"
        link.symlink_to(data, target_is_directory=True)
        yield str(link)


def _vary(dry: np.ndarray, random: np.random.Generator, snr: tuple[float, float]) -> np.ndarray:
    """A clip of at least a second: the word somewhere in it, behind a microphone, in noise."""
    loud = np.flatnonzero(np.abs(dry) > 0.02 * np.abs(dry).max())
    word = dry[loud[0] : loud[-1] + 1]
    length = max(SAMPLING_RATE, len(word) + SAMPLING_RATE // 5)
    length = -(-length // 1600) * 1600  # tenths of a second: many clips are equally long
    at = int(random.integers(0, length - len(word) + 1))
    clip = np.zeros(length, dtype=np.float32)
    clip[at : at + len(word)] = word
    clip = _microphone(clip, random)
    noise = _noise(length, random)
    level = float(np.sqrt(np.mean(clip[at : at + len(word)] ** 2)))
    clip = clip + noise * level * 10.0 ** (-random.uniform(*snr) / 20.0)
    peak = 10.0 ** (random.uniform(-15.0, -1.0) / 20.0)
    return (clip * (peak / np.abs(clip).max())).astype(np.float32)


def _microphone(clip: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random slope of up to 4 dB per octave around 1 kHz, and a random lower cut."""
    spectrum = np.fft.rfft(clip)
    frequency = np.fft.rfftfreq(len(clip), 1.0 / SAMPLING_RATE)
    octaves = np.log2(np.maximum(frequency, 60.0) / 1000.0)
    gain = 10.0 ** (random.uniform(-4.0, 4.0) * octaves / 20.0)
    corner = random.uniform(50.0, 250.0)
    gain *= 1.0 / np.sqrt(1.0 + (corner / np.maximum(frequency, 1.0)) ** 4)
    return np.fft.irfft(spectrum * gain, len(clip)).astype(np.float32)


def _noise(length: int, random: np.random.Generator) -> np.ndarray:
    """Noise of unit power whose spectrum falls by 0 to 6 dB per octave."""
    spectrum = np.fft.rfft(random.standard_normal(length))
    frequency = np.maximum(np.fft.rfftfreq(length, 1.0 / SAMPLING_RATE), 30.0)
    noise = np.fft.irfft(spectrum * frequency ** -random.uniform(0.0, 1.0), length)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)
