"""A frozen model is one thing, whatever runs it: torch, an exported file, or log-mel features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslim import identity
from sslim.backbone.frozen import ALL, LAST, Frozen
from sslim.backbone.loaded import LoadedModel
from sslim.backbone.opening import open_frozen
from sslim.backbone.units import shape_of
from sslim.demo import teacher_path
from sslim.deploy.export import export
from sslim.evaluate.upstream import open_upstream
from tests.test_export import clips, folder_of, loaded_model

TEACHER = "857d9c0956206f48948a88dacbbc5228be40b20826cc3afcfb4ac14811ea8403"
"""The embedded teacher's fingerprint, and the identities below, as version 0.1 computed them."""
IDENTITIES = {
    "float32": "aa61a8342571c8ed6404d825782ca65bafab780013e9f64f203fa90b374b951d",
    "bfloat16": "c3cca031787496cb78aa7d367370bfc01c4dc8eba99627429eaa9eaef334852a",
    "fbank": "93afc4f711620a23fa8c91dff7b596986daf7bfb695d2b0749c112082f12f64a",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Frozen]:
    """The same model twice, and log-mel features."""
    home = tmp_path_factory.mktemp("models")
    folder = folder_of(loaded_model("wav2vec2", "large"), home / "model")
    export(folder, home / "m.onnx", all_layers=True)
    return {
        "torch": open_upstream(folder, device="cpu"),
        "onnx": open_upstream(home / "m.onnx"),
        "fbank": open_upstream("fbank"),
    }


@pytest.mark.parametrize("name", ["torch", "onnx", "fbank"])
def test_one_layer_is_that_layer_of_all(name: str, models: dict[str, Frozen]) -> None:
    model = models[name]
    pair = np.stack(clips((9000, 9000)))
    every = model.hidden_states(pair)
    assert every.shape[:2] == (2, model.layers)
    assert every.shape[3] == model.width
    assert every.dtype == np.float32
    assert abs(every.shape[2] - model.frames(9000)) <= 2
    for layer in range(model.layers):
        assert np.array_equal(model.hidden_states(pair, layer), every[:, layer])
    last = model.hidden_states(pair, LAST)
    assert last.shape == every[:, -1].shape
    # A family that normalises before its blocks ends with one norm more.
    assert np.array_equal(last, every[:, -1]) is (name == "fbank")


@pytest.mark.parametrize("name", ["torch", "onnx", "fbank"])
def test_a_row_is_what_it_is_alone(name: str, models: dict[str, Frozen]) -> None:
    model = models[name]
    pair = np.stack(clips((9000, 9000)))
    for layer in (ALL, LAST):
        together = model.hidden_states(pair, layer)
        for row in range(2):
            alone = model.hidden_states(pair[row : row + 1], layer)[0]
            assert np.abs(together[row] - alone).max() < 1e-4
        assert np.abs(together[0] - together[1]).max() > 1e-2


def test_a_file_is_known_as_its_model_and_as_itself(models: dict[str, Frozen]) -> None:
    model, file = models["torch"], models["onnx"]
    for name in ("layers", "width", "hop", "shortest", "parameters", "macs_per_second"):
        assert getattr(model, name) == getattr(file, name), name
    assert file.model_fingerprint == model.fingerprint == model.model_fingerprint
    assert file.fingerprint != model.fingerprint
    assert file.identity != model.identity
    pair = np.stack(clips((9000, 9000)))
    for layer in (ALL, LAST, 1):
        difference = file.hidden_states(pair, layer) - model.hidden_states(pair, layer)
        assert np.abs(difference).max() < 1e-4


@pytest.mark.parametrize("name", ["torch", "fbank"])
def test_below_the_shortest_there_is_no_frame(name: str, models: dict[str, Frozen]) -> None:
    model = models[name]
    assert model.hidden_states(np.zeros((1, model.shortest), np.float32)).shape[2] == 1
    longer = np.zeros((1, model.shortest + model.hop - 1), np.float32)
    assert model.hidden_states(longer).shape[2] == 1
    longer = np.zeros((1, model.shortest + model.hop), np.float32)
    assert model.hidden_states(longer).shape[2] == 2


@pytest.mark.parametrize(("normalise", "same"), [(True, True), (False, False)])
def test_a_model_hears_what_it_was_trained_on(normalise: bool, same: bool) -> None:
    """A model that normalises does not hear how loud a recording is; the twin does."""
    made = loaded_model("wav2vec2", "large")
    model = LoadedModel(made.whole, "", normalise, "test", None)
    wave = 100.0 * torch.from_numpy(clips((9000,))[0])[None]  # beside which epsilon is nothing
    louder = model.prepare(3.0 * wave + 0.1)
    assert torch.allclose(louder, model.prepare(wave), atol=1e-4) is same
    frozen = model.frozen()
    states = [frozen.hidden_states(audio.numpy()) for audio in (wave, 3.0 * wave + 0.1)]
    assert np.allclose(*states, atol=1e-2) is same


def test_what_a_model_reads_comes_from_its_shape() -> None:
    made = loaded_model("hubert", conv_kernel=(10, 3, 3), conv_stride=(5, 2, 3), conv_dim=(8, 8, 8))
    shape = shape_of(made.model)
    assert (made.hop, made.receptive_field) == (30, 10 + 5 * (2 + 2 * 2))
    assert shape.frames(made.receptive_field)[-1] == 1
    assert shape.frames(made.receptive_field - 1)[-1] == 0
    assert shape.frames(made.receptive_field + made.hop)[-1] == 2


def test_features_kept_by_earlier_versions_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The identity of a model is the name of its features in every cache that there is."""
    monkeypatch.setattr(identity, "COMPUTATION", 2)  # as when these were recorded
    teacher = open_upstream(teacher_path(), device="cpu")
    assert teacher.fingerprint == TEACHER
    found = {
        "float32": teacher.identity,
        "bfloat16": open_upstream(teacher_path(), device="cpu", precision="bfloat16").identity,
        "fbank": open_upstream("fbank").identity,
    }
    assert found == IDENTITIES
    assert replace(teacher, name="another").identity == IDENTITIES["float32"]
    for change in ({"fingerprint": "another"}, {"numbers": "float32 on cuda"}):
        assert replace(teacher, **change).identity not in IDENTITIES.values()
    monkeypatch.setattr(identity, "COMPUTATION", 3)
    assert teacher.identity != IDENTITIES["float32"]


def test_an_exported_file_needs_no_torch(tmp_path: Path, fresh_python: Callable[..., Any]) -> None:
    folder = folder_of(loaded_model("hubert"), tmp_path / "model")
    export(folder, tmp_path / "m.onnx")
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from sslim.backbone.opening import open_frozen\n"
        "model = open_frozen({})\n"
        "print(model.hidden_states(np.zeros((1, 4000), np.float32), 'last').shape)"
    )
    done = fresh_python("-c", script.format(repr(str(tmp_path / "m.onnx"))))
    frames = open_frozen(folder).hidden_states(np.zeros((1, 4000), np.float32), LAST).shape
    assert done.stdout.strip() == str(frames), done.stderr
    twin = fresh_python("-c", script.format(repr(str(folder))))
    assert "torch" in twin.stderr
    assert twin.returncode == 1
