"""What every case may read: a tiny teacher, some speech with labels, a finished run, an exported file."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tests.hostile.box import TINY, Box, speech
from tests.hostile.warm import Warm
from tests.sounds import part_of, write_rows


def make_shared(folder: Path) -> None:
    """The inputs: `teacher` (a tiny HuBERT with its preprocessor) and `speech` (clips with a CSV)."""
    from transformers import Wav2Vec2FeatureExtractor

    from tests.models import tiny_teacher

    tiny_teacher("hubert").save_pretrained(folder / "teacher")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder / "teacher")
    (folder / "speech").mkdir()
    rows = []
    for number in range(40):
        name = f"{number:02}.wav"
        word = number % 2
        noise = 0.01 * np.random.default_rng(number).standard_normal(
            6400
        )  # no two clips are the same
        soundfile.write(folder / "speech" / name, speech(5 * word, 0.4) + noise, 16_000)
        rows.append(
            {
                "path": name,
                "label": f"word{word}",
                "speaker": f"s{number // 4}",
                "split": part_of(number // 4),
                "gender": "fm"[number // 4 % 2],
            }
        )
    write_rows(folder / "speech" / "clips.csv", rows)


def make_results(folder: Path, warm: Warm, root: Path) -> None:
    """What the program makes: `run` (finished), `model.onnx`, `stopped1` and `stopped2` (interrupted)."""
    box = Box(root, folder)
    for words in (
        ["compress", "{teacher}", "{speech}", str(root / "run"), *TINY],
        # Tasks and fidelity read all layers.
        ["export", "{teacher}", str(root / "model.onnx"), "--audio", "{speech}", "--all-layers"],
    ):
        outcome = warm.run(box, box.words(tuple(words)))
        assert outcome.code == 0, outcome.stderr
    for number in (1, 2):
        interrupt_at(box, warm, root / f"stopped{number}", number)
        (root / f"stopped{number}").rename(folder / f"stopped{number}")
    (root / "run").rename(folder / "run")
    for name in ("model.onnx", "model.onnx.json"):
        (root / name).rename(folder / name)


def interrupt_at(box: Box, warm: Warm, out: Path, stage: int) -> None:
    """A run that was interrupted in a stage, with checkpoints to go on from."""
    words = box.words(("{teacher}", "{speech}", str(out), *TINY))
    more = ["--set", "stage1.updates=4", "--set", "stage2.updates=3"]
    outcome = warm.run(
        box, [str(stage), *words, *more], function="tests.hostile.shared:interrupted"
    )
    assert outcome.code == 0, outcome.stderr


def interrupted(stage: str, *words: str) -> None:
    """Compresses until the second checkpoint of a stage was made, then is interrupted; for a child."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        # In stage 2 the numbers begin again, so the first stage's two are passed over.
        if event == "os.rename" and str(arguments[1]).endswith("update-00000002"):
            seen += 1
            if seen == int(stage):
                signal.raise_signal(signal.SIGINT)

    sys.addaudithook(hook)
    from sslim.cli import run

    assert run(["compress", *words]) == 130
