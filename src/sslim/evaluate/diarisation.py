"""Speaker diarisation (SUPERB's SD): who speaks when, two speakers, overlaps included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sslim.backbone.frozen import Frozen
from sslim.errors import ConfigError, first_line
from sslim.evaluate.clips import Clip, LabelledClips
from sslim.evaluate.features import FrameFeatures
from sslim.evaluate.fitting import layer_statistics, padded
from sslim.evaluate.heads import DiarisationHead, WeightedSum
from sslim.evaluate.outcome import Outcome, ratio_outcome
from sslim.evaluate.scorer import CLEAN, Condition, Scorer, Settings

LEARNING_RATES = (3e-4, 1e-3)
SPEAKERS = 2
BEYOND = 0.5
"""Seconds by which a segment may end after its recording, where times were rounded or padding was cut off."""
MEDIAN = 11
"""Frames of the median filter over decisions, as in SUPERB."""

Segment = tuple[float, float, str]
"""Start and end in seconds, and the speaker."""


def fit_diariser(upstream: Frozen, data: LabelledClips, settings: Settings) -> Scorer:
    """An LSTM that says for each frame which of two speakers is active, whichever comes first.

    The column `rttm` names an RTTM file per recording (its second field is not looked at where it holds one
    recording). Option: `collar` in seconds around each boundary that is not scored (0).

    Raises:
        ConfigError: an RTTM file is missing or unreadable, has other than one or two speakers, or speaks of
            times that its recording does not have.
    """
    data.need("rttm")
    train, valid = data.part("train"), data.part("valid")
    folder = Path(data.source).parent
    # SUPERB has one file per part, so each is read once.
    files = {name: read_rttm(folder / name) for name in {clip.row["rttm"] for clip in data.clips}}
    segments = {
        clip.identity: _segments(files[clip.row["rttm"]], folder / clip.row["rttm"], clip)
        for clip in data.clips
    }
    collar = float(settings.options.get("collar", 0.0))
    training = settings.frames(upstream, train, CLEAN)
    validation = settings.frames(upstream, valid, CLEAN)
    statistics = layer_statistics(training)
    seconds_per_frame = upstream.hop / 16_000

    def make() -> DiarisationHead:
        hidden = settings.schedule.hidden or 512
        return DiarisationHead(WeightedSum(*statistics), upstream.width, SPEAKERS, hidden)

    def loss(head: DiarisationHead, indices: list[int]) -> torch.Tensor:
        states, lengths = padded([training[index] for index in indices], settings.device)
        logits = head(states)
        losses = []
        for row, index, length in zip(logits, indices, lengths.tolist(), strict=True):
            wanted = activity(segments[train[index].identity], length, seconds_per_frame)
            losses.append(
                permutation_loss(row[:length], torch.from_numpy(wanted).to(settings.device))
            )
        return torch.stack(losses).mean()

    def outcome(
        heads: Sequence[DiarisationHead], clips: Sequence[Clip], features: FrameFeatures
    ) -> Outcome:
        return _outcome(
            heads, clips, features, segments, seconds_per_frame, collar, settings.device
        )

    def validate(head: DiarisationHead) -> float:
        return outcome([head], valid, validation).score

    fitted = settings.fit(make, loss, validate, train, LEARNING_RATES)

    def measured(
        heads: Sequence[DiarisationHead], clips: Sequence[Clip], condition: Condition
    ) -> Outcome:
        features = settings.frames(upstream, clips, condition)
        return outcome(heads, clips, features)

    silent = [
        _errors(segments[clip.identity], [], collar, clip.utterance.seconds)
        for clip in data.part("test")
    ]
    return Scorer(
        upstream,
        lambda clips, condition: {
            "diarisation error rate": measured(fitted.heads, clips, condition)
        },
        fitted.learning_rate,
        chance=sum(wrong for wrong, _ in silent) / max(1e-9, sum(total for _, total in silent)),
        per_seed=lambda clips: [measured([head], clips, CLEAN).score for head in fitted.heads],
    )


def permutation_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy under the better order of speakers (Fujita et al. 2019). Both (T, S)."""
    losses = [
        F.binary_cross_entropy_with_logits(logits, wanted[:, list(order)])
        for order in permutations(range(wanted.shape[1]))
    ]
    return torch.stack(losses).min()


def activity(segments: Sequence[Segment], frames: int, seconds_per_frame: float) -> np.ndarray:
    """(frames, speakers) float32: 1 where the middle of a frame lies in a speaker's segment."""
    names = sorted({name for _, _, name in segments})
    active = np.zeros((frames, SPEAKERS), dtype=np.float32)
    times = (np.arange(frames) + 0.5) * seconds_per_frame
    for start, end, name in segments:
        active[(times >= start) & (times < end), names.index(name)] = 1.0
    return active


