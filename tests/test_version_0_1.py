"""Folders and files that version 0.1 wrote: they go on meaning what they meant, through every verb.

The fixture is `golden/version_0_1`, with numbers that 0.1 computed. Through the command line and the public
functions wherever these reach, so that the code behind them may change.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoModelForCTC, AutoTokenizer

import sslim
from sslim.backbone.exported import ExportedModel
from sslim.cli import run
from sslim.errors import ConfigError
from sslim.plan import PruningPlan
from sslim.report.inspect import inspect_model
from tests.conftest import REPOSITORY
from tests.sounds import labelled

FIXTURE = REPOSITORY / "tests" / "golden" / "version_0_1"
NAMES = ("hubert", "wavlm", "wav2vec2", "data2vec")
NUMBERS = load_file(FIXTURE / "recorded.safetensors")
AUTO = {name: "AutoModelForCTC" if name == "data2vec" else "AutoModel" for name in NAMES}
OUTCOME = {name: "logits" if name == "data2vec" else "last_hidden_state" for name in NAMES}
CLOSE = 1e-5
FEW_UPDATES = [
    "seconds_per_update=2",
    "seconds_per_batch=1",
    "audio.min_seconds=0.2",
    "audio.max_seconds=1",
    "stage1.updates=4",
    "stage2.updates=2",
    "workers=0",
    "precision=float32",
]

LOAD_ELSEWHERE = """
import sys
import torch, transformers
from safetensors.numpy import load_file, save_file
inputs = torch.from_numpy(load_file("recorded.safetensors")["waveforms"][:1])
found = {}
for argument in sys.argv[1:]:
    folder, auto = argument.split(":")
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
    with torch.no_grad():
        output = model(inputs, output_hidden_states=True)
    found[folder] = torch.stack(output.hidden_states)[:, 0].numpy()
save_file(found, "found.safetensors")
assert "sslim" not in sys.modules
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the fixture to read from; a test that writes into a folder copies it once more."""
    folder = tmp_path_factory.mktemp("version") / "0_1"
    shutil.copytree(FIXTURE, folder)
    return folder


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    draw = np.random.default_rng(0)
    for index in range(6):
        noise = 0.1 * draw.standard_normal(5000 + 400 * index)
        soundfile.write(folder / f"{index}.wav", noise, 16_000)
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded waveform as a file that loses nothing."""
    path = tmp_path_factory.mktemp("recording") / "waveform.wav"
    soundfile.write(path, NUMBERS["waveforms"][0], 16_000, subtype="FLOAT")
    return path


@torch.no_grad()
def states(model: Any, waveform: np.ndarray = NUMBERS["waveforms"][0]) -> np.ndarray:
    """(layers + 1, frames, width) of a waveform that is given to the model as it is."""
    output = model(torch.from_numpy(waveform)[None], output_hidden_states=True)
    return torch.stack(output.hidden_states)[:, 0].numpy()


