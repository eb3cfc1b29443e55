"""Fidelity without labels: how close a student's layers are to its teacher's on any audio."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sslim.audio import Utterance, load_audio
from sslim.backbone.frozen import Frozen
from sslim.errors import TeacherError
from sslim.measurements import Fidelity, LayerFidelity, WorstClip


class _Alignment:
    """Linear CKA over frames that pass by once: sums of outer products are all it needs."""

    def __init__(self, width: int, other: int) -> None:
        self.count = 0
        self.sums = np.zeros(width), np.zeros(other)
        self.products = np.zeros((width, width)), np.zeros((other, other)), np.zeros((width, other))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        self.count += len(x)
        self.sums[0][:] += x.sum(axis=0)
        self.sums[1][:] += y.sum(axis=0)
        for total, product in zip(self.products, (x.T @ x, y.T @ y, x.T @ y), strict=True):
            total += product

    def value(self) -> float:
        first, second = (total / self.count for total in self.sums)
        within = self.products[0] - self.count * np.outer(first, first)
        other = self.products[1] - self.count * np.outer(second, second)
        across = self.products[2] - self.count * np.outer(first, second)
        scale = np.linalg.norm(within) * np.linalg.norm(other)
        return float(np.linalg.norm(across) ** 2 / scale) if scale > 0 else float("nan")


def fidelity(
    teacher: Frozen,
    student: Frozen,
    utterances: Sequence[Utterance],
    *,
    worst: int = 10,
    on_progress: Callable[[int, int], None] | None = None,
) -> Fidelity:
    """Compares all hidden states on `utterances`.

    Raises:
        TeacherError: the models differ in layers, width or hop, so that nothing can be compared, or one gives
            values that are not finite.
        AudioError: an utterance cannot be decoded.
    """
    ours, theirs = ((model.layers, model.width, model.hop) for model in (student, teacher))
    if ours != theirs:
        raise TeacherError(
            f"{student.name} has {ours[0]} hidden states of width {ours[1]}, {teacher.name} has "
            f"{theirs[0]} of {theirs[1]}",
            "compare a student with the teacher it was made from",
        )
    alignments = [_Alignment(teacher.width, student.width) for _ in range(teacher.layers)]
    cosines = np.zeros(teacher.layers)
    distances = np.zeros(teacher.layers)
    scales = np.zeros(teacher.layers)
    frames, seconds = 0, 0.0
    ranked: list[tuple[str, float]] = []
    for number, utterance in enumerate(utterances):
        waveform = load_audio(utterance)
        wanted, got = (model.hidden_states(waveform[None])[0] for model in (teacher, student))
        for model, states in ((teacher, wanted), (student, got)):
            if not np.isfinite(states).all():
                raise TeacherError(
                    f"{model.name} gives values that are not finite for {utterance.identity}",
                    "check the model's weights",
                )
        wanted, got = wanted.astype(np.float64), got.astype(np.float64)
        lengths = np.linalg.norm(wanted, axis=2) * np.linalg.norm(got, axis=2)
        similar = (wanted * got).sum(axis=2) / np.maximum(lengths, 1e-12)
        cosines += similar.sum(axis=1)
        distances += np.abs(wanted - got).sum(axis=(1, 2))
        scales += np.abs(wanted).sum(axis=(1, 2))
        for alignment, x, y in zip(alignments, wanted, got, strict=True):
            alignment.add(x, y)
        ranked.append((utterance.identity, float(similar[-1].mean())))
        frames += wanted.shape[1]
        seconds += utterance.seconds
        if on_progress is not None:
            on_progress(number + 1, len(utterances))
    ranked.sort(key=lambda item: item[1])
    rows = [
        LayerFidelity(
            layer,
            float(cosines[layer] / frames),
            float(distances[layer] / scales[layer]),
            alignments[layer].value(),
        )
        for layer in range(teacher.layers)
    ]
    return Fidelity(
        model=student.name,
        layers=tuple(rows),
        utterances=len(utterances),
        seconds=seconds,
        worst=tuple(WorstClip(name, cosine) for name, cosine in ranked[:worst]),
        fingerprint=student.fingerprint,
        model_fingerprint=student.model_fingerprint,
        teacher_fingerprint=teacher.fingerprint,
        numbers=student.numbers,
    )
