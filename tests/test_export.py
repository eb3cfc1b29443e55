"""Exports: the file computes what the model computes, for every family, length and batch; or says why not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import sslim
from sslim.backbone.exported import ExportedModel
from sslim.backbone.families import build
from sslim.backbone.loaded import LoadedModel
from sslim.backbone.loading import load_model
from sslim.backbone.saving import save_folder
from sslim.cli import run
from sslim.deploy.arithmetic import Float32, Int8
from sslim.deploy.calibration import input_ranges
from sslim.deploy.export import _write, export
from sslim.deploy.foreign import save_dphubert
from sslim.deploy.signals import speech_like
from sslim.deploy.verify import answers
from sslim.errors import AudioError, ExportError, OutputError, TeacherError
from sslim.evaluate.upstream import open_upstream
from sslim.layout import KINDS
from sslim.prune.gates import Gates
from sslim.prune.surgery import cut
from tests.conftest import REPOSITORY
from tests.models import CASES, POSITIONAL_CASES, tiny_teacher
from tests.test_exactness import TAPS, gates_on_taps, random_values
from tests.test_saved_folder import HEAD_CLASSES, HEAD_SETTINGS, supported

LENGTHS = (9000, 4321, 400)
DPHUBERT_KINDS = [kind for kind in KINDS if kind != "tap"]
"""What the reference's classes can be without."""


def loaded_model(
    family: str,
    size: str = "base",
    *,
    pruned: int | None = None,
    kinds: Iterable[str] = KINDS,
    **more: Any,
) -> LoadedModel:
    """A tiny random model of a family, dense or with units of these kinds pruned by a seed."""
    head = more.pop("head", "")
    if head:
        dense = tiny_teacher(family, size, auto=HEAD_CLASSES[head], **HEAD_SETTINGS)
    else:
        dense = tiny_teacher(family, size, **more)
    whole: Any = build(dense.config, dense.state_dict(), head, "test")
    if pruned is not None:
        _, plan = random_values(Gates(whole, kinds), pruned, 0.4)
        whole = cut(whole, plan).eval()
    return LoadedModel(whole, head, size == "large", "test", None, "0" * 64)


def clips(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    return [speech_like(seed)[:length] for seed, length in enumerate(lengths)]


def exported(loaded: LoadedModel, path: Path, *, int8: bool = False) -> ExportedModel:
    """All layers of a model as a file."""
    arithmetic = Int8(input_ranges(loaded, clips((9000, 8000)))) if int8 else Float32()
    _write(loaded, arithmetic, path, True)
    return ExportedModel(path, threads=1)


def folder_of(loaded: LoadedModel, out: Path) -> Path:
    save_folder(
        out,
        loaded.whole,
        normalise=loaded.normalise,
        card="# A model\n",
    )
    return out


@pytest.mark.parametrize("pruned", [None, 3])
@pytest.mark.parametrize(("family", "size"), CASES)
def test_float32_is_the_model_at_every_layer_and_in_any_batch(
    family: str, size: str, pruned: int | None, tmp_path: Path
) -> None:
    loaded = loaded_model(family, size, pruned=pruned)
    file = exported(loaded, tmp_path / "m.onnx")
    together = file(clips())
    for row, clip in enumerate(clips()):
        states, output = answers(loaded, clip)
        frames = states.shape[1]
        assert together["frame_lengths"][row] == frames
        assert np.abs(together["hidden_states"][:, row, :frames] - states.numpy()).max() < 1e-4
        assert np.abs(together["last_hidden_state"][row, :frames] - output.numpy()).max() < 1e-4
        assert not together["last_hidden_state"][row, frames:].any()


@pytest.mark.parametrize("first", range(len(TAPS)), ids=list(TAPS))
@pytest.mark.parametrize(("family", "size"), POSITIONAL_CASES)
def test_a_file_keeps_any_taps_where_they_are(
    family: str, size: str, first: int, tmp_path: Path
) -> None:
    """In float32, and in int8 next to the model's own states; audio of one frame among them."""
    loaded = loaded_model(family, size)
    gated, values, plan = gates_on_taps(loaded.whole, first)
    small = cut(gated.model, plan, gated.folded_state(values.float())).eval()
    loaded = LoadedModel(small, "", False, "test", None, "0" * 64)
    exact, coarse = (
        exported(loaded, tmp_path / "m.onnx", int8=int8)(clips()) for int8 in (False, True)
    )
    for row, clip in enumerate(clips()):
        states, _ = answers(loaded, clip)
        frames = states.shape[1]
        assert np.abs(exact["hidden_states"][:, row, :frames] - states.numpy()).max() < 1e-4
        near = torch.from_numpy(coarse["hidden_states"][0, row, :frames])
        assert float(torch.cosine_similarity(near, states[0], dim=-1).mean()) > 0.99


@pytest.mark.parametrize(("family", "size"), CASES)
def test_int8_is_near_and_a_batch_changes_nothing(family: str, size: str, tmp_path: Path) -> None:
    loaded = loaded_model(family, size)
    file = exported(loaded, tmp_path / "m.onnx", int8=True)
    together = file(clips())
    cosines = []
    for row, clip in enumerate(clips()):
        states, _ = answers(loaded, clip)
        alone = file([clip])["hidden_states"][:, 0]
        frames = states.shape[1]
        assert np.abs(together["hidden_states"][:, row, :frames] - alone).max() < 1e-4
        cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(alone), states, dim=-1)
        cosines.append(cosine)
        assert np.abs(alone - states.numpy()).max() > 1e-4  # it is not float32 in disguise
    assert float(torch.cat(cosines, 1).mean(1).min()) > 0.99


