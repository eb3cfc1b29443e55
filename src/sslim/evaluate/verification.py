"""Automatic speaker verification (SUPERB's ASV): are two clips of one speaker?"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sslim.backbone.frozen import Frozen
from sslim.errors import ConfigError, first_line
from sslim.evaluate.clips import Clip, LabelledClips
from sslim.evaluate.features import FrameFeatures
from sslim.evaluate.fitting import layer_statistics
from sslim.evaluate.heads import MarginSoftmax, SpeakerHead, WeightedSum
from sslim.evaluate.metrics import equal_error_outcome
from sslim.evaluate.outcome import Outcome
from sslim.evaluate.scorer import CLEAN, Condition, Scorer, Settings

LEARNING_RATES = (5e-5, 2e-4)
CROP_FRAMES = 100
"""Two seconds per training example."""
PAIRS = 2000
"""Trials of each kind that are made where none are given."""

Trial = tuple[int, str, str]
"""1 for the same speaker, and the identities of two clips."""


class _Verifier(nn.Module):
    def __init__(self, embedder: SpeakerHead, margin: MarginSoftmax) -> None:
        super().__init__()
        self.embedder = embedder
        self.margin = margin


def fit_verifier(upstream: Frozen, data: LabelledClips, settings: Settings) -> Scorer:
    """x-vectors learned on the training speakers; cosine between the embeddings of a trial's clips.

    Options: `trials` and `valid_trials`, CSVs with the columns target, utt1, utt2 (a clip's `utt` column, or
    its path); where they are missing, trials are drawn among the clips of a part.

    Raises:
        ConfigError: there is no speaker column, or the trials are not of both kinds, repeat themselves, or
            name an unknown clip.
    """
    data.need("speaker")
    train, valid, test = (data.part(name) for name in ("train", "valid", "test"))
    speakers = {name: i for i, name in enumerate(sorted({clip.row["speaker"] for clip in train}))}
    if len(speakers) < 2:
        raise ConfigError(
            f"{data.source} has one training speaker", "at least two are needed, better a hundred"
        )
    trials = {
        "valid": _trials(data, valid, settings.options.get("valid_trials")),
        "test": _trials(data, test, settings.options.get("trials")),
    }
    training = settings.frames(upstream, train, CLEAN)
    validation = settings.frames(upstream, valid, CLEAN)
    statistics = layer_statistics(training)
    width = settings.schedule.hidden or 512
    draw = random.Random(0)

    def make() -> _Verifier:
        return _Verifier(
            SpeakerHead(WeightedSum(*statistics), upstream.width, width),
            MarginSoftmax(width, len(speakers)),
        )

    def loss(head: _Verifier, indices: list[int]) -> torch.Tensor:
        crops = []
        shortest = min(CROP_FRAMES * 320 // upstream.hop, *(training[i].shape[1] for i in indices))
        for index in indices:
            states = training[index]
            start = draw.randint(0, states.shape[1] - shortest)
            crops.append(states[:, start : start + shortest])
        labels = torch.tensor([speakers[train[index].row["speaker"]] for index in indices])
        crops_BLTD = torch.from_numpy(np.stack(crops)).to(settings.device)
        scored: torch.Tensor = head.margin(head.embedder(crops_BLTD), labels.to(settings.device))
        return scored

    def validate(head: _Verifier) -> float:
        return _outcome([head], valid, validation, trials["valid"], settings.device).score

    fitted = settings.fit(make, loss, validate, train, LEARNING_RATES)

    def measured(
        heads: Sequence[_Verifier], clips: Sequence[Clip], condition: Condition
    ) -> Outcome:
        features = settings.frames(upstream, clips, condition)
        return _outcome(heads, clips, features, trials["test"], settings.device)

    return Scorer(
        upstream,
        lambda clips, condition: {"equal error rate": measured(fitted.heads, clips, condition)},
        fitted.learning_rate,
        chance=0.5,
        per_seed=lambda clips: [measured([head], clips, CLEAN).score for head in fitted.heads],
    )


def _outcome(
    heads: Sequence[_Verifier],
    clips: Sequence[Clip],
    features: FrameFeatures,
    trials: Sequence[Trial],
    device: torch.device,
) -> Outcome:
    """Scores of the trials whose two clips are among `clips`."""
    index_of = {clip.identity: index for index, clip in enumerate(clips)}
    usable = [trial for trial in trials if trial[1] in index_of and trial[2] in index_of]
    rows = []
    for head in heads:
        with torch.no_grad():
            embeddings = [
                head.embedder(torch.from_numpy(features[index])[None].to(device))
                for index in range(len(features))
            ]
        unit = F.normalize(torch.cat(embeddings)).cpu()
        left = unit[[index_of[first] for _, first, _ in usable]]
        right = unit[[index_of[second] for _, _, second in usable]]
        rows.append((left * right).sum(dim=1).numpy())
    return equal_error_outcome(np.array([target for target, _, _ in usable]), np.stack(rows))


def _trials(data: LabelledClips, clips: Sequence[Clip], source: str | None) -> list[Trial]:
    if not source:
        return _drawn(data, clips)
    by_name: dict[str, str] = {}
    for clip in clips:
        name = clip.row.get("utt") or clip.row["path"]
        if by_name.setdefault(name, clip.identity) != clip.identity:
            raise ConfigError(
                f"{data.source} has two clips {name!r}, and {source} names clips",
                "give every clip another utt",
            )
    trials: dict[tuple[str, str], Trial] = {}
    for line, target, first, second in _lines(source):
        for name in (first, second):
            if name not in by_name:
                raise ConfigError(
                    f"{source}, line {line}: there is no clip {name!r} in this part of {data.source}",
                    "trials name clips by the column utt, or by path where there is none",
                )
        if target not in ("0", "1"):
            raise ConfigError(
                f"{source}, line {line}: the target is {target!r}",
                "write 1 for the same speaker, 0 for another",
            )
        trial = (int(target), by_name[first], by_name[second])
        pair = (min(trial[1:]), max(trial[1:]))
        if pair[0] == pair[1] or pair in trials:
            raise ConfigError(
                f"{source}, line {line}: {first!r} and {second!r} are "
                + ("one clip" if pair[0] == pair[1] else "compared a second time"),
                "take the line out; a trial counts once",
            )
        trials[pair] = trial
    if {target for target, _, _ in trials.values()} != {0, 1}:
        raise ConfigError(
            f"the trials {source} are not of both kinds ({len(trials)} of them)",
            "an error rate needs pairs of one speaker and pairs of two",
        )
    return list(trials.values())


def _lines(source: str) -> Iterator[tuple[int, str, str, str]]:
    """Number, target and two names of each line of a CSV of trials."""
    try:
        if not Path(source).is_file():
            raise OSError(None, "it is not a file")
        with Path(source).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            lacking = {"target", "utt1", "utt2"} - set(reader.fieldnames or ())
            if lacking:
                raise ValueError(f"it has no column {min(lacking)!r}")
            for row in reader:
                fields = [(row[name] or "").strip() for name in ("target", "utt1", "utt2")]
                yield reader.line_num, fields[0], fields[1], fields[2]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(
            f"the trials {source} cannot be read: {first_line(error)}",
            "give a CSV with target, utt1, utt2",
        ) from error


def _drawn(data: LabelledClips, clips: Sequence[Clip]) -> list[Trial]:
    """Up to `PAIRS` trials of each kind, always the same ones."""
    draw = random.Random(0)
    by_speaker: dict[str, list[Clip]] = {}
    for clip in clips:
        by_speaker.setdefault(clip.row["speaker"], []).append(clip)
    same = [
        (1, first.identity, second.identity)
        for group in by_speaker.values()
        for first, second in combinations(group, 2)
    ]
    if not same or len(by_speaker) < 2:
        raise ConfigError(
            f"a part of {data.source} has no two speakers with two clips",
            "trials need a pair of each kind; add clips, or give --trials",
        )
    same = draw.sample(same, min(PAIRS, len(same)))
    names = sorted(by_speaker)
    other = []
    for _ in same:
        first, second = draw.sample(names, 2)
        other.append(
            (
                0,
                draw.choice(by_speaker[first]).identity,
                draw.choice(by_speaker[second]).identity,
            )
        )
    return same + other
