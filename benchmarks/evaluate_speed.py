"""How fast evaluation is: audio seconds per second of extraction, and seconds per probe.

    python benchmarks/evaluate_speed.py [MODEL ...] [--clips 512] [--seconds 1] [--json FILE]

Without a MODEL: HuBERT Base and its 25%, with random weights (what they cost does not depend on those).
Clips are noise, all of the given length, as Speech Commands' are. The table says how long the full training
set of Speech Commands (51,088 clips of 1 s, 14.2 h) would take at that pace. Then the LSTMs of speech
recognition and slot filling, forward and backward over 16 clips of 4 s, against torch's packed ones, in turn.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from train_speed import SHAPES, dense_model, settled_plan

from sslim.backbone.saving import save_folder
from sslim.device import device_name
from sslim.evaluate.heads import BidirectionalLSTM
from sslim.evaluate.probe import LEARNING_RATES, fit_heads
from sslim.evaluate.upstream import open_upstream
from sslim.prune.surgery import cut
from sslim.version import versions

TRAINING_SET = 51_088
BATCH_SECONDS = 16.0


def random_models(folder: Path) -> list[str]:
    """HuBERT Base and a quarter of it, as folders."""
    dense = dense_model(SHAPES["base"])
    folders = []
    for name, model in (
        ("HuBERT Base", dense),
        ("a quarter of it", cut(dense, settled_plan(dense))),
    ):
        save_folder(folder / name, model, normalise=False)
        folders.append(str(folder / name))
    return folders


def recurrent_steps(hidden: int, rounds: int) -> dict[str, Any]:
    """Seconds of the LSTMs' forward and backward, ours and torch's packed ones, and their ratio."""
    torch.manual_seed(0)
    states = torch.randn(16, 200, hidden, requires_grad=True)
    lengths = torch.randint(180, 201, (16,))
    ours = BidirectionalLSTM(hidden, hidden)
    packed = nn.LSTM(hidden, hidden, num_layers=2, bidirectional=True, batch_first=True)

    def packed_step() -> None:
        clips = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
        packed(clips)[0].data.sum().backward()

    seconds: dict[str, list[float]] = {"ours": [], "packed": []}
    for turn in range(rounds + 1):  # the first is not counted
        for name, step in (
            ("ours", lambda: ours(states, lengths).sum().backward()),
            ("packed", packed_step),
        ):
            began = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    ratios = [slow / fast for fast, slow in zip(seconds["ours"], seconds["packed"], strict=True)]
    return {
        "hidden": hidden,
        "seconds": {name: round(float(np.median(values)), 3) for name, values in seconds.items()},
        "packed_over_ours": round(float(np.median(ratios)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    draw = np.random.default_rng(0)
    samples = round(16_000 * arguments.seconds)
    rows_at_once = max(1, int(BATCH_SECONDS / arguments.seconds))
    batch = (0.1 * draw.standard_normal((rows_at_once, samples))).astype(np.float32)
    rows = []
    temporary = tempfile.TemporaryDirectory()
    for name in arguments.models or random_models(Path(temporary.name)):
        for precision in ("float32", "bfloat16"):
            upstream = open_upstream(name, precision=precision)
            upstream.hidden_states(batch)
            paces = []
            for _ in range(arguments.rounds):
                began = time.perf_counter()
                done = 0
                while done < arguments.clips:
                    upstream.hidden_states(batch).mean(axis=2)
                    done += rows_at_once
                paces.append(done * arguments.seconds / (time.perf_counter() - began))
            pace = float(np.median(paces))
            began = time.perf_counter()
            features = draw.standard_normal(
                (2 * arguments.clips, upstream.layers, upstream.width)
            ).astype(np.float32)
            labels = draw.integers(0, 12, (len(features), 1))
            training = (features[: arguments.clips], labels[: arguments.clips])
            validation = (features[arguments.clips :], labels[arguments.clips :])
            began = time.perf_counter()
            fit_heads(training, validation, (12,), seeds=(0,), learning_rates=LEARNING_RATES[:1])
            probe = time.perf_counter() - began
            minutes = TRAINING_SET / pace / 60
            rows.append(
                {
                    "model": upstream.name,
                    "precision": precision,
                    "parameters": upstream.parameters,
                    "audio_seconds_per_second": round(pace, 1),
                    "spread": [round(min(paces), 1), round(max(paces), 1)],
                    "seconds_per_head": round(probe, 2),
                    "head_clips": arguments.clips,
                    "speech_commands_minutes": round(minutes, 1),
                }
            )
            print(
                f"{upstream.name:24} {precision:9} {upstream.parameters:>11,} parameters  "
                f"{pace:7.1f} s of audio per s  probe {probe:5.2f} s on {arguments.clips} clips  "
                f"Speech Commands in {minutes:.1f} min",
                flush=True,
            )
    lstms = [recurrent_steps(hidden, arguments.rounds) for hidden in (128, 256)]
    for row in lstms:
        print(
            f"two bidirectional LSTMs of {row['hidden']}: {row['seconds']['ours']:.3f} s per step, packed "
            f"{row['packed_over_ours']:.1f} times as long",
            flush=True,
        )
    if arguments.json:
        facts = {
            "command": f"python benchmarks/evaluate_speed.py MODEL... --clips {arguments.clips} "
            f"--seconds {arguments.seconds:g}",
            "hardware": f"{device_name(torch.device('cpu'))}, {platform.machine()}",
            "versions": versions(),
            "rows": rows,
            "lstms": lstms,
        }
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
