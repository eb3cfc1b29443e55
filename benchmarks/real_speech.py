"""What compression costs on real speech: both stages on unlabelled audio, then SUPERB-like tasks.

    python benchmarks/real_speech.py SPEECH TEACHER OUT [--json FILE] [--updates 1200 600] [--tasks ...]
        [--ablation]

SPEECH is a folder with `manifest.csv` (columns path, start, end, split, sid_split, corpus, label, speaker,
text, phones) and trials; TEACHER a model folder. Prints one table: the teacher; its 25% student; a
distillation-only student of the same size after as many updates; log-mel features; with --ablation also the
same run with a student that does not shrink while it trains. Students that OUT holds are not trained again,
so tasks (and with --models their rows) can be run a few at a time, also side by side.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
from pathlib import Path
from typing import Any

import torch

from sslim.backbone.loading import load_model
from sslim.backbone.units import plan_of, shape_of
from sslim.demo.baseline import distil_only
from sslim.evaluate.features import FeatureStore
from sslim.evaluate.fitting import Schedule
from sslim.evaluate.run import evaluate
from sslim.evaluate.scorer import Settings
from sslim.plan import MACS_SECONDS
from sslim.recipes import resolve
from sslim.story import compress
from sslim.version import versions

TASKS = {
    "KS English": ("ks", "split", {"corpus": "speech_commands_v2_test"}, {}),
    "KS Arabic": ("ks", "split", {"corpus": "arabic_speech_commands"}, {}),
    "ER": ("er", "split", {"corpus": "ravdess"}, {}),
    "SID Arabic": ("sid", "sid_split", {"corpus": "arabic_speech_commands"}, {}),
    "SID": ("sid", "sid_split", {"corpus": "speechocean762"}, {}),
    "ASV": (
        "asv",
        "split",
        {"corpus": "speechocean762"},
        {"hidden": 256, "epochs": 6, "batch": 32},
    ),
    "PR": ("pr", "split", {"corpus": "speechocean762"}, {"epochs": 12, "batch": 32}),
    "ASR": (
        "asr",
        "split",
        {"corpus": "speechocean762"},
        {"hidden": 128, "epochs": 8, "batch": 16},
    ),
}
"""Name -> task, split column, rows, and what is smaller than SUPERB's so that two cores finish it."""
ABLATION = "not shrinking"
RATES = {"asv": (1e-3,), "pr": (3e-3,), "asr": (2e-3,)}
"""For heads over frames one learning rate, the same for every model: a search would take hours here."""


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
    speech: Path, models: dict[str, str | Path], name: str, seeds: int, cache: Path
) -> dict[str, Any]:
    """Everything that `sslim evaluate` says of the models on a task, the teacher first."""
    task, split, where, schedule = TASKS[name]
    pooled = task not in RATES
    trials = {
        option: str(speech / f"asv_trials_{part}.csv")
        for option, part in (("trials", "test"), ("valid_trials", "valid"))
    }
    settings = Settings(
        store=FeatureStore(cache, 40 * 2**30),
        seeds=tuple(range(seeds if pooled else 1)),
        learning_rates=RATES.get(task, ()),
        schedule=Schedule(**schedule),
        options=trials if task == "asv" else {},
        say=lambda line: print(f"  {line}", flush=True),
    )
    evaluation = evaluate(
        list(models.values()),
        task,
        speech / "manifest.csv",
        where=where,
        split_column=split,
        settings=settings,
        allow_leaks=task == "sid",
    )
    facts = evaluation.to_dict()
    facts["data"]["source"] = "manifest.csv"
    for label, row in zip(models, facts["results"], strict=True):
        row["model"] = label
        low, high = row["interval"]
        print(
            f"{name:12} {label:18} {row['metric']} {100 * row['score']:.1f} "
            f"({100 * low:.1f} to {100 * high:.1f})",
            flush=True,
        )
    return facts


def same_student(earlier: dict[str, Any] | None, now: dict[str, Any]) -> bool:
    """Whether a student of an earlier run is the one of this run: the seeds are fixed, so training it again
    gives the same sizes and the same distance to the teacher."""
    if earlier is None or earlier["parameters"] != now["parameters"]:
        return False
    cosines = [facts.get("cosine_by_layer", {}) for facts in (earlier, now)]
    return cosines[0].keys() == {str(layer) for layer in cosines[1]} and all(
        abs(cosines[0][str(layer)] - cosine) < 1e-6 for layer, cosine in cosines[1].items()
    )


def kept(path: Path, students: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What an earlier run, or one beside this, says of the same students: their costs and finished tasks."""
    if not path.is_file():
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if not all(same_student(earlier["students"].get(name), students[name]) for name in students):
        return {}
    return {"students": students | earlier["students"], "tasks": earlier["tasks"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--updates", type=int, nargs=2, default=(1200, 600))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--models", nargs="+", help="these only, beside the teacher")
    parser.add_argument("--ablation", action="store_true", help="also a student that never shrinks")
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
    runs = {"student": [], ABLATION: ["stage1.shrink_chances=0"]}
    if not arguments.ablation:
        del runs[ABLATION]
    for name, changes in runs.items():
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
    models: dict[str, str | Path] = {"teacher": arguments.teacher}
    models |= {name: facts.pop("folder") for name, facts in students.items()}
    models["fbank"] = "fbank"
    if arguments.models:
        models = {name: models[name] for name in ("teacher", *arguments.models)}
    command = (
        "python benchmarks/real_speech.py SPEECH TEACHER OUT "
        f"--updates {arguments.updates[0]} {arguments.updates[1]} --seeds {arguments.seeds}"
        f"{' --ablation' if arguments.ablation else ''}"
    )
    facts = {
        "command": command,
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": versions(),
        "settings": settings,
        "students": students,
        "tasks": {},
    }
    for task in arguments.tasks:
        evaluation = scores(
            arguments.speech, models, task, arguments.seeds, arguments.out / "features"
        )
        if arguments.json:
            # Read at the last moment: other tasks may be running beside this one.
            record = facts | kept(arguments.json, students)
            rows = {row["model"]: row for row in record["tasks"].get(task, {}).get("results", ())}
            rows |= {row["model"]: row for row in evaluation["results"]}
            record["tasks"] = record["tasks"] | {
                task: evaluation | {"results": list(rows.values())}
            }
            arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
