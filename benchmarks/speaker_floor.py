"""Why hand-made spectral statistics beat a small teacher at telling speakers apart.

    python benchmarks/speaker_floor.py SPEECH TEACHER [--every 2]

For log-mel features and for each hidden state of TEACHER: accuracy of a logistic regression on the mean over
time (what SUPERB's head sees), and on mean and deviation (what the hand-made floor uses), over every n-th
clip of the Arabic speech commands.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sslim.backbone.frozen import Frozen
from sslim.evaluate.clip_table import read_clips
from sslim.evaluate.clips import Clip
from sslim.evaluate.upstream import open_upstream


def statistics(upstream: Frozen, clips: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation over time, (clips, layers, width) each."""
    states = [upstream.hidden_states(clip.waveform()[None])[0] for clip in clips]
    return np.stack([x.mean(axis=1) for x in states]), np.stack([x.std(axis=1) for x in states])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("teacher")
    parser.add_argument("--every", type=int, default=2)
    arguments = parser.parse_args()
    data = read_clips(
        arguments.speech / "manifest.csv",
        where={"corpus": "arabic_speech_commands"},
        split_column="sid_split",
    )
    train, test = (data.part(name)[:: arguments.every] for name in ("train", "test"))
    speakers = [[clip.row["speaker"] for clip in clips] for clips in (train, test)]

    def accuracy(seen: np.ndarray, unseen: np.ndarray) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 200 iterations are enough to compare
            return 100 * float(model.fit(seen, speakers[0]).score(unseen, speakers[1]))

    for name in ("fbank", arguments.teacher):
        upstream = open_upstream(name)
        (mean, spread), (test_mean, test_spread) = (
            statistics(upstream, clips) for clips in (train, test)
        )
        both, test_both = (
            np.concatenate(pair, axis=2) for pair in ((mean, spread), (test_mean, test_spread))
        )
        for layer in range(upstream.layers):
            print(
                f"{upstream.name:10} hidden state {layer}: mean "
                f"{accuracy(mean[:, layer], test_mean[:, layer]):.1f}, mean and deviation "
                f"{accuracy(both[:, layer], test_both[:, layer]):.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
