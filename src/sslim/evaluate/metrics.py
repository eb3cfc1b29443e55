"""The field's metrics, per item, so that scores can be resampled, grouped and paired."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sslim.evaluate.outcome import Outcome

SLOT = re.compile(r"<([^<>/]+)>(.*?)</\1>")
"""A slot in a transcript: `<name>words</name>`."""

MISS_COST, FALSE_ALARM_COST, TARGET_PRIOR = 100.0, 1.0, 0.0008
"""QUESST 2014's application parameters (its evaluation plan, section 5)."""
FALSE_ALARM_WEIGHT = FALSE_ALARM_COST * (1.0 - TARGET_PRIOR) / (MISS_COST * TARGET_PRIOR)


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[int, int]:
    """Insertions, deletions and substitutions between token sequences, and the reference's length."""
    import jiwer

    if not reference:
        return len(hypothesis), 0
    # jiwer splits at blanks; tokens that are words, phones or characters hold none.
    alignment = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    return alignment.insertions + alignment.deletions + alignment.substitutions, len(reference)


def characters(text: str) -> list[str]:
    """The characters of a text as tokens, blanks as `_`."""
    return list(text.replace(" ", "_"))


def slots(text: str) -> dict[str, list[str]]:
    """Slot name -> its values in order, of a transcript with marks."""
    values: dict[str, list[str]] = {}
    for name, value in SLOT.findall(text):
        values.setdefault(name, []).append(" ".join(value.split()))
    return values


def slot_type_counts(reference: str, hypothesis: str) -> tuple[int, int]:
    """Twice the slot types found, and those of reference and hypothesis together: their ratio is F1."""
    wanted = Counter({name: len(values) for name, values in slots(reference).items()})
    given = Counter({name: len(values) for name, values in slots(hypothesis).items()})
    return 2 * (wanted & given).total(), wanted.total() + given.total()


def slot_value_edits(reference: str, hypothesis: str) -> tuple[int, int]:
    """Character edits between slot values of equal type, in order, and the reference's characters."""
    given = slots(hypothesis)
    wrong = total = 0
    for name, values in slots(reference).items():
        for position, value in enumerate(values):
            recognised = given.get(name, [])
            missed, length = edits(
                characters(value),
                characters(recognised[position]) if position < len(recognised) else [],
            )
            wrong, total = wrong + missed, total + length
    return wrong, total


def equal_error_rate(targets: np.ndarray, scores: np.ndarray) -> float:
    """Where misses and false alarms are equally frequent.

    Args:
        targets: (trials,) 1 for the same speaker, 0 for another.
        scores: (trials,) higher for more alike.

    Returns:
        The rate; not a number where one kind of trial is missing.
    """
    from sklearn.metrics import roc_curve

    if targets.min() == targets.max():
        return float("nan")
    false_alarms, hits, _ = roc_curve(targets, scores)
    misses = 1.0 - hits
    index = int(np.argmax(false_alarms >= misses))
    if index == 0:
        return float(false_alarms[0])
    # Between two thresholds the curve is a line; the rate is where it meets the diagonal.
    before, after = (
        misses[index - 1] - false_alarms[index - 1],
        misses[index] - false_alarms[index],
    )
    share = before / (before - after) if before != after else 0.0
    step = false_alarms[index] - false_alarms[index - 1]
    return float(false_alarms[index - 1] + share * step)


def equal_error_outcome(
    targets: np.ndarray, scores: np.ndarray, identities: Sequence[str] = ()
) -> Outcome:
    """Equal error rate over trials.

    Args:
        targets: (trials,).
        scores: (seeds, trials); the rate is the seeds' mean.
        identities: of the trials.
    """
    rows = np.atleast_2d(scores)

    def statistic(indices: np.ndarray) -> float:
        return float(np.mean([equal_error_rate(targets[indices], row[indices]) for row in rows]))

    return Outcome(len(targets), statistic, tuple(identities))


def maximum_term_weighted_value(scores: np.ndarray, targets: np.ndarray) -> float:
    """MTWV: 1 - misses - weight x false alarms, averaged over queries, at the best single threshold.

    Args:
        scores: (queries, documents), higher for more likely.
        targets: the same shape, whether the query is spoken in the document.

    Returns:
        At most 1; 0 for a system that says nothing; not a number without targets.
    """
    usable = targets.any(axis=1)
    if not usable.any():
        return float("nan")
    scores, targets = scores[usable], targets[usable].astype(bool)
    order = np.argsort(-scores, axis=None, kind="stable")
    queries = len(scores)
    hit = 1.0 / targets.sum(axis=1, keepdims=True)
    alarm = FALSE_ALARM_WEIGHT / np.maximum(1, (~targets).sum(axis=1, keepdims=True))
    gains = np.where(targets, hit, -alarm).ravel()[order] / queries
    # Equal scores stand on the same side of any threshold.
    ranked = scores.ravel()[order]
    last = np.append(ranked[1:] != ranked[:-1], True)
    return float(max(0.0, np.cumsum(gains)[last].max()))


def term_outcome(scores: np.ndarray, targets: np.ndarray, identities: Sequence[str]) -> Outcome:
    """MTWV over queries.

    Args:
        scores: (queries, documents).
        targets: the same shape.
        identities: of the queries.
    """

    def statistic(indices: np.ndarray) -> float:
        return maximum_term_weighted_value(scores[indices], targets[indices])

    return Outcome(len(scores), statistic, tuple(identities))
