"""Makes the folders, files and numbers beside this file with sslim 0.1. See README.md for the command.

Everything is written by the command line of version 0.1, in a temporary folder with relative names, so that
nothing tells where it was made. It refuses to run with any other code than that of 0.1.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.numpy import save_file
from transformers import (
    AutoModel,
    AutoModelForCTC,
    Data2VecAudioConfig,
    HubertConfig,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    WavLMConfig,
)

import sslim
from sslim.cli import run

HERE = Path(__file__).resolve().parent
RATE = 16_000
SAMPLES = 3200
SHORTER = 2500
"""Samples of the second utterance of the padded batch."""
LETTERS = "abcdefgh"
BLOCKS = ("attention_block", "ffn_block")
COMMON: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "conv_dim": (8, 6, 8, 6, 8, 6, 8),
    "num_conv_pos_embedding_groups": 4,
    "num_conv_pos_embeddings": 8,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
}


def teacher(folder: str, config: Any, auto: Any = AutoModel, seed: int = 0) -> None:
    """A random teacher whose every weight, norm and bias is random and non-trivial."""
    torch.manual_seed(seed)
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("original0"):
                parameter.mul_(0.5 + torch.rand_like(parameter))
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1.0 + 0.2 * torch.randn_like(parameter))
            elif parameter.dim() == 1 or "const" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif parameter.dim() == 2:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    model.save_pretrained(folder)


def make_teachers() -> None:
    """One of each family, one with a head and its tokenizer, one with layer norms in the front-end."""
    few = COMMON | {"intermediate_size": 6}  # so that whole blocks are emptied
    teacher("hubert-teacher", HubertConfig(**few, num_hidden_layers=6))
    buckets = {"num_buckets": 16, "max_bucket_distance": 30}
    teacher("wavlm-teacher", WavLMConfig(**COMMON, **buckets, num_hidden_layers=3), seed=1)
    normed = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
    teacher("wav2vec2-teacher", Wav2Vec2Config(**COMMON, **normed, num_hidden_layers=3), seed=2)
    (Path("wav2vec2-teacher") / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "feature_extractor_type": "Wav2Vec2FeatureExtractor",
                "feature_size": 1,
                "sampling_rate": RATE,
                "do_normalize": True,
                "padding_side": "right",
                "padding_value": 0.0,
                "return_attention_mask": True,
            }
        )
    )
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4}
    vocabulary |= {letter: 5 + index for index, letter in enumerate(LETTERS)}
    sizes = COMMON | {"num_conv_pos_embeddings": 2, "vocab_size": len(vocabulary)}
    config = Data2VecAudioConfig(**sizes, num_hidden_layers=3)
    teacher("data2vec-teacher", config, AutoModelForCTC, seed=3)
    Path("vocab.json").write_text(json.dumps(vocabulary))
    Wav2Vec2CTCTokenizer("vocab.json").save_pretrained("data2vec-teacher")


def make_audio() -> None:
    """Noise to train on, and chords with labels for a score."""
    draw = np.random.default_rng(0)
    Path("audio").mkdir()
    for index in range(6):
        noise = 0.1 * draw.standard_normal(5000 + 400 * index)
        soundfile.write(f"audio/{index}.wav", noise, RATE)
    Path("labelled").mkdir()
    rows = []
    for index in range(30):
        times = np.arange(RATE // 5) / RATE
        chord = np.sin(2 * np.pi * (200.0, 500.0, 1100.0)[index % 3] * times)
        soundfile.write(
            f"labelled/{index:02}.wav", 0.1 * chord + 0.01 * draw.standard_normal(len(times)), RATE
        )
        part = ("train", "valid", "test")[index // 3 % 3]
        row = {"path": f"{index:02}.wav", "label": f"word{index % 3}", "split": part}
        rows.append(row | {"speaker": f"s{index // 3}"})
    with open("labelled/clips.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def sslim_does(*arguments: str) -> None:
    """Runs a command of version 0.1."""
    code = run(arguments)
    if code != 0:
        raise SystemExit(f"sslim {' '.join(arguments)}: exit code {code}")


def plan_of(folder: str) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text())["plan"]
    return plan


def compress(
    name: str, params: str, units: str, rate: float, wanted: Callable[[dict[str, Any]], bool]
) -> None:
    """Compresses NAME-teacher to NAME, with one seed after the other until the plan is a wanted one.

    Gates decide in ten updates, so they learn at a high rate; which units go depends on the last digits.
    """
    settings = {
        "seconds_per_update": "2",
        "seconds_per_batch": "1",
        "audio.min_seconds": "0.2",
        "audio.max_seconds": "1",
        "stage1.updates": "10",
        "stage1.gate_learning_rate": str(rate),
        "stage2.updates": "4",
        "workers": "0",
        "log_every": "4",
        "precision": "float32",
        "units": units,
    }
    for seed in range(40):
        options = [f"--set={key}={value}" for key, value in (settings | {"seed": seed}).items()]
        sslim_does(
            *("compress", f"{name}-teacher", "audio", name, f"--params={params}", "--device=cpu"),
            *(*options, "--force"),
        )
        if wanted(plan_of(name)):
            (Path(name) / "report.html").unlink()  # megabytes of plotly, and nothing reads it
            return
    raise SystemExit(f"no seed gave {name} a plan as it is wanted")


def has_every_state(plan: dict[str, Any]) -> bool:
    """Of both kinds of blocks: one is gone, one is emptied and a constant, one keeps units."""
    return all(
        {"gone" if kept is None else "some" if kept else "emptied" for kept in states}
        == {"gone", "some", "emptied"}
        for states in zip(
            *((layer["heads"], layer["ffn"]) for layer in plan["layers"]), strict=True
        )
    )


def lost_its_first_attention(plan: dict[str, Any]) -> bool:
    """The table of relative positions has to outlive the layer that it stands in elsewhere."""
    heads = [layer["heads"] for layer in plan["layers"]]
    return heads[0] is None and any(heads)


def make_models() -> None:
    every = f"conv,head,ffn,{','.join(BLOCKS)}"
    compress("hubert", "25%", every, 1.0, has_every_state)
    compress("wavlm", "50%", every, 1.0, lost_its_first_attention)
    compress("wav2vec2", "50%", "conv,head,ffn", 0.1, lambda plan: True)
    compress("data2vec", "60%", "conv,head,ffn", 0.1, lambda plan: True)
    Path("plan.json").write_text(json.dumps(plan_of("hubert")) + "\n")


def make_files() -> None:
    """What the other verbs wrote: exports, evidence, features, a converted folder."""
    for format, file in (
        ("onnx", "hubert.onnx"),
        ("onnx-int8", "hubert-int8.onnx"),
        ("dphubert", "hubert.pth"),
    ):
        options = ("--force", "--min-cosine=0.9") if format == "onnx-int8" else ()
        every = () if format == "dphubert" else ("--all-layers",)
        sslim_does(
            "export", "hubert", file, f"--format={format}", "--audio=audio", *every, *options
        )
    sslim_does(
        *(
            "evaluate",
            "hubert-teacher",
            "hubert",
            "fbank",
            "--task=ks",
            "--data=labelled/clips.csv",
        ),
        *(
            "--seeds=1",
            "--learning-rates=0.01",
            "--device=cpu",
            "--cache=cache",
            "--json=hubert/evidence/ks.json",
        ),
    )
    sslim_does(
        *("bench", "hubert-teacher", "hubert", "--seconds=1", "--repeats=1", "--runtime=torch"),
        "--json=hubert/evidence/bench.json",
    )
    sslim_does("embed", "hubert", "audio/0.wav", "embedded")


def waveforms() -> np.ndarray:
    """(2, SAMPLES): noise with a slope, and noise that ends at SHORTER and is padded."""
    draw = np.random.default_rng(7)
    made = 0.3 * draw.standard_normal((2, SAMPLES)) * np.linspace(0.2, 1.0, SAMPLES)
    made[1, SHORTER:] = 0.0
    return made.astype(np.float32)


@torch.no_grad()
def record() -> dict[str, np.ndarray]:
    """Numbers of version 0.1: hidden states, what comes out, a padded batch, exported files."""
    from sslim.backbone.exported import ExportedModel

    both = waveforms()
    numbers = {"waveforms": both, "lengths": np.array([SAMPLES, SHORTER])}
    mask = torch.ones(2, SAMPLES, dtype=torch.long)
    mask[1, SHORTER:] = 0
    for name in ("hubert", "wavlm", "wav2vec2", "data2vec"):
        model = sslim.load(name)
        alone = model(torch.from_numpy(both[:1]), output_hidden_states=True)
        padded = model(torch.from_numpy(both), mask, output_hidden_states=True)
        numbers[f"{name}.hidden_states"] = torch.stack(alone.hidden_states)[:, 0].numpy()
        # What comes out: pre-norm encoders have a last norm after their last hidden state.
        outcome = "logits" if "logits" in alone else "last_hidden_state"
        numbers[f"{name}.{outcome}"] = alone[outcome][0].numpy()
        numbers[f"{name}.padded"] = padded[outcome].numpy()
    for name in ("hubert", "hubert-int8"):
        file = ExportedModel(f"{name}.onnx", threads=1)
        numbers[f"{name}.onnx"] = file([both[0]])["hidden_states"][:, 0]
    return numbers


def main() -> None:
    if importlib.util.find_spec("sslim.layout") is not None or sslim.__version__ != "0.1.0":
        raise SystemExit(f"{sslim.__file__} is not sslim 0.1; see README.md for the command")
    platform.node = lambda: "a-machine"  # a run writes down the name of its machine
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        make_audio()
        make_teachers()
        make_models()
        make_files()
        save_file(record(), "recorded.safetensors")
        for name in ("hubert", "wavlm", "wav2vec2", "data2vec", "embedded"):
            shutil.rmtree(HERE / name, ignore_errors=True)
            shutil.copytree(name, HERE / name)
        files = [path for path in Path().iterdir() if path.is_file() and path.name != "vocab.json"]
        for path in files:
            shutil.copyfile(path, HERE / path.name)
        os.chdir(HERE)


if __name__ == "__main__":
    sys.exit(main())
