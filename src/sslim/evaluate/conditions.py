"""Where does it break? Noise, reverberation, a telephone's band, clipping, speed.

Each condition is a function of the waveform and its clip's name alone, so teacher and student hear the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr

from sslim.audio import load_audio, read_source
from sslim.errors import AudioError, ConfigError
from sslim.evaluate.scorer import Condition
from sslim.evaluate.tasks import need_packages
from sslim.plan import SAMPLING_RATE

TELEPHONE = (300.0, 3400.0)
"""Hz, the band of ITU-T G.712."""
SPEEDS = (0.9, 1.1)
CLIPPED = (0.1, 0.3)
"""Shares of the samples beyond the clipping level."""


def noise_conditions(folder: str | Path, ratios: Sequence[float]) -> list[Condition]:
    """Recordings from `folder` added at signal-to-noise ratios in dB, one piece per clip.

    Raises:
        AudioError: the folder holds no usable audio.
    """
    noises = [load_audio(utterance) for utterance in read_source(folder).utterances]
    return [_noise(noises, ratio, Path(folder).name) for ratio in ratios]


def _noise(noises: Sequence[np.ndarray], ratio: float, name: str) -> Condition:
    def alter(waveform: np.ndarray, identity: str) -> np.ndarray:
        draw = _generator(identity)
        noise = noises[int(draw.integers(len(noises)))]
        if len(noise) < len(waveform):
            noise = np.tile(noise, -(-len(waveform) // len(noise)))
        start = int(draw.integers(len(noise) - len(waveform) + 1))
        return mix(waveform, noise[start : start + len(waveform)], ratio)

    return Condition(f"{name} noise, {ratio:g} dB", alter)


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
        AudioError: the folder holds no usable audio.
    """
    from scipy.signal import fftconvolve

    rooms = [load_audio(utterance) for utterance in read_source(folder).utterances]
    for room in rooms:
        if len(room) > 10 * SAMPLING_RATE:
            raise AudioError(f"{folder} holds a response of over 10 s", "give impulse responses")

    def alter(waveform: np.ndarray, identity: str) -> np.ndarray:
        room = rooms[int(_generator(identity).integers(len(rooms)))]
        direct = int(np.abs(room).argmax())
        wet = fftconvolve(waveform, room)[direct : direct + len(waveform)]
        level = np.sqrt(np.mean(waveform**2) / max(float(np.mean(wet**2)), 1e-12))
        return (level * wet).astype(np.float32)

    return Condition("reverberation", alter)


def telephone() -> Condition:
    """The band of a telephone line, 300 to 3400 Hz."""
    from scipy.signal import butter, sosfiltfilt

    bands = butter(4, TELEPHONE, "bandpass", fs=SAMPLING_RATE, output="sos")

    def alter(waveform: np.ndarray, identity: str) -> np.ndarray:
        filtered: np.ndarray = sosfiltfilt(
            bands, waveform, padlen=min(len(waveform) - 1, 3 * (2 * len(bands) + 1))
        )
        return np.ascontiguousarray(filtered, dtype=np.float32)

    return Condition("telephone band", alter)


def clipping(share: float) -> Condition:
    """The loudest `share` of samples cut off."""

    def alter(waveform: np.ndarray, identity: str) -> np.ndarray:
        level = float(np.quantile(np.abs(waveform), 1.0 - share))
        return np.clip(waveform, -level, level) if level > 0 else waveform

    return Condition(f"clipping, {share:.0%}", alter)


def speed(factor: float) -> Condition:
    """Played faster or slower, pitch included."""

    def alter(waveform: np.ndarray, identity: str) -> np.ndarray:
        return np.asarray(soxr.resample(waveform, factor, 1.0), dtype=np.float32)

    return Condition(f"speed {factor:g}", alter)


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
        ConfigError: a name is unknown.
        AudioError: a folder holds no usable audio.
    """
    kinds = {
        "telephone": lambda: [telephone()],
        "clipping": lambda: [clipping(share) for share in CLIPPED],
        "speed": lambda: [speed(factor) for factor in SPEEDS],
    }
    if rooms is not None or "telephone" in names:
        need_packages("this condition", "scipy")
    found = [] if noise is None else noise_conditions(noise, ratios)
    found += [] if rooms is None else [reverberation(rooms)]
    for name in names:
        if name not in kinds:
            raise ConfigError(f"there is no condition {name!r}", f"choose {', '.join(kinds)}")
        found += kinds[name]()
    return found


def _generator(identity: str) -> np.random.Generator:
    """Draws that depend on the clip alone."""
    digest = hashlib.sha256(identity.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
