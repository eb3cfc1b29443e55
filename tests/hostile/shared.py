"""What every case may read: a tiny teacher, some speech with labels, a finished run, an exported file."""

from __future__ import annotations

from pathlib import Path

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
        soundfile.write(folder / "speech" / name, speech(5 * word + number // 20, 0.4), 16_000)
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
    """What the program itself makes: `run` (a finished run), `model.onnx` and its JSON."""
    box = Box(root, folder)
    for words in (
        ["compress", "{teacher}", "{speech}", str(root / "run"), *TINY],
        ["export", "{teacher}", str(root / "model.onnx"), "--audio", "{speech}"],
    ):
        outcome = warm.run(box, box.words(tuple(words)))
        assert outcome.code == 0, outcome.stderr
    (root / "run").rename(folder / "run")
    for name in ("model.onnx", "model.onnx.json"):
        (root / name).rename(folder / name)
