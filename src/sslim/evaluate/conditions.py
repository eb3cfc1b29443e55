"""Where does it break? Noise, reverberation, a telephone's band, clipping, speed.

Each condition is a function of the waveform and its clip's contents alone, so teacher and student hear the
same, wherever the clip lies. Its identity is made from the contents of its noises or rooms and its settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from sslim import identity
from sslim.audio import load_audio, read_source
from sslim.audio.manifest import content_identity
from sslim.errors import AudioError, ConfigError
from sslim.evaluate.features import Alter
from sslim.evaluate.scorer import Condition
from sslim.evaluate.tasks import need_packages
from sslim.plan import SAMPLING_RATE

TELEPHONE = (300.0, 3400.0)
"""Hz, the band of ITU-T G.712."""
SPEEDS = (0.9, 1.1)
DECIBELS = 100.0
"""Beyond this nothing is left of the one or of the other."""
CLIPPED = (0.1, 0.3)
"""Shares of the samples beyond the clipping level."""


def noise_conditions(folder: str | Path, ratios: Sequence[float]) -> list[Condition]:
    """Recordings from `folder` added at signal-to-noise ratios in dB, one piece per clip.

    Raises:
        AudioError: the folder holds no usable audio, or some that is not.
    """
    contents, noises = _recordings(folder)
    name = Path(folder).resolve().name
    return [_noise(noises, ratio, name, contents) for ratio in dict.fromkeys(ratios)]


def _recordings(folder: str | Path) -> tuple[list[str], list[np.ndarray]]:
    """Identities and waveforms of all recordings, in an order that does not depend on their names."""
    manifest = read_source(folder)
    if manifest.skipped:
        first = manifest.skipped[0]
        raise AudioError(
            f"{len(manifest.skipped)} file(s) of {folder} cannot be used; the first is {first.path}: "
            f"{first.reason}",
            "repair or remove them, so that it is known what was heard",
        )
    # The same recording twice is drawn as if it were there once.
    utterances = {content_identity(utterance): utterance for utterance in manifest.utterances}
    contents = sorted(utterances)
    return contents, [load_audio(utterances[key]) for key in contents]


def _noise(
    noises: Sequence[np.ndarray], ratio: float, name: str, contents: Sequence[str]
) -> Condition:
    def alter(waveform: np.ndarray, clip: str) -> np.ndarray:
        draw = _generator(clip)
        noise = noises[int(draw.integers(len(noises)))]
        if len(noise) < len(waveform):
            noise = np.tile(noise, -(-len(waveform) // len(noise)))
        start = int(draw.integers(len(noise) - len(waveform) + 1))
        piece = noise[start : start + len(waveform)]
        if not piece.any():  # a pause of the recording would leave the clip clean
            start = min(int(np.abs(noise).argmax()), len(noise) - len(waveform))
            piece = noise[start : start + len(waveform)]
        return mix(waveform, piece, ratio)

    return _condition(f"{name} noise, {ratio:g} dB", alter, "noise", ratio, list(contents))


def _condition(name: str, alter: Alter, *settings: Any) -> Condition:
    """A condition under the identity of its kind, its settings and the code's version."""
    return Condition(name, alter, identity.digest("condition", identity.COMPUTATION, *settings))


def mix(waveform: np.ndarray, noise: np.ndarray, ratio: float) -> np.ndarray:
    """Adds `noise` so that the waveform's power stands `ratio` dB above it."""
    power, disturbance = float(np.mean(waveform**2)), float(np.mean(noise**2))
    if disturbance == 0.0:
        return waveform
    scale = np.sqrt(power / disturbance / 10.0 ** (ratio / 10.0))
    mixed: np.ndarray = (waveform + scale * noise).astype(np.float32)
    return mixed


