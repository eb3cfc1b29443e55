"""What compression costs on real speech: both stages on unlabelled audio, then probes on four tasks.

    python benchmarks/real_speech.py SPEECH TEACHER OUT [--json FILE] [--updates 1200 600]

SPEECH is a folder with `manifest.csv` (columns path, start, end, split, sid_split, corpus, label, speaker);
TEACHER a model folder. Prints one table: the teacher; its 25% student; the same run with a student that
does not shrink while it trains; a distillation-only student of the same size after as many updates; log-mel
features.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from sslim.backbone.loading import load_model
from sslim.backbone.units import plan_of, shape_of
from sslim.compress import compress
from sslim.demo.baseline import distil_only
from sslim.demo.run import extractor_of
from sslim.evaluate.fbank import log_mel
from sslim.evaluate.probe import LabelledFeatures, pooled_features, probe
from sslim.plan import MACS_SECONDS
from sslim.recipes import resolve
from sslim.train.device import versions

TASKS = {
    "KS English (12)": ("speech_commands_v2_test", "split", "label"),
    "KS Arabic (40)": ("arabic_speech_commands", "split", "label"),
    "ER (8)": ("ravdess", "split", "label"),
    "SID Arabic (25)": ("arabic_speech_commands", "sid_split", "speaker"),
}


def training_manifest(speech: Path, out: Path) -> Path:
    """The training rows without noise, silence and the corpus whose licence forbids commercial use."""
    with (speech / "manifest.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    kept = [
        row
        for row in rows
        if row["split"] == "train"
        and row["label"] not in ("noise", "rir", "_silence_")
        and row["corpus"] != "ravdess"
    ]
    path = out / "train.csv"
    out.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["path", "start", "end"])
        writer.writeheader()
        for row in kept:
            file = str((speech / row["path"]).resolve())
            writer.writerow({"path": file, "start": row["start"], "end": row["end"]})
    return path


def scores(
    speech: Path, extract: Callable[[np.ndarray], np.ndarray], seeds: int
) -> dict[str, dict[str, float]]:
    """Task -> mean and deviation of the test accuracy over seeds, and chance."""
    with (speech / "manifest.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))

    @lru_cache(maxsize=64)
    def decoded(path: str) -> np.ndarray:
        return soundfile.read(speech / path, dtype="float32")[0]

    features: dict[str, np.ndarray] = {}
    found = {}
    for name, (corpus, split, label) in TASKS.items():
        parts = {}
        for part in ("train", "valid", "test"):
            chosen = [row for row in rows if row["corpus"] == corpus and row[split] == part]
            for row in sorted(chosen, key=lambda row: row["path"]):
                if row["utt"] not in features:
                    start = int(row["start"]) if row["start"] else None
                    end = int(row["end"]) if row["end"] else None
                    clip = decoded(row["path"])[start:end]
                    features[row["utt"]] = pooled_features(extract, [clip])[0]
            stacked = np.stack([features[row["utt"]] for row in chosen])
            parts[part] = LabelledFeatures(stacked, [row[label] for row in chosen])
        score = probe(parts["train"], parts["valid"], parts["test"], seeds=range(seeds))
        found[name] = {"mean": score.mean, "deviation": score.std, "chance": score.chance}
        print(f"  {name}: {100 * score.mean:.1f} +- {100 * score.std:.1f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--updates", type=int, nargs=2, default=(1200, 600))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    manifest = training_manifest(arguments.speech, arguments.out)
    settings = [
        "seconds_per_update=28",
        "audio.min_seconds=0.5",
        "audio.max_seconds=3",
        f"stage1.updates={arguments.updates[0]}",
        f"stage2.updates={arguments.updates[1]}",
        "stage1.learning_rate=4e-4",
        # As in the recipe `fast`: fewer updates, larger steps, or the gates do not arrive.
        "stage1.gate_learning_rate=0.06",
        "stage2.learning_rate=2e-4",
    ]
    students: dict[str, dict[str, Any]] = {}
    for name, changes in (("student", []), ("not shrinking", ["stage1.shrink_chances=0"])):
        out = arguments.out / name.replace(" ", "-")
        result = compress(
            arguments.teacher,
            manifest,
            out,
            params="25%",
            settings=[*settings, *changes],
            resume=(out / "run" / "run.json").is_file(),
        )
        print(result.summary_line())
        facts = json.loads((out / "sslim.json").read_text(encoding="utf-8"))["result"]
        students[name] = {
            "folder": out,
            "seconds": round(result.seconds),
            "parameters": result.parameters,
            "dense_parameters": result.dense_parameters,
            "macs_per_second": result.macs_per_second,
            "dense_macs_per_second": result.dense_macs_per_second,
            "cosine_by_layer": {layer: row["cosine"] for layer, row in result.layers.items()},
            "shrinks": facts["shrinks"],
            "seconds_waited_for_audio": round(facts["seconds_waited_for_audio"], 1),
        }
    out = arguments.out / "distillation-only"
    config = resolve("paper", settings=settings, params="25%")
    if not (out / "config.json").is_file():
        limit = students["student"]["dense_parameters"] // 4
        seconds = distil_only(
            arguments.teacher, manifest, out, limit=limit, config=config, where={}
        )
        (out / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
    alone = load_model(out).model
    students["distillation only"] = {
        "folder": out,
        "seconds": round(json.loads((out / "seconds.json").read_text(encoding="utf-8"))),
        "parameters": plan_of(alone).parameters(shape_of(alone)),
        "macs_per_second": round(plan_of(alone).macs(shape_of(alone)) / MACS_SECONDS),
    }
    table = {}
    folders = {"teacher": arguments.teacher}
    folders |= {name: facts.pop("folder") for name, facts in students.items()}
    for name, source in folders.items():
        print(name)
        table[name] = scores(arguments.speech, extractor_of(load_model(source)), arguments.seeds)
    print("log-mel")
    table["log-mel"] = scores(arguments.speech, log_mel, arguments.seeds)
    facts = {
        "command": "python benchmarks/real_speech.py SPEECH TEACHER OUT "
        f"--updates {arguments.updates[0]} {arguments.updates[1]} --seeds {arguments.seeds}",
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": versions(),
        "settings": settings,
        "students": students,
        "accuracy": table,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
