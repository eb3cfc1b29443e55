"""The SUPERB score: one number for ten tasks (Yang et al., Interspeech 2021; Feng et al., SLT 2022)."""

from __future__ import annotations

from collections.abc import Mapping

FBANK = {
    "pr": (82.01,),
    "asr": (23.18,),
    "ks": (41.38,),
    "qbe": (0.58,),
    "sid": (20.06,),
    "asv": (9.56,),
    "sd": (10.05,),
    "ic": (9.65,),
    "sf": (69.64, 52.94),
    "er": (48.24,),
}
"""Log-mel features' scores in percent (MTWV x 100), the score's zero; slot filling has two metrics."""

BEST = {
    "pr": (3.53,),
    "asr": (3.62,),
    "ks": (96.66,),
    "qbe": (7.36,),
    "sid": (90.33,),
    "asv": (5.11,),
    "sd": (5.62,),
    "ic": (98.76,),
    "sf": (89.81, 21.76),
    "er": (67.62,),
}
"""The best published scores when the score was defined, its 1000."""


def superb_score(scores: Mapping[str, tuple[float, ...]]) -> float:
    """1000 x the mean over the ten tasks of (score - FBANK) / (BEST - FBANK).

    Args:
        scores: task -> its metrics in percent (MTWV x 100), in the order of `FBANK`; all ten tasks.

    Raises:
        ValueError: a task or a metric is missing.
    """
    missing = sorted(set(FBANK) - set(scores))
    if missing:
        raise ValueError(f"the SUPERB score needs all ten tasks; missing: {', '.join(missing)}")
    shares = []
    for task, floor in FBANK.items():
        parts = [
            (got - low) / (high - low)
            for got, low, high in zip(scores[task], floor, BEST[task], strict=True)
        ]
        shares.append(sum(parts) / len(parts))
    return 1000.0 * sum(shares) / len(shares)