def reverberation(folder: str | Path) -> Condition:
    """Room impulse responses from `folder`, the direct sound where it was and the level kept.

    Raises:
        AudioError: the folder holds no usable audio, or some that is not.
    """
    from scipy.signal import fftconvolve

    contents, rooms = _recordings(folder)
    for room in rooms:
        if len(room) > 10 * SAMPLING_RATE:
            raise AudioError(f"{folder} holds a response of over 10 s", "give impulse responses")

    def alter(waveform: np.ndarray, clip: str) -> np.ndarray:
        room = rooms[int(_generator(clip).integers(len(rooms)))]
        direct = int(np.abs(room).argmax())
        wet = fftconvolve(waveform, room)[direct : direct + len(waveform)]
        level = np.sqrt(np.mean(waveform**2) / max(float(np.mean(wet**2)), 1e-12))
        return (level * wet).astype(np.float32)

    return _condition("reverberation", alter, "reverberation", contents)


def telephone() -> Condition:
    """The band of a telephone line, 300 to 3400 Hz."""
    from scipy.signal import butter, sosfiltfilt

    bands = butter(4, TELEPHONE, "bandpass", fs=SAMPLING_RATE, output="sos")

    def alter(waveform: np.ndarray, clip: str) -> np.ndarray:
        filtered: np.ndarray = sosfiltfilt(
            bands, waveform, padlen=min(len(waveform) - 1, 3 * (2 * len(bands) + 1))
        )
        return np.ascontiguousarray(filtered, dtype=np.float32)

    return _condition("telephone band", alter, "telephone", *TELEPHONE)


def clipping(share: float) -> Condition:
    """The loudest `share` of samples cut off."""

    def alter(waveform: np.ndarray, clip: str) -> np.ndarray:
        level = float(np.quantile(np.abs(waveform), 1.0 - share))
        return np.clip(waveform, -level, level) if level > 0 else waveform

    return _condition(f"clipping, {share:.0%}", alter, "clipping", share)


def speed(factor: float) -> Condition:
    """Played faster or slower, pitch included."""

    def alter(waveform: np.ndarray, clip: str) -> np.ndarray:
        return np.asarray(soxr.resample(waveform, factor, 1.0), dtype=np.float32)

    return _condition(f"speed {factor:g}", alter, "speed", factor)


def named_conditions(
    names: Sequence[str],
    *,
    noise: str | Path | None = None,
    ratios: Sequence[float] = (20.0, 10.0, 5.0, 0.0),
    rooms: str | Path | None = None,
) -> list[Condition]:
    """The conditions a user asks for.

    Args:
        names: any of `telephone`, `clipping`, `speed`.
        noise: folder of noise recordings; adds a condition per ratio.
        ratios: signal-to-noise ratios in dB.
        rooms: folder of impulse responses; adds reverberation.

    Raises:
        ConfigError: a name is unknown, or a ratio is no number of decibels.
        AudioError: a folder holds no usable audio.
    """
    kinds = {
        "telephone": lambda: [telephone()],
        "clipping": lambda: [clipping(share) for share in CLIPPED],
        "speed": lambda: [speed(factor) for factor in SPEEDS],
    }
    for ratio in ratios:
        if not -DECIBELS <= ratio <= DECIBELS:  # neither is it where it is not a number
            raise ConfigError(
                f"{ratio:g} dB is no signal-to-noise ratio",
                f"give ratios between {-DECIBELS:g} and {DECIBELS:g} dB",
            )
    if rooms is not None or "telephone" in names:
        need_packages("this condition", "scipy")
    conditions = [] if noise is None else noise_conditions(noise, ratios)
    conditions += [] if rooms is None else [reverberation(rooms)]
    for name in dict.fromkeys(names):
        if name not in kinds:
            raise ConfigError(f"there is no condition {name!r}", f"choose {', '.join(kinds)}")
        conditions += kinds[name]()
    return conditions


def _generator(clip: str) -> np.random.Generator:
    """Draws that depend on the clip's contents alone."""
    return np.random.default_rng(int(identity.digest("draw", clip)[:16], 16))