@pytest.mark.parametrize("samples", [400, 401, 719, 720, 16_001, 160_000])
@pytest.mark.parametrize("int8", [False, True])
def test_odd_lengths_and_batches(samples: int, int8: bool, tmp_path: Path) -> None:
    loaded = loaded_model("wavlm")
    file = exported(loaded, tmp_path / "m.onnx", int8=int8)
    clip = speech_like(1, 11.0)[:samples]
    states, _ = answers(loaded, clip)
    for batch in (1, 3, 8):
        found = file([clip] * batch)["hidden_states"]
        assert found.shape == (states.shape[0], batch, *states.shape[1:])
        if not int8:
            assert np.abs(found - states.numpy()[:, None]).max() < 1e-4
        assert np.abs(found - found[:, :1]).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("family", "size"), CASES)
def test_a_minute_of_audio(family: str, size: str, tmp_path: Path) -> None:
    loaded = loaded_model(family, size)
    file = exported(loaded, tmp_path / "m.onnx")
    clip = speech_like(1, 60.0)
    states, _ = answers(loaded, clip)
    assert np.abs(file([clip])["hidden_states"][:, 0] - states.numpy()).max() < 1e-4


@pytest.mark.parametrize("int8", [False, True])
def test_bad_rows_are_nan_and_leave_the_others_alone(int8: bool, tmp_path: Path) -> None:
    """What the file itself does when a program feeds it rubbish."""
    file = exported(loaded_model("hubert", "large"), tmp_path / "m.onnx", int8=int8)
    good = clips((9000,))[0]
    batch = np.stack([good] * 4)
    batch[1, 50] = np.nan
    lengths = np.array([9000, 9000, 399, 9001])
    found = file.session.run(["last_hidden_state"], {"waveform": batch, "lengths": lengths})[0]
    assert np.isfinite(found[0]).all()
    assert np.abs(found[0] - file([good])["last_hidden_state"][0]).max() < 1e-5
    for row in (1, 2, 3):
        assert np.isnan(found[row]).all()
    batch[1, 50] = np.inf
    found = file.session.run(["last_hidden_state"], {"waveform": batch, "lengths": lengths})[0]
    assert np.isnan(found[1]).all()
    # Rubbish in the padding is not even read.
    batch[1, 8000:], lengths[1] = np.nan, 8000
    batch[1, :8000] = good[:8000]
    found = file.session.run(["last_hidden_state"], {"waveform": batch, "lengths": lengths})[0]
    assert np.isfinite(found[1]).all()


@pytest.mark.parametrize(
    ("waveform", "words"),
    [
        (np.zeros(399, np.float32), "too short"),
        (np.full(800, np.nan, np.float32), "NaN"),
        (np.zeros(800), "float64, not float32"),
        (np.zeros(800, np.int16), "int16, not float32"),
        (np.zeros((2, 800), np.float32), r"shape \(2, 800\)"),
    ],
)
def test_bad_audio_is_a_sentence(waveform: np.ndarray, words: str, tmp_path: Path) -> None:
    file = exported(loaded_model("hubert"), tmp_path / "m.onnx")
    with pytest.raises(AudioError, match=words):
        file([waveform])