def segments_of(active: np.ndarray, seconds_per_frame: float) -> list[Segment]:
    """Decisions (frames, speakers) as segments."""
    segments: list[Segment] = []
    for speaker in range(active.shape[1]):
        edges = np.diff(np.concatenate([[0], active[:, speaker].astype(int), [0]]))
        for start, end in zip(np.flatnonzero(edges > 0), np.flatnonzero(edges < 0), strict=True):
            segments.append(
                (float(start) * seconds_per_frame, float(end) * seconds_per_frame, str(speaker))
            )
    return segments


def read_rttm(path: Path) -> dict[str, list[Segment]]:
    """The segments of each recording of a file (NIST RTTM: SPEAKER file channel start duration ... name).

    Raises:
        ConfigError: the file cannot be read, or a time in it is none.
    """
    files: dict[str, list[Segment]] = {}
    try:
        if not path.is_file():
            raise OSError(None, "it is not a file")
        with path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                fields = line.split()
                if fields[:1] == ["SPEAKER"]:
                    if len(fields) < 8:
                        raise ValueError(f"line {number} has {len(fields)} fields")
                    start, duration = float(fields[3]), float(fields[4])
                    if not (0 <= start < math.inf and 0 <= duration < math.inf):
                        raise ValueError(f"line {number}: {fields[3]} and {fields[4]} are no times")
                    segments = files.setdefault(fields[1], [])
                    if duration > 0:
                        segments.append((start, start + duration, fields[7]))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as RTTM: {first_line(error)}",
            "give lines SPEAKER file 1 start duration <NA> <NA> speaker",
        ) from error
    return files


def _segments(files: dict[str, list[Segment]], path: Path, clip: Clip) -> list[Segment]:
    """A recording's own segments; where the file has one recording its name is not looked at."""
    if len(files) == 1:
        segments = next(iter(files.values()))
    else:
        segments = files.get(clip.row.get("utt") or Path(clip.row["path"]).stem, [])
    latest = max((end for _, end, _ in segments), default=0.0)
    if latest > clip.utterance.seconds + BEYOND:
        raise ConfigError(
            f"{path} speaks of {latest:.2f} s, {clip.identity} has {clip.utterance.seconds:.2f} s",
            "times are seconds from the clip's own start",
        )
    speakers = {name for _, _, name in segments}
    if not 1 <= len(speakers) <= SPEAKERS:
        raise ConfigError(
            f"{path} has {len(speakers)} speakers for {clip.identity}",
            f"diarisation is scored with one or {SPEAKERS}",
        )
    return segments


def _outcome(
    heads: Sequence[DiarisationHead],
    clips: Sequence[Clip],
    features: FrameFeatures,
    segments: dict[str, list[Segment]],
    seconds_per_frame: float,
    collar: float,
    device: torch.device,
) -> Outcome:
    from scipy.signal import medfilt

    counts = []
    for head in heads:
        row = []
        for index, clip in enumerate(clips):
            with torch.no_grad():
                logits = head(torch.from_numpy(features[index])[None].to(device))[0]
            decided = (logits > 0).float().cpu().numpy()
            window = min(MEDIAN, len(decided) - 1 + len(decided) % 2)
            smooth = np.stack([medfilt(one, window) for one in decided.T], axis=1)
            row.append(
                _errors(
                    segments[clip.identity],
                    segments_of(smooth, seconds_per_frame),
                    collar,
                    clip.utterance.seconds,
                )
            )
        counts.append(row)
    table = np.array(counts, dtype=float)
    return ratio_outcome(table[..., 0], table[..., 1], [clip.identity for clip in clips])


def _errors(
    reference: Sequence[Segment], hypothesis: Sequence[Segment], collar: float, seconds: float
) -> tuple[float, float]:
    """Seconds of missed, false and confused speech, and of speech: their ratio is the DER."""
    from pyannote.core import Segment as Stretch
    from pyannote.core import Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    # pyannote's collar is the whole width around a boundary, NIST's one side of it.
    metric = DiarizationErrorRate(collar=2.0 * collar)
    parts: dict[str, Any] = metric(
        _annotation(reference),
        _annotation(hypothesis),
        uem=Timeline([Stretch(0.0, seconds)]),
        detailed=True,
    )
    wrong = sum(parts[name] for name in ("missed detection", "false alarm", "confusion"))
    return wrong, parts["total"]


def _annotation(segments: Sequence[Segment]) -> Any:
    from pyannote.core import Annotation
    from pyannote.core import Segment as Stretch

    annotation = Annotation()
    for track, (start, end, name) in enumerate(segments):
        annotation[Stretch(start, end), track] = name
    return annotation
