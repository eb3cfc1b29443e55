"""Which frames a student does not hear: spans, as in the pre-training of wav2vec 2.0.

Nothing is drawn from a generator: where spans begin is a hash of the seed, the update and what is heard. So
the same clip has the same mask whatever batch, piece of a batch or process it falls into, and it is computed
where the audio is.
"""

from __future__ import annotations

import torch

SPAN = 10
"""Frames that are masked in a row (wav2vec 2.0, Baevski et al. 2020, section 4.2)."""
STARTS = 0.065
"""Spans per frame, so that about half of all frames are masked: spans overlap (the same)."""


def masked_frames(waveforms: torch.Tensor, frames: int, *, seed: int, update: int) -> torch.Tensor:
    """Which frames are masked, (batch, frames) bool; none where there are no more than a span holds.

    Args:
        waveforms: (batch, samples) float32, on any device.
        frames: that the model makes of so many samples.
        seed: of all masks.
        update: another one, other masks.
    """
    device = waveforms.device
    if frames <= SPAN:
        return torch.zeros(len(waveforms), frames, dtype=torch.bool, device=device)
    heard = waveforms.contiguous().view(torch.int32).sum(1, dtype=torch.int64)
    spans = torch.arange(max(1, round(STARTS * frames)), device=device)
    key = (seed * 1_000_003 + update) % 2**62
    starts = _mixed(_mixed(heard + key)[:, None] + spans) % (frames - SPAN + 1)
    offsets = torch.arange(frames, device=device) - starts[:, :, None]
    return ((offsets >= 0) & (offsets < SPAN)).any(1)


def _mixed(numbers: torch.Tensor) -> torch.Tensor:
    """Integers that look random and follow from `numbers` (SplitMix64's finaliser, Steele et al. 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> shift)) * (factor - 2**64)
    return numbers ^ (numbers >> 31)