def states_of_audio(folder: Path) -> np.ndarray:
    """Those of the recorded waveform as audio, which some models want normalised first."""
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    assert settings["do_normalize"] is (folder.name in ("wav2vec2", "data2vec"))
    if not settings["do_normalize"]:
        return NUMBERS[f"{folder.name}.hidden_states"]
    waveform = NUMBERS["waveforms"][0]
    normal = (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
    return states(sslim.load(folder), normal)


def difference(found: np.ndarray, name: str) -> float:
    """The largest difference from what version 0.1 recorded."""
    recorded = NUMBERS[name]
    assert found.shape == recorded.shape
    assert float(np.abs(recorded).max()) > 0.5, "the recording says something"
    return float(np.abs(found - recorded).max())


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of a command that must be refused."""
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line


def done(*arguments: str | Path) -> None:
    assert run([str(argument) for argument in arguments]) == 0


def facts_of(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "sslim.json").read_text())
    return facts


def plan_of(folder: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((folder / "config.json").read_text())["plan"]
    return plan


def with_a_spoilt_weight(folder: Path, out: Path) -> Path:
    """A copy in which one number of the first convolution is another."""
    shutil.copytree(folder, out)
    weights = load_file(out / "model.safetensors")
    name = next(name for name in sorted(weights) if name.endswith("conv_layers.0.conv.weight"))
    weights[name].flat[0] += 0.1
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


# --- what a folder is -----------------------------------------------------------------------------


def test_the_fixture_holds_what_it_is_for() -> None:
    plan = plan_of(FIXTURE / "hubert")["layers"]
    for kind in ("heads", "ffn"):
        kept = [layer[kind] for layer in plan]
        assert None in kept, "a block is gone"
        assert [] in kept, "a block is emptied and a constant"
        assert any(kept), "a block keeps units"
    heads = [layer["heads"] for layer in plan_of(FIXTURE / "wavlm")["layers"]]
    assert heads[0] is None
    assert [1] in heads, "the second head's column of the position bias, not the first's"
    for name in NAMES:
        assert "files" not in facts_of(FIXTURE / name), "as version 0.1 wrote it"
    whole = sum(path.stat().st_size for path in FIXTURE.rglob("*") if path.is_file())
    assert whole < 2**20


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_computes_what_it_computed(name: str, saved: Path) -> None:
    model = sslim.load(saved / name)
    assert difference(states(model), f"{name}.hidden_states") < CLOSE
    outcome = OUTCOME[name]
    with torch.no_grad():
        found = model(torch.from_numpy(NUMBERS["waveforms"][:1]))[outcome][0].numpy()
    assert difference(found, f"{name}.{outcome}") < CLOSE


@pytest.mark.parametrize("name", NAMES)
def test_a_spoilt_folder_does_not(name: str, saved: Path, tmp_path: Path) -> None:
    """The corrupted twin."""
    model = sslim.load(with_a_spoilt_weight(saved / name, tmp_path / name))
    assert difference(states(model), f"{name}.hidden_states") > 10 * CLOSE


def test_another_head_of_the_same_count_is_another_model(saved: Path, tmp_path: Path) -> None:
    """The corrupted twin of the plan: WavLM must know which heads were kept."""
    shutil.copytree(saved / "wavlm", tmp_path / "wavlm")
    config = json.loads((tmp_path / "wavlm" / "config.json").read_text())
    layer = next(layer for layer in config["plan"]["layers"] if layer["heads"] == [1])
    layer["heads"] = [0]
    (tmp_path / "wavlm" / "config.json").write_text(json.dumps(config))
    found = states(sslim.load(tmp_path / "wavlm"))
    assert difference(found, "wavlm.hidden_states") > 10 * CLOSE


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_padded_batch_computes_what_it_computed(name: str, saved: Path) -> None:
    model = sslim.load(saved / name)
    lengths = torch.from_numpy(NUMBERS["lengths"])
    waveforms = torch.from_numpy(NUMBERS["waveforms"])
    mask = (torch.arange(waveforms.shape[1]) < lengths[:, None]).long()
    found = model(waveforms, mask)[OUTCOME[name]].numpy()
    frames = model._get_feat_extract_output_lengths(lengths).tolist()
    assert frames[0] > frames[1] > 0
    for row, count in enumerate(frames):
        recorded = NUMBERS[f"{name}.padded"][row, :count]
        assert np.abs(found[row, :count] - recorded).max() < CLOSE


@torch.no_grad()
def test_a_head_and_its_tokenizer_are_kept(saved: Path) -> None:
    for model in (
        sslim.load(saved / "data2vec"),
        AutoModelForCTC.from_pretrained(saved / "data2vec"),
    ):
        logits = model(torch.from_numpy(NUMBERS["waveforms"][:1])).logits[0].numpy()
        assert difference(logits, "data2vec.logits") < CLOSE
    tokenizer = AutoTokenizer.from_pretrained(saved / "data2vec")
    assert tokenizer.decode(tokenizer("bad")["input_ids"]) == "bad"


@pytest.mark.parametrize("name", NAMES)
def test_auto_classes_load_it_beside_sslim(name: str, saved: Path) -> None:
    model = {"AutoModel": AutoModel, "AutoModelForCTC": AutoModelForCTC}[AUTO[name]]
    loaded = model.from_pretrained(saved / name)
    assert type(loaded).__module__ == "sslim.backbone.modeling_sslim"
    assert difference(states(loaded), f"{name}.hidden_states") < CLOSE


def test_auto_classes_load_it_without_sslim(saved: Path, tmp_path: Path) -> None:
    """By the model code of version 0.1 that lies in the folder; a spoilt folder is told apart there, too."""
    for name in NAMES:
        shutil.copytree(saved / name, tmp_path / name)
    with_a_spoilt_weight(saved / "hubert", tmp_path / "spoilt")
    shutil.copyfile(FIXTURE / "recorded.safetensors", tmp_path / "recorded.safetensors")
    wanted = [*(f"{name}:{AUTO[name]}" for name in NAMES), "spoilt:AutoModel"]
    environment = {
        "PATH": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"],
    }
    process = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, *wanted],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = load_file(tmp_path / "found.safetensors")
    for name in NAMES:
        assert difference(found[name], f"{name}.hidden_states") < CLOSE
    assert difference(found["spoilt"], "hubert.hidden_states") > 10 * CLOSE


# --- its plan and its counts ----------------------------------------------------------------------


def test_a_plan_is_read(saved: Path) -> None:
    written = json.loads((saved / "plan.json").read_text())
    shape = inspect_model(saved / "hubert").shape
    plan = PruningPlan.from_dict(written, shape)
    assert [layer.heads for layer in plan.layers] == [None, (1,), None, (0,), None, ()]
    assert [layer.ffn for layer in plan.layers] == [None, None, (1,), (), None, None]
    assert [list(kept) for kept in plan.conv] == written["conv"]
    assert plan == PruningPlan.from_dict(plan_of(saved / "hubert"), shape)
    other = json.loads((saved / "plan.json").read_text())
    other["layers"][5]["heads"] = None  # gone is not the same as emptied
    assert plan != PruningPlan.from_dict(other, shape)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_counted_as_it_was(name: str, saved: Path, tmp_path: Path) -> None:
    done("inspect", saved / name, "--json", tmp_path / "counts.json")
    counts = json.loads((tmp_path / "counts.json").read_text())
    for key in ("parameters", "dense_parameters", "macs_per_second", "dense_macs_per_second"):
        # Version 0.1 rounded one division for the whole, inspect sums its parts.
        assert counts[key] == pytest.approx(facts_of(saved / name)["result"][key], abs=10)
    plan = plan_of(saved / name)
    assert [row["channels"] for row in counts["convolutions"]] == [len(c) for c in plan["conv"]]
    assert [row["kept_heads"] for row in counts["layers"]] == [r["heads"] for r in plan["layers"]]
    model = sslim.load(saved / name)
    backbone = getattr(model, "data2vec_audio", model)
    assert sum(p.numel() for p in backbone.parameters()) == counts["parameters"]


# --- the other verbs ------------------------------------------------------------------------------


def test_evaluate(saved: Path, tmp_path: Path) -> None:
    clips = labelled(tmp_path / "clips", clips=60, classes=3)
    done(
        *("evaluate", saved / "hubert", saved / "wavlm", saved / "hubert.onnx", "--task", "ks"),
        *("--data", clips, "--seeds", "1", "--learning-rates", "0.01", "--device", "cpu"),
        *("--cache", tmp_path / "cache", "--json", tmp_path / "ks.json"),
    )
    rows = json.loads((tmp_path / "ks.json").read_text())["results"]
    assert len(rows) == 3
    for row, name in zip(rows, ("hubert", "wavlm", "hubert"), strict=True):
        assert row["parameters"] == facts_of(saved / name)["result"]["parameters"]
        assert 0.0 <= row["score"] <= 1.0
    assert rows[0]["score"] == pytest.approx(rows[2]["score"], abs=0.2), "model and its export"


def test_embed(saved: Path, recording: Path, tmp_path: Path) -> None:
    for model in (*NAMES, "hubert.onnx"):
        done("embed", saved / model, recording, tmp_path / model, "--layer", "all")
        features = np.load(tmp_path / model / "waveform.npz")["features"]  # (frames, layers, width)
        expected = states_of_audio(saved / model.removesuffix(".onnx"))
        assert np.abs(features.swapaxes(0, 1) - expected).max() < 10 * CLOSE
    done("embed", saved / "hubert", recording, tmp_path / "last")
    features = np.load(tmp_path / "last" / "waveform.npz")["features"]
    assert difference(features, "hubert.last_hidden_state") < CLOSE


def test_features_begun_by_0_1_are_not_gone_on_with(
    saved: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (saved / "embedded" / "embed.json").read_bytes()
    line = refusal(capsys, "embed", saved / "hubert", recording, saved / "embedded", "--resume")
    assert "computation is" in line
    assert "another folder" in line
    assert (saved / "embedded" / "embed.json").read_bytes() == before


@pytest.mark.parametrize("name", NAMES)
def test_export(name: str, saved: Path, audio: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / name, tmp_path / name)  # a card gets a line about the file
    done("export", tmp_path / name, tmp_path / "m.onnx", "--all-layers", "--audio", audio)
    found = of_file(tmp_path / "m.onnx")
    assert np.abs(found - states_of_audio(saved / name)).max() < 10 * CLOSE


def test_report_and_checklist(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are written; what 0.1 measured carries no identity of its computation and is named, not used."""
    shutil.copytree(saved / "hubert", tmp_path / "hubert")
    done("report", tmp_path / "hubert")
    page = (tmp_path / "hubert" / "report.html").read_text()
    assert "24.9%" in page
    assert "hubert-teacher" in page
    capsys.readouterr()
    done("checklist", tmp_path / "hubert")
    said = capsys.readouterr().err
    for file in ("bench.json", "ks.json"):
        assert f"{file} was made by another version of the computation: measure again." in said
        assert file in page


def test_verify_says_that_nothing_is_recorded(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Version 0.1 wrote no checksums; the same model written by `convert` has them."""
    for name in NAMES:
        line = refusal(capsys, "verify", saved / name)
        assert "names no files, as those of sslim 0.1.0 and before" in line
    done("convert", saved / "wavlm", tmp_path / "again")
    done("verify", tmp_path / "again")
    found = states(sslim.load(tmp_path / "again"))
    assert difference(found, "wavlm.hidden_states") < CLOSE


def test_runs(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    done("runs", saved, "--json")
    rows = json.loads(capsys.readouterr().out)
    listed = {Path(row["folder"]).name: row for row in rows}
    assert set(listed) == set(NAMES)
    assert {(row["state"], row["stage"]) for row in rows} == {("finished", "stage2")}
    assert {(row["update"], row["updates"]) for row in rows} == {(4, 4)}


# --- compressing again ----------------------------------------------------------------------------


def inside(smaller: dict[str, Any], larger: dict[str, Any]) -> bool:
    """Whether a plan keeps only what another keeps, in the numbering of the dense model."""

    def within(ours: list[int] | None, theirs: list[int] | None) -> bool:
        return ours is None or (theirs is not None and set(ours) <= set(theirs))

    return all(map(within, smaller["conv"], larger["conv"])) and all(
        within(ours[kind], theirs[kind])
        for ours, theirs in zip(smaller["layers"], larger["layers"], strict=True)
        for kind in ("heads", "ffn")
    )


@pytest.mark.parametrize("name", ["hubert", "wavlm", "data2vec"])
def test_it_is_a_teacher(name: str, saved: Path, audio: Path, tmp_path: Path) -> None:
    result = sslim.compress(
        saved / name,
        audio,
        tmp_path / "out",
        params="85%",
        settings=FEW_UPDATES,
        device="cpu",
        progress=False,
    )
    before = facts_of(saved / name)["result"]
    assert result.dense_parameters == before["parameters"], (
        "what it is compared with is its teacher"
    )
    limit = int(0.85 * before["parameters"])
    assert 0.9 * limit < result.parameters <= limit
    assert inside(plan_of(tmp_path / "out"), plan_of(saved / name))
    assert not inside(plan_of(saved / name), plan_of(tmp_path / "out"))
    model = sslim.load(tmp_path / "out")
    assert states(model).shape == NUMBERS[f"{name}.hidden_states"].shape
    assert (tmp_path / "out" / "vocab.json").is_file() is (name == "data2vec")


def test_a_run_of_0_1_is_not_gone_on_with(saved: Path, audio: Path) -> None:
    before = (saved / "wavlm" / "run" / "run.json").read_bytes()
    with pytest.raises(ConfigError, match=r"started by sslim 0\.1\.0, which computes other numb"):
        sslim.compress(saved / "hubert", audio, saved / "wavlm", resume=True, progress=False)
    assert (saved / "wavlm" / "run" / "run.json").read_bytes() == before


def test_a_run_of_0_1_is_replaced_where_that_is_asked_for(
    saved: Path, audio: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved / "hubert", tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    sslim.compress(
        saved / "wavlm",
        audio,
        tmp_path / "out",
        params="90%",
        settings=[*FEW_UPDATES, "stage2.updates=0"],
        device="cpu",
        force=True,
        progress=False,
    )
    assert facts_of(tmp_path / "out")["result"]["family"] == "wavlm"
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "out" / "evidence" / "ks.json").is_file()
    done("verify", tmp_path / "out")


# --- the files that 0.1 exported ------------------------------------------------------------------


def of_file(path: Path) -> np.ndarray:
    return ExportedModel(path, threads=1)([NUMBERS["waveforms"][0]])["hidden_states"][:, 0]


def test_an_exported_file_computes_what_it_computed(saved: Path, tmp_path: Path) -> None:
    found = of_file(saved / "hubert.onnx")
    assert difference(found, "hubert.onnx") < CLOSE
    assert difference(found, "hubert.hidden_states") < 10 * CLOSE
    proto = onnx.load(saved / "hubert.onnx")
    weight = max(proto.graph.initializer, key=lambda entry: len(entry.raw_data))
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(values + np.float32(0.001), weight.name))
    onnx.save(proto, tmp_path / "spoilt.onnx")
    assert difference(of_file(tmp_path / "spoilt.onnx"), "hubert.onnx") > 10 * CLOSE


def test_an_int8_file_computes_what_it_computed(saved: Path) -> None:
    """In the last bits it depends on the processor (those without VNNI saturate), so by cosine."""
    found, recorded = of_file(saved / "hubert-int8.onnx"), NUMBERS["hubert-int8.onnx"]
    assert found.shape == recorded.shape

    def cosine(left: np.ndarray, right: np.ndarray) -> float:
        return float((left * right).sum() / np.linalg.norm(left) / np.linalg.norm(right))

    assert cosine(found, recorded) > 0.999
    assert cosine(found, np.roll(recorded, 1, axis=1)) < 0.999
    exact = NUMBERS["hubert.hidden_states"]
    assert 1e-4 < np.abs(found - exact).max() < 0.5, "it is int8"


def test_the_references_file_comes_back(saved: Path, tmp_path: Path) -> None:
    done("convert", saved / "hubert.pth", tmp_path / "back")
    found = states(sslim.load(tmp_path / "back"))
    assert difference(found, "hubert.hidden_states") < CLOSE
