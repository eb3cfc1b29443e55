"""Log-mel features in numpy: the baseline that any model must beat."""

from __future__ import annotations

import numpy as np

SAMPLING_RATE = 16_000
WINDOW, HOP, FFT = 400, 160, 512
"""25 ms every 10 ms, as in Kaldi and SUPERB's `fbank`."""


def mel_filters(bands: int = 80, lowest: float = 20.0, highest: float = 7600.0) -> np.ndarray:
    """Triangular filters, (bands, FFT // 2 + 1), equally spaced in mel (2595 log10(1 + f / 700))."""

    def mel(frequency: np.ndarray | float) -> np.ndarray:
        return 2595.0 * np.log10(1.0 + np.asarray(frequency) / 700.0)

    edges = np.linspace(mel(lowest), mel(highest), bands + 2)
    bins = mel(np.fft.rfftfreq(FFT, 1.0 / SAMPLING_RATE))
    rising = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


_FILTERS = mel_filters()
_WINDOW = np.hanning(WINDOW).astype(np.float32)


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Waveform (samples,) at 16 kHz -> (1, frames, 80), one "layer", as `pooled_features` wants it."""
    waveform = np.asarray(waveform, dtype=np.float32)
    if len(waveform) < WINDOW:
        waveform = np.pad(waveform, (0, WINDOW - len(waveform)))
    frames = np.lib.stride_tricks.sliding_window_view(waveform, WINDOW)[::HOP] * _WINDOW
    power = np.abs(np.fft.rfft(frames, FFT)) ** 2
    mels: np.ndarray = np.log(power @ _FILTERS.T + 1e-8)[None].astype(np.float32)
    return mels