@pytest.mark.parametrize("head", HEAD_CLASSES)
@pytest.mark.parametrize("family", ["hubert", "wavlm", "data2vec-audio"])
def test_heads(family: str, head: str, tmp_path: Path) -> None:
    if not supported(family, head):
        pytest.skip("transformers has no such model")
    loaded = loaded_model(family, head=head)
    _write(loaded, Float32(), tmp_path / "m.onnx", False)
    file = ExportedModel(tmp_path / "m.onnx")
    pair = clips((9000, 7700))
    together = file(pair)["logits"]
    for row, clip in enumerate(pair):
        _, logits = answers(loaded, clip)
        got = together[row, : len(logits)] if logits.dim() == 2 else together[row]
        assert np.abs(got - logits.numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("hubert", {"conv_pos_batch_norm": True}),
        ("wavlm", {"num_conv_pos_embeddings": 7}),
        ("wav2vec2", {"hidden_act": "relu", "feat_extract_activation": "silu"}),
    ],
)
def test_unusual_settings(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    loaded = loaded_model(family, **changes)
    for int8 in (False, True):
        file = exported(loaded, tmp_path / "m.onnx", int8=int8)
        states, _ = answers(loaded, clips()[0])
        difference = np.abs(file([clips()[0]])["hidden_states"][:, 0] - states.numpy()).max()
        assert difference < (0.5 if int8 else 1e-4)


def test_an_unknown_activation_is_refused(tmp_path: Path) -> None:
    loaded = loaded_model("hubert", hidden_act="mish")
    with pytest.raises(ExportError, match="'mish'"):
        _write(loaded, Float32(), tmp_path / "m.onnx", False)


@pytest.mark.parametrize("format", ["onnx", "onnx-int8", "dphubert"])
def test_the_command(format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = loaded_model("hubert", pruned=3, kinds=DPHUBERT_KINDS)
    model, out = folder_of(loaded, tmp_path / "model"), tmp_path / "file.bin"
    arguments = ["export", str(model), str(out), "--format", format]
    # These weights are random, which quantisation likes less than trained ones.
    assert run([*arguments, "--min-cosine", "0.98"]) == 0
    facts = json.loads((tmp_path / "file.bin.json").read_text())
    assert facts["format"] == format
    assert facts["passed"] is True
    card = (model / "README.md").read_text()
    assert card.count("`file.bin`") == 1
    assert run(arguments) == 2
    assert "file.bin exists" in capsys.readouterr().err
    assert run([*arguments, "--force", "--min-cosine", "0.98"]) == 0
    assert (model / "README.md").read_text().count("`file.bin`") == 1


def test_a_file_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corrupted twin: what is written is not the model that was loaded."""
    model = folder_of(loaded_model("hubert"), tmp_path / "model")
    out = tmp_path / "m.onnx"

    class Wrong(Float32):
        def linear(self, graph: Any, x: str, weight: Any, bias: Any, key: str) -> str:
            return super().linear(graph, x, weight * 1.001, bias, key)

    monkeypatch.setattr("sslim.deploy.export.Float32", Wrong)
    with pytest.raises(ExportError, match=r"m\.onnx was not written: it differs"):
        export(model, out)
    assert not [path for path in tmp_path.iterdir() if path.name != "model"]
    assert not export(model, out, force=True).passed
    assert out.exists()


def test_int8_below_the_threshold_is_not_written(tmp_path: Path) -> None:
    model = folder_of(loaded_model("hubert"), tmp_path / "model")
    with pytest.raises(ExportError, match="has a cosine of"):
        export(model, tmp_path / "m.onnx", format="onnx-int8", min_cosine=0.99999)


def test_float32_needs_standard_operators_only(tmp_path: Path) -> None:
    """So that other runtimes, such as a browser's, can open it."""
    onnx = pytest.importorskip("onnx")
    loaded = loaded_model("wavlm")
    _write(loaded, Float32(), tmp_path / "m.onnx", True)
    model = onnx.load(tmp_path / "m.onnx")
    assert {entry.domain for entry in model.opset_import} == {""}


def test_labels_score_the_model_and_the_file(tmp_path: Path) -> None:
    model = folder_of(loaded_model("hubert"), tmp_path / "model")
    rows = ["path,label,speaker,split"]
    for number in range(16):
        file = tmp_path / f"{number}.wav"
        own = np.random.default_rng(number).normal(scale=1e-3, size=16_000)  # no two are the same
        soundfile.write(file, speech_like(number % 2, 1.0) + own, 16_000)
        rows.append(
            f"{file},{'ab'[number % 2]},{number},{('train', 'valid', 'test')[number // 2 % 3]}"
        )
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    made = export(model, tmp_path / "m.onnx", labels=tmp_path / "clips.csv")
    assert made.probe is not None
    assert made.probe.model == made.probe.file == 1.0
    assert json.loads((tmp_path / "m.onnx.json").read_text())["probe"]["task"] == "ks"


def test_what_cannot_be_exported_is_a_sentence(tmp_path: Path) -> None:
    model = folder_of(loaded_model("data2vec-audio"), tmp_path / "model")
    with pytest.raises(ExportError, match="knows no data2vec-audio"):
        export(model, tmp_path / "m.pth", format="dphubert")
    fewer = folder_of(loaded_model("hubert", pruned=1, kinds=("tap",)), tmp_path / "fewer")
    with pytest.raises(ExportError, match="it always has all positional taps"):
        export(fewer, tmp_path / "m.pth", format="dphubert")
    assert not (tmp_path / "m.pth").exists()
    with pytest.raises(OutputError, match="is a folder"):
        export(model, tmp_path)
    assert run(["export", str(model), str(tmp_path / "m.onnx"), "--format", "tflite"]) == 2
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(TeacherError, match="cannot be opened"):
        ExportedModel(tmp_path / "broken.onnx")


@pytest.mark.parametrize("family", ["hubert", "wavlm", "wav2vec2"])
@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_dphubert_files_read_back_as_the_same_model(
    family: str, size: str, seed: int, tmp_path: Path
) -> None:
    loaded = loaded_model(family, size, pruned=seed, kinds=DPHUBERT_KINDS)
    save_dphubert(loaded, tmp_path / "m.pth")
    renamed = (tmp_path / "m.pth").rename(tmp_path / f"{family}.pth")  # the name tells wav2vec 2.0
    again = load_model(renamed)
    assert again.normalise is loaded.normalise
    clip = clips()[0]
    assert float((answers(again, clip)[0] - answers(loaded, clip)[0]).abs().max()) < 1e-5


@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_dphubert_files_keep_what_emptied_blocks_add(family: str, tmp_path: Path) -> None:
    """The reference would drop their biases, and WavLM's position bias with the first attention block."""
    from sslim.backbone.units import plan_of, shape_of

    whole: Any = loaded_model(family).model
    emptied = {"attention_block.0": (), "ffn.0": (), "head.1": ()}
    model = cut(whole, plan_of(whole).replaced(emptied, shape_of(whole))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("out_proj.bias", "output_dense.bias")):
                parameter.normal_()
    loaded = LoadedModel(model, "", False, "test", None, "0" * 64)
    save_dphubert(loaded, tmp_path / "m.pth")
    again = load_model(tmp_path / "m.pth")
    clip = clips()[0]
    assert float((answers(again, clip)[0] - answers(loaded, clip)[0]).abs().max()) < 1e-5


def test_an_exported_file_is_an_upstream(tmp_path: Path) -> None:
    model = folder_of(loaded_model("hubert"), tmp_path / "model")
    export(model, tmp_path / "all.onnx", all_layers=True)
    export(model, tmp_path / "last.onnx")
    folder, file = open_upstream(model), open_upstream(tmp_path / "all.onnx")
    assert (file.layers, file.width, file.hop) == (folder.layers, folder.width, folder.hop)
    assert file.parameters == folder.parameters
    pair = np.stack(clips((9000, 9000)))
    assert np.abs(file.hidden_states(pair) - folder.hidden_states(pair)).max() < 1e-4
    with pytest.raises(TeacherError, match="--all-layers"):
        open_upstream(tmp_path / "last.onnx")


def test_the_example_needs_neither_torch_nor_sslim(tmp_path: Path, fresh_python: Any) -> None:
    loaded = loaded_model("hubert")
    sslim.export(folder_of(loaded, tmp_path / "model"), tmp_path / "m.onnx")
    clip = clips((9000,))[0]
    soundfile.write(tmp_path / "a.wav", clip, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", clip[:5000], 16_000, subtype="FLOAT")
    script = REPOSITORY / "examples" / "onnx_only.py"
    done = fresh_python(
        "-c",
        "import sys, runpy; sys.modules['torch'] = sys.modules['sslim'] = None; "
        f"sys.argv = ['x', 'm.onnx', 'a.wav', 'b.wav']; runpy.run_path({str(script)!r}, run_name='__main__')",
    )
    assert done.returncode == 0, done.stderr
    _, output = answers(loaded, clip)
    assert f"{output.shape[0]} x 32, mean {float(output.mean()):.4f}" in done.stdout
    soundfile.write(tmp_path / "c.wav", clip, 8_000)
    done = fresh_python(str(script), "m.onnx", "c.wav")
    assert done.returncode == 1
    assert "8000 Hz" in done.stderr


def test_labels_travel_in_the_file(tmp_path: Path) -> None:
    loaded = loaded_model("wav2vec2", head="sequence-classification")
    model = folder_of(loaded, tmp_path / "model")
    made = export(model, tmp_path / "m.onnx")
    assert made.passed
    file = ExportedModel(tmp_path / "m.onnx")
    assert json.loads(file.metadata["labels"]) == [f"LABEL_{index}" for index in range(5)]
    assert file.facts["head"] == "sequence-classification"
    assert file.shortest == 400
    assert file.hop == 320
