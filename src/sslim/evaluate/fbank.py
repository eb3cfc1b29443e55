"""Log-mel features in numpy: the baseline that any model must beat.

transformers' `spectrogram` gives the same to five digits at a quarter of the speed, and what it gives could
change with its version; these features change with their fingerprint alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from sslim import identity
from sslim.plan import SAMPLING_RATE


@dataclass(frozen=True)
class LogMel:
    """Log energies in triangular bands, equally spaced in mel (2595 log10(1 + f / 700))."""

    window: int = 400
    hop: int = 160
    """Samples: 25 ms every 10 ms, as in Kaldi and SUPERB's `fbank`."""
    fft: int = 512
    bands: int = 80
    lowest: float = 20.0
    highest: float = 7600.0
    """Hz."""
    floor: float = 1e-8

    @property
    def fingerprint(self) -> str:
        """Changes with every setting and with the code that computes."""
        return identity.digest("fbank", identity.COMPUTATION, asdict(self))

    @cached_property
    def filters(self) -> np.ndarray:
        """(bands, fft // 2 + 1) float32."""

        def mel(frequency: np.ndarray | float) -> np.ndarray:
            return 2595.0 * np.log10(1.0 + np.asarray(frequency) / 700.0)

        edges = np.linspace(mel(self.lowest), mel(self.highest), self.bands + 2)
        bins = mel(np.fft.rfftfreq(self.fft, 1.0 / SAMPLING_RATE))
        rising = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        falling = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
        return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Waveform (samples,) at 16 kHz -> (1, frames, bands), one "layer"; a short one is padded."""
        waveform = np.asarray(waveform, dtype=np.float32)
        if len(waveform) < self.window:
            waveform = np.pad(waveform, (0, self.window - len(waveform)))
        taper = np.hanning(self.window).astype(np.float32)
        views = np.lib.stride_tricks.sliding_window_view(waveform, self.window)
        power = np.abs(np.fft.rfft(views[:: self.hop] * taper, self.fft)) ** 2
        mels: np.ndarray = np.log(power @ self.filters.T + self.floor)[None].astype(np.float32)
        return mels


LOG_MEL = LogMel()


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Waveform (samples,) at 16 kHz -> (1, frames, 80): one layer, as models have many."""
    return LOG_MEL(waveform)
