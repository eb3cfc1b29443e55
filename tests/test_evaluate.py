"""Evaluation: every task can tell a good model from a broken one, and luck from knowledge."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from sslim.demo import teacher_path
from sslim.evaluate.features import FeatureStore
from sslim.evaluate.fitting import Schedule
from sslim.evaluate.run import Evaluation, evaluate
from sslim.evaluate.scorer import Settings
from sslim.evaluate.tasks import TASKS
from tests import sounds

MADE: dict[str, Callable[[Path], Path]] = {
    "ks": sounds.labelled,
    "ic": sounds.labelled,
    "er": sounds.labelled,
    "sid": sounds.voices,
    "pr": sounds.spoken,
    "asr": sounds.spoken,
    "sf": lambda folder: sounds.spoken(folder, slots=True),
    "asv": sounds.voices,
    "sd": sounds.dialogues,
    "qbe": sounds.terms,
}
SPLITS = {"sid": "inside"}
QUICK = Settings(
    seeds=(0,),
    schedule=Schedule(epochs=12, batch=8, patience=12, hidden=32),
    say=lambda line: None,
)
EPOCHS = {"asr": 24, "sf": 24}
"""LSTMs are slow to begin."""
RATES = {"pr": (1e-2,), "asr": (1e-2,), "sf": (1e-2,), "asv": (1e-3,), "sd": (3e-3,)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded teacher with its first layer silenced: it hears nothing."""
    model = AutoModel.from_pretrained(teacher_path())
    with torch.no_grad():
        model.feature_extractor.conv_layers[0].layer_norm.weight.zero_()
    folder = tmp_path_factory.mktemp("broken")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("made")

    def make(task: str) -> Path:
        folder = root / task
        return folder / "clips.csv" if folder.exists() else MADE[task](folder)

    return make


def run(
    task: str, models: list[str | Path], data: Path, cache: FeatureStore, **more: object
) -> Evaluation:
    schedule = replace(QUICK.schedule, epochs=EPOCHS.get(task, QUICK.schedule.epochs))
    settings = replace(QUICK, store=cache, learning_rates=RATES.get(task, ()), schedule=schedule)
    return evaluate(
        models,
        task,
        data,
        split_column=SPLITS.get(task, "split"),
        settings=settings,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("task", list(TASKS))
def test_a_broken_model_scores_lower(
    task: str, made: Callable[[str], Path], broken: Path, cache: FeatureStore
) -> None:
    found = run(task, [teacher_path(), broken], made(task), cache)
    good, bad = found.results
    sign = 1.0 if good.higher_is_better else -1.0
    assert sign * (good.score - bad.score) > 0.1, (good.score, bad.score)
    assert sign * (good.score - good.chance) > 0.1
    assert good.difference == 0.0
    assert bad.difference == pytest.approx(bad.score - good.score)
    low, high = good.interval
    assert low <= good.score <= high
    assert json.loads(json.dumps(found.to_dict()))["results"][1]["model"] == bad.model


@pytest.mark.parametrize("task", [task for task in TASKS if task != "qbe"])
def test_random_labels_give_chance(
    task: str, made: Callable[[str], Path], cache: FeatureStore
) -> None:
    honest = run(task, [teacher_path()], made(task), cache).results[0]
    found = run(task, [teacher_path()], made(task), cache, random_labels=True).results[0]
    sign = 1.0 if found.higher_is_better else -1.0
    assert sign * (honest.score - found.score) > 0.1
    if found.metric == "accuracy":
        # Each class learns some class's name; with six of them one or two are right by luck.
        assert found.score < found.chance + 0.2
    elif task not in ("asv", "sf"):
        assert found.score > 0.4 * found.chance
    # asv: trials are not shuffled, and a network that learned nothing of voices still tells them apart, at 19
    # to 21% equal error here, by processor: shuffled labels show what learning adds, not chance.
