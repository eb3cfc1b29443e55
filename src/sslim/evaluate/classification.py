"""Keyword spotting, intents, emotions, speakers: one answer per clip (SUPERB's KS, IC, ER, SID)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sslim.backbone.frozen import Frozen
from sslim.evaluate.clips import PARTS, Clip, LabelledClips, check_classes
from sslim.evaluate.outcome import Outcome, ratio_outcome
from sslim.evaluate.probe import LEARNING_RATES, fit_heads
from sslim.evaluate.scorer import CLEAN, Condition, Scorer, Settings


def check_answers(data: LabelledClips, columns: Sequence[str]) -> None:
    """Raises ConfigError unless every answer can be learned and scored."""
    data.need(*columns)
    for column in columns:
        check_classes(
            data,
            {name: [clip.row[column] for clip in data.part(name)] for name in PARTS},
            fewest=2 if len(columns) == 1 else 1,  # one of several questions may have one answer
        )


def fit_classifier(
    upstream: Frozen, data: LabelledClips, settings: Settings, columns: Sequence[str] = ("label",)
) -> Scorer:
    """Heads that answer every question of `columns`; a clip is right when all of them are.

    Raises:
        ConfigError: a column is missing, a class has too few examples.
        AudioError, TeacherError: a clip or the model cannot be used.
    """
    check_answers(data, columns)
    parts = {name: data.part(name) for name in PARTS}
    classes = [
        {label: i for i, label in enumerate(sorted({clip.row[column] for clip in parts["train"]}))}
        for column in columns
    ]

    def labels(clips: Sequence[Clip]) -> np.ndarray:
        return np.array(
            [
                [names[clip.row[column]] for column, names in zip(columns, classes, strict=True)]
                for clip in clips
            ]
        )

    fitted = fit_heads(
        (settings.pooled(upstream, parts["train"]), labels(parts["train"])),
        (settings.pooled(upstream, parts["valid"]), labels(parts["valid"])),
        [len(names) for names in classes],
        seeds=settings.seeds,
        learning_rates=settings.learning_rates or LEARNING_RATES,
    )

    def right(clips: Sequence[Clip], condition: Condition) -> np.ndarray:
        return fitted.right(settings.pooled(upstream, clips, condition), labels(clips))

    def outcomes(clips: Sequence[Clip], condition: Condition) -> dict[str, Outcome]:
        correct = right(clips, condition)
        names = [clip.identity for clip in clips]
        return {"accuracy": ratio_outcome(correct, np.ones_like(correct, dtype=float), names)}

    answers = [tuple(row) for row in labels(parts["test"]).tolist()]
    return Scorer(
        upstream,
        outcomes,
        fitted.learning_rate,
        chance=Counter(answers).most_common(1)[0][1] / len(answers),
        per_seed=lambda clips: right(clips, CLEAN).mean(axis=1).tolist(),
    )
