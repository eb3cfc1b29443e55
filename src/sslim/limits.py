"""What a setting that is a number may be, and why not more. Pure Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


def shown(value: Any) -> str:
    """A value for a message of one line, whatever a file holds."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; lists in lists
        return f"{type(value).__name__} that is too long to show"
    return text if len(text) <= 80 else f"{text[:70]}..."


class Limits(NamedTuple):
    """What a number may be."""

    least: float
    most: float
    why: str
    """Why not more."""
    above: bool = False
    """Whether it must lie above `least`."""

    def problem(self, name: str, value: float) -> str:
        """What is wrong with a value; empty: nothing."""
        if value < self.least or (self.above and value == self.least):
            bound = f"above {self.least:g}" if self.above else f"at least {self.least:g}"
            return f"{name} must be {bound}, got {shown(value)}"
        if value > self.most:
            most = f"{self.most:,}" if isinstance(self.most, int) else f"{self.most:,.10g}"
            return f"{name} must be at most {most} ({self.why}), got {shown(value)}"
        return ""


_ENDLESS = "thirty years of updates that take a second"
_STEP = "the optimiser moves each weight by about this much per update, and weights are below 1"
_SHARE = "it is a share"
_LONGEST = "attention over more than an hour in one piece fits no memory"
_AUDIO = "an update would hear more than a day of audio"

LIMITS: Mapping[str, Limits] = {
    "seed": Limits(0, 2**63 - 1, "what a TOML file can hold"),
    "seconds_per_update": Limits(0.1, 100_000.0, _AUDIO),
    "seconds_per_batch": Limits(0.0, 100_000.0, _AUDIO),
    "workers": Limits(0, 256, "each is a process with a copy of the list of files"),
    "log_every": Limits(1, 10**9, _ENDLESS),
    "check_every": Limits(0, 1000, "a request to stop would wait for hours"),
    "checkpoint_every": Limits(1, 10**9, _ENDLESS),
    "keep_checkpoints": Limits(1, 10**9, _ENDLESS),
    "target_cache_gib": Limits(0.0, 1e6, "a million GiB is more than any disk"),
    "clip_norm": Limits(0.0, 1e6, "no gradient reaches it, so this is no clipping", above=True),
    "layers": Limits(0, 1000, "no model is as deep"),
    "audio.min_seconds": Limits(0.0, 3600.0, _LONGEST),
    "audio.max_seconds": Limits(0.1, 3600.0, _LONGEST),
    "audio.held_out": Limits(0.0, 0.5, "most of the audio is for training"),
    "stage1.updates": Limits(1, 10**9, _ENDLESS),
    "stage1.learning_rate": Limits(0.0, 1.0, _STEP, above=True),
    "stage1.warmup_fraction": Limits(0.0, 1.0, _SHARE),
    "stage1.gate_learning_rate": Limits(
        0.0, 10.0, "a gate would open and close for good within two updates", above=True
    ),
    "stage1.sparsity_warmup_fraction": Limits(0.0, 1.0, _SHARE),
    "stage1.shrink_chances": Limits(0, 10**9, _ENDLESS),
    "stage1.shrink_multiple": Limits(1, 2**16, "no layer is as wide"),
    "stage2.updates": Limits(0, 10**9, _ENDLESS),
    "stage2.learning_rate": Limits(0.0, 1.0, _STEP, above=True),
    "stage2.warmup_fraction": Limits(0.0, 1.0, _SHARE),
}
"""What each setting that is a number may be (`layers`: each of its numbers)."""
