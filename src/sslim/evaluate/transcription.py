"""Phonemes, words and slots: a sequence of tokens per clip, learned with CTC (SUPERB's PR, ASR, SF)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from sslim.backbone.frozen import Frozen
from sslim.errors import ConfigError
from sslim.evaluate.clips import Clip, LabelledClips
from sslim.evaluate.features import FrameFeatures
from sslim.evaluate.fitting import layer_statistics, padded
from sslim.evaluate.heads import FrameHead, RecurrentHead, WeightedSum
from sslim.evaluate.metrics import characters, edits, slot_type_counts, slot_value_edits
from sslim.evaluate.outcome import Outcome, ratio_outcome
from sslim.evaluate.scorer import CLEAN, Condition, Scorer, Settings
from sslim.plan import SAMPLING_RATE

MARK = re.compile(r"</?[^<>]+>")
CtcHead = FrameHead | RecurrentHead
Counts = Callable[[str, str], tuple[int, int]]


@dataclass(frozen=True)
class Transcription:
    """What is written down, and how it is judged.

    Args:
        column: where the CSV holds it.
        tokens: text -> tokens.
        text: tokens -> text.
        metrics: name -> (reference, hypothesis) -> (numerator, denominator).
        recurrent: whether the head has LSTMs.
        learning_rates: to choose from.
        chance: the main metric of a model that says nothing.
    """

    column: str
    tokens: Callable[[str], list[str]]
    text: Callable[[Sequence[str]], str]
    metrics: dict[str, Counts]
    recurrent: bool
    learning_rates: tuple[float, ...]
    chance: float


def _letters(text: str) -> list[str]:
    return characters(" ".join(text.split()))


def _marked(text: str) -> list[str]:
    """Characters, and each slot mark as one token."""
    tokens, position = [], 0
    text = " ".join(text.split())
    for mark in MARK.finditer(text):
        tokens += [*characters(text[position : mark.start()]), mark.group()]
        position = mark.end()
    return tokens + characters(text[position:])


def _joined(tokens: Sequence[str]) -> str:
    return "".join(tokens).replace("_", " ")


PHONES = Transcription(
    "phones",
    str.split,
    " ".join,
    {
        "phone error rate": lambda reference, hypothesis: edits(
            reference.split(), hypothesis.split()
        )
    },
    recurrent=False,
    learning_rates=(1e-3, 1e-2),
    chance=1.0,
)
WORDS = Transcription(
    "text",
    _letters,
    _joined,
    {"word error rate": lambda reference, hypothesis: edits(reference.split(), hypothesis.split())},
    recurrent=True,
    learning_rates=(3e-4, 1e-3),
    chance=1.0,
)
SLOTS = Transcription(
    "text",
    _marked,
    _joined,
    {"slot-type F1": slot_type_counts, "slot-value CER": slot_value_edits},
    recurrent=True,
    learning_rates=(3e-4, 1e-3),
    chance=0.0,
)


def fit_transcriber(
    upstream: Frozen, data: LabelledClips, settings: Settings, transcription: Transcription
) -> Scorer:
    """Heads that write down what `transcription` names, decoded greedily, without a language model.

    Raises:
        ConfigError: the column is missing or empty for a clip, or has no slot where slots are asked for.
        AudioError, TeacherError: a clip or the model cannot be used.
    """
    data.need(transcription.column)
    parts = {name: data.part(name) for name in ("train", "valid", "test")}
    for clip in (clip for clips in parts.values() for clip in clips):
        if not transcription.tokens(clip.row[transcription.column]):
            raise ConfigError(
                f"{clip.identity} of {data.source} has nothing in its column {transcription.column!r}",
                "write it down, or take the row out of its part",
            )
    if transcription is SLOTS and not any(MARK.search(clip.row["text"]) for clip in parts["test"]):
        raise ConfigError(
            f"no text of {data.source} has a slot", "mark slots as <name>words</name> in the text"
        )
    vocabulary = sorted(
        {
            token
            for clip in parts["train"]
            for token in transcription.tokens(clip.row[transcription.column])
        }
    )
    numbers = {token: index + 1 for index, token in enumerate(vocabulary)}  # 0 is CTC's blank
    targets = [
        torch.tensor(
            [numbers[token] for token in transcription.tokens(clip.row[transcription.column])]
        )
        for clip in parts["train"]
    ]
    fits = [
        len(tokens) <= upstream.frames(round(clip.utterance.seconds * SAMPLING_RATE))
        for clip, tokens in zip(parts["train"], targets, strict=True)
    ]
    if 2 * sum(fits) < len(fits):  # CTC learns nothing from the others, and would not say so
        raise ConfigError(
            f"{len(fits) - sum(fits)} of {len(fits)} training texts of {data.source} have more tokens than "
            f"{upstream.name} has frames for them",
            "check that texts belong to their clips",
        )
    features = {name: settings.frames(upstream, parts[name], CLEAN) for name in ("train", "valid")}
    statistics = layer_statistics(features["train"])

    def make() -> CtcHead:
        below = WeightedSum(*statistics)
        if not transcription.recurrent:
            return FrameHead(below, upstream.width, len(vocabulary) + 1)
        hidden = settings.schedule.hidden or 1024
        return RecurrentHead(below, upstream.width, len(vocabulary) + 1, hidden)

    def loss(head: CtcHead, indices: list[int]) -> torch.Tensor:
        states, lengths = padded([features["train"][index] for index in indices], settings.device)
        log_probabilities = head(states, lengths).log_softmax(-1).transpose(0, 1)
        spoken = [targets[index] for index in indices]
        return F.ctc_loss(
            log_probabilities,
            torch.cat(spoken).to(settings.device),
            lengths,
            torch.tensor([len(target) for target in spoken]),
            zero_infinity=True,
        )

    main = next(iter(transcription.metrics))

    def validate(head: CtcHead) -> float:
        outcome = score(head, parts["valid"], features["valid"])[main].score
        return -outcome if main == "slot-type F1" else outcome

    def read(head: CtcHead, frames: FrameFeatures) -> list[str]:
        texts = []
        for start in range(0, len(frames), settings.schedule.batch):
            indices = range(start, min(len(frames), start + settings.schedule.batch))
            states, lengths = padded([frames[index] for index in indices], settings.device)
            with torch.no_grad():
                best = head(states, lengths).argmax(-1)
            for row, length in zip(best.tolist(), lengths.tolist(), strict=True):
                texts.append(transcription.text(_collapsed(row[:length], vocabulary)))
        return texts

    def score(head: CtcHead, clips: Sequence[Clip], frames: FrameFeatures) -> dict[str, Outcome]:
        return _outcomes(transcription, clips, [read(head, frames)])

    fitted = settings.fit(make, loss, validate, parts["train"], transcription.learning_rates)

    def outcomes(clips: Sequence[Clip], condition: Condition) -> dict[str, Outcome]:
        frames = settings.frames(upstream, clips, condition)
        return _outcomes(transcription, clips, [read(head, frames) for head in fitted.heads])

    def per_seed(clips: Sequence[Clip]) -> list[float]:
        frames = settings.frames(upstream, clips, CLEAN)
        return [score(head, clips, frames)[main].score for head in fitted.heads]

    return Scorer(upstream, outcomes, fitted.learning_rate, transcription.chance, per_seed)


def _outcomes(
    transcription: Transcription, clips: Sequence[Clip], texts: Sequence[Sequence[str]]
) -> dict[str, Outcome]:
    """Counts per clip, a row per seed."""
    names = [clip.identity for clip in clips]
    outcomes = {}
    for metric, count in transcription.metrics.items():
        counts = np.array(
            [
                [
                    count(clip.row[transcription.column], text)
                    for clip, text in zip(clips, row, strict=True)
                ]
                for row in texts
            ],
            dtype=float,
        )
        outcomes[metric] = ratio_outcome(counts[..., 0], counts[..., 1], names)
    return outcomes


def _collapsed(path: Sequence[int], vocabulary: Sequence[str]) -> list[str]:
    """Greedy CTC: repetitions once, blanks out."""
    kept = [now for before, now in zip([0, *path], path, strict=False) if now != before and now]
    return [vocabulary[number - 1] for number in kept]
