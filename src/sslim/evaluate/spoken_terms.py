"""Query by example (SUPERB's QbE): is a spoken query somewhere in a document? No head is trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sslim.backbone.frozen import Frozen
from sslim.errors import ConfigError
from sslim.evaluate.clips import Clip, LabelledClips
from sslim.evaluate.features import FrameFeatures
from sslim.evaluate.metrics import maximum_term_weighted_value, term_outcome
from sslim.evaluate.outcome import Outcome
from sslim.evaluate.scorer import CLEAN, Condition, Scorer, Settings


def fit_term_detector(upstream: Frozen, data: LabelledClips, settings: Settings) -> Scorer:
    """Dynamic time warping of each query along each document, per layer; the best layer on `valid`.

    Columns: `role` (query or document) and `label`: a query's term, and all terms of a document, separated by
    blanks.

    Raises:
        ConfigError: a column is missing, or a part lacks queries, documents or matches.
    """
    data.need("role", "label")
    for clip in data.clips:
        if clip.row["role"] not in ("query", "document"):
            raise ConfigError(
                f"{clip.identity} of {data.source} has the role {clip.row['role']!r}",
                "the column role says query or document",
            )
    valid = data.part("valid")
    by_layer = [
        maximum_term_weighted_value(scores, _targets(data, valid))
        for scores in _scores(upstream, valid, settings, CLEAN, None)
    ]
    best = int(np.argmax(by_layer))

    def outcomes(clips: Sequence[Clip], condition: Condition) -> dict[str, Outcome]:
        scores = _scores(upstream, clips, settings, condition, best)[0]
        queries = [clip.identity for clip in clips if clip.row["role"] == "query"]
        return {"MTWV": term_outcome(scores, _targets(data, clips), queries)}

    return Scorer(
        upstream,
        outcomes,
        learning_rate=0.0,
        chance=0.0,
        per_seed=lambda clips: [outcomes(clips, CLEAN)["MTWV"].score],
    )


def _targets(data: LabelledClips, clips: Sequence[Clip]) -> np.ndarray:
    queries = [clip.row["label"].strip() for clip in clips if clip.row["role"] == "query"]
    documents = [set(clip.row["label"].split()) for clip in clips if clip.row["role"] == "document"]
    if len(documents) < 2:
        raise ConfigError(
            f"a part of {data.source} has {len(documents)} document(s)",
            "a query's scores are compared over documents; give several",
        )
    targets = np.array([[query in terms for terms in documents] for query in queries])
    if targets.size == 0 or not targets.any():
        raise ConfigError(
            f"a part of {data.source} has no query that is spoken in one of its documents",
            "each part needs rows with the roles query and document, and common labels",
        )
    return targets


def _scores(
    upstream: Frozen,
    clips: Sequence[Clip],
    settings: Settings,
    condition: Condition,
    layer: int | None,
) -> list[np.ndarray]:
    """Scores (queries, documents) of one layer or of each, brought to one scale query by query."""
    roles = {
        role: settings.frames(
            upstream, [clip for clip in clips if clip.row["role"] == role], condition
        )
        for role in ("query", "document")
    }
    layers = range(upstream.layers) if layer is None else (layer,)
    return [_matched(roles["query"], roles["document"], index) for index in layers]


def _matched(queries: FrameFeatures, documents: FrameFeatures, layer: int) -> np.ndarray:
    spoken = [_unit(queries[index][layer]) for index in range(len(queries))]
    scores = np.zeros((len(queries), len(documents)))
    for column in range(len(documents)):
        document = _unit(documents[column][layer])
        scores[:, column] = [-warping_cost(1.0 - query @ document.T) for query in spoken]
    # A single threshold serves all queries, so each query's scores get one scale.
    spread = scores.std(axis=1, keepdims=True) + 1e-9
    normal: np.ndarray = (scores - scores.mean(axis=1, keepdims=True)) / spread
    return normal


def _unit(frames: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(frames, axis=1, keepdims=True)
    unit: np.ndarray = frames / np.maximum(length, 1e-9)
    return unit


def warping_cost(distances: np.ndarray) -> float:
    """The least mean distance of a query along any stretch of a document.

    Every query frame takes one step, over none, one or two of the document's frames (the asymmetric step
    pattern of Sakoe and Chiba), beginning and ending anywhere.

    Args:
        distances: (query frames, document frames).
    """
    far = np.full(2, np.inf)
    costs = distances[0]
    for row in distances[1:]:
        before = np.concatenate([far, costs])
        costs = row + np.minimum(np.minimum(before[2:], before[1:-1]), before[:-2])
    return float(costs.min() / len(distances))
