"""The saved folder: loads with and without sslim, keeps the head, means the same, fine-tunes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    AutoModelForPreTraining,
)

from sslim.backbone import load
from sslim.backbone.families import HEADS, build
from sslim.backbone.loading import load_model
from sslim.backbone.modeling_sslim import SslimModel
from sslim.backbone.saving import save_folder, under_head
from sslim.errors import OutputError, TeacherError
from sslim.layout import KINDS
from sslim.prune.gates import Gates
from sslim.prune.surgery import cut
from tests.models import CASES, tiny_config, tiny_teacher
from tests.test_exactness import largest, random_values

HEAD_CLASSES = {
    "ctc": AutoModelForCTC,
    "sequence-classification": AutoModelForAudioClassification,
    "frame-classification": AutoModelForAudioFrameClassification,
    "x-vector": AutoModelForAudioXVector,
}
HEAD_SETTINGS: dict[str, Any] = {
    "vocab_size": 12,
    "classifier_proj_size": 16,
    "tdnn_dim": (16, 16, 16, 16, 24),
    "xvector_output_dim": 16,
    "num_labels": 5,
    "use_weighted_layer_sum": True,
}
SAMPLES = 9000
"""Long enough for the frames that x-vectors need."""

LOAD_ELSEWHERE = """
import json, sys
assert "sslim" not in sys.modules
import torch, transformers
found = {}
for folder, auto in json.load(open("wanted.json")):
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        output = model(torch.randn(1, SAMPLES), output_hidden_states=True)
    found[folder] = {
        "states": [state.flatten().tolist() for state in output.hidden_states],
        "logits": output.logits.flatten().tolist() if "logits" in output else [],
        "module": type(model).__module__,
        "normalise": extractor.do_normalize,
    }
json.dump(found, open("found.json", "w"))
assert "sslim" not in sys.modules
""".replace("SAMPLES", str(SAMPLES))


def supported(family: str, head: str) -> bool:
    """HuBERT has neither frame classification nor x-vectors in transformers."""
    return family != "hubert" or head in ("ctc", "sequence-classification")


def compressed(teacher_folder: Path, seed: int = 5) -> tuple[Any, Any]:
    loaded = load_model(teacher_folder)
    _, plan = random_values(Gates(loaded.model, KINDS), seed, 0.6)
    return loaded, under_head(loaded, cut(loaded.model, plan).eval())


# transformers' own WavLM passes masks of two types to torch.
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("family", ["hubert", "wavlm", "wav2vec2", "data2vec-audio"])
@pytest.mark.parametrize("head", HEAD_CLASSES)
@torch.no_grad()
def test_heads_compute_what_transformers_computes(family: str, head: str, tmp_path: Path) -> None:
    if not supported(family, head):
        pytest.skip("transformers has no such model")
    dense = tiny_teacher(family, auto=HEAD_CLASSES[head], **HEAD_SETTINGS)
    dense.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.head == head
    loaded.whole.config.exact_padding = False  # what padding does to the dense families, too
    waveforms = torch.randn(2, SAMPLES)
    mask = torch.ones(2, SAMPLES, dtype=torch.long)
    mask[1, 8000:] = 0
    for inputs in ((waveforms,), (waveforms, mask)):
        ours, theirs = loaded.whole(*inputs), dense(*inputs)
        assert float((ours.logits - theirs.logits).abs().max()) < 1e-4
    states = loaded.whole(waveforms, output_hidden_states=True).hidden_states
    assert (
        largest(list(states), list(dense(waveforms, output_hidden_states=True).hidden_states))
        < 1e-5
    )


@pytest.mark.parametrize("head", HEAD_CLASSES)
@torch.no_grad()
def test_losses_are_those_of_transformers(head: str) -> None:
    dense = tiny_teacher("wav2vec2", auto=HEAD_CLASSES[head], **HEAD_SETTINGS)
    ours = build(dense.config, dense.state_dict(), head, "test")
    waveforms = torch.randn(2, SAMPLES)
    frames = int(dense._get_feat_extract_output_lengths(SAMPLES))
    one_hot = torch.nn.functional.one_hot(torch.randint(0, 5, (2, frames)), 5)
    labels = {
        "ctc": torch.tensor([[3, 4, 1], [2, 5, -100]]),
        "sequence-classification": torch.tensor([0, 4]),
        "frame-classification": one_hot,
        "x-vector": torch.tensor([0, 4]),
    }[head]
    assert float(ours(waveforms, labels=labels).loss) == pytest.approx(
        float(dense(waveforms, labels=labels).loss), rel=1e-4
    )


@torch.no_grad()
def test_every_kind_loads_in_a_process_without_sslim(tmp_path: Path) -> None:
    """All families and sizes, and all heads, in one other process."""
    expected: dict[str, tuple[Any, bool]] = {}
    wanted = []
    for family, size in CASES:
        name = f"{family}-{size}"
        tiny_teacher(family, size).save_pretrained(tmp_path / "teacher" / name)
        _, small = compressed(tmp_path / "teacher" / name)
        save_folder(tmp_path / name, small, normalise=size == "large", card="# card")
        expected[name] = small, size == "large"
        assert "tap.0" in small.config.plan["axes"], "fewer taps must load elsewhere, too"
        wanted.append((name, "AutoModel"))
    for head, auto in HEAD_CLASSES.items():
        dense = tiny_teacher("wav2vec2", auto=auto, **HEAD_SETTINGS)
        dense.save_pretrained(tmp_path / "teacher" / head)
        (tmp_path / "teacher" / head / "vocab.json").write_text('{"a": 1}')
        loaded, small = compressed(tmp_path / "teacher" / head)
        save_folder(tmp_path / head, small, normalise=False, tokenizer_from=loaded.folder)
        assert (tmp_path / head / "vocab.json").is_file()
        expected[head] = small, False
        wanted.append((head, HEADS[head][1].__name__))
    found = load_elsewhere(tmp_path, wanted)
    for name, (model, normalise) in expected.items():
        torch.manual_seed(0)
        output = model(torch.randn(1, SAMPLES), output_hidden_states=True)
        there = found[name]
        assert len(there["states"]) == len(output.hidden_states)
        for left, right in zip(there["states"], output.hidden_states, strict=True):
            assert left == pytest.approx(right.flatten().tolist(), abs=1e-5)
        assert bool(there["logits"]) is (name in HEAD_CLASSES)
        if there["logits"]:
            assert there["logits"] == pytest.approx(output.logits.flatten().tolist(), abs=1e-5)
        assert there["module"].startswith("transformers_modules")
        assert there["normalise"] is normalise


def load_elsewhere(folder: Path, wanted: list[tuple[str, str]]) -> dict[str, Any]:
    """Loads folders (names inside `folder`) with Auto classes in a process that has no sslim."""
    environment = {
        "PATH": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    (folder / "wanted.json").write_text(json.dumps(wanted))
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@torch.no_grad()
def test_loads_without_the_flag_where_sslim_is_imported(tmp_path: Path) -> None:
    tiny_teacher("wavlm").save_pretrained(tmp_path / "teacher")
    _, small = compressed(tmp_path / "teacher")
    save_folder(tmp_path / "small", small, normalise=False)
    model = AutoModel.from_pretrained(tmp_path / "small")
    assert isinstance(model, SslimModel)
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "small").sampling_rate == 16_000
    again = load(tmp_path / "small")
    waveforms = torch.randn(1, 2000)
    assert torch.equal(again(waveforms).last_hidden_state, small(waveforms).last_hidden_state)


def test_a_compressed_model_can_be_a_teacher(tmp_path: Path) -> None:
    """The monthly update: compress again from what is in service."""
    tiny_teacher("hubert").save_pretrained(tmp_path / "teacher")
    _, small = compressed(tmp_path / "teacher")
    save_folder(tmp_path / "small", small, normalise=False)
    loaded = load_model(tmp_path / "small")
    _, plan = random_values(Gates(loaded.model, KINDS), 1, 0.6)
    smaller = cut(loaded.model, plan)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in small.parameters())


def test_fine_tunes_a_ctc_head(tmp_path: Path) -> None:
    """A few steps lower the loss; saved and reloaded it computes the same, also without sslim."""
    tiny_teacher("hubert", mask_time_length=2).save_pretrained(tmp_path / "teacher")
    _, small = compressed(tmp_path / "teacher")
    save_folder(tmp_path / "small", small, normalise=False)
    torch.manual_seed(0)
    model = AutoModelForCTC.from_pretrained(
        tmp_path / "small", vocab_size=12, ctc_loss_reduction="mean"
    ).train()
    model.freeze_feature_encoder()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    waveforms, labels = torch.randn(2, 6000), torch.tensor([[3, 4, 1], [2, 5, -100]])
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = model(waveforms, labels=labels).loss
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    model.eval().save_pretrained(tmp_path / "tuned")
    assert (tmp_path / "tuned" / "modeling_sslim.py").is_file()
    AutoFeatureExtractor.from_pretrained(tmp_path / "small").save_pretrained(tmp_path / "tuned")
    found = load_elsewhere(tmp_path, [("tuned", "AutoModelForCTC")])["tuned"]
    torch.manual_seed(0)
    with torch.no_grad():
        logits = model(torch.randn(1, SAMPLES)).logits
    assert found["logits"] == pytest.approx(logits.flatten().tolist(), abs=1e-5)


def test_spec_augment_masks_in_training_only() -> None:
    dense = tiny_teacher(
        "hubert",
        mask_time_prob=0.5,
        mask_time_length=2,
        mask_feature_prob=0.2,
        mask_feature_length=4,
    )
    model = build(dense.config, dense.state_dict(), "", "test")
    waveforms = torch.randn(2, SAMPLES)
    with torch.no_grad():
        still = [model(waveforms).last_hidden_state for _ in range(2)]
        model.train()
        moving = [model(waveforms).last_hidden_state for _ in range(2)]
        model.config.apply_spec_augment = False
        off = model(waveforms).last_hidden_state
    assert torch.equal(still[0], still[1])
    assert torch.allclose(still[0], off, atol=1e-6)
    assert not torch.allclose(moving[0], moving[1], atol=1e-3)
    assert not torch.allclose(moving[0], still[0], atol=1e-3)


def test_nothing_in_the_folder_is_pickled(tmp_path: Path) -> None:
    tiny_teacher("hubert").save_pretrained(tmp_path / "teacher")
    _, small = compressed(tmp_path / "teacher")
    save_folder(tmp_path / "small", small, normalise=False, card="# card")
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "modeling_sslim.py",
        "preprocessor_config.json",
        "README.md",
        "sslim.json",
    }


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_teacher("hubert").save_pretrained(tmp_path / "teacher")
    _, small = compressed(tmp_path / "teacher")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(small), "save_pretrained", full)
    with pytest.raises(OutputError, match="No space left"):
        save_folder(tmp_path / "small", small, normalise=False)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_the_record_is_moved_last_and_names_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where sslim.json stands, a run counts as finished: all else must stand before it."""
    tiny_teacher("hubert", auto=AutoModelForCTC, vocab_size=12).save_pretrained(
        tmp_path / "teacher"
    )
    (tmp_path / "teacher" / "vocab.json").write_text('{"a": 1}')
    loaded, small = compressed(tmp_path / "teacher")
    moved: list[str] = []
    replace = Path.replace

    def noted(self: Path, target: Path) -> Path:
        moved.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    save_folder(
        tmp_path / "small",
        small,
        normalise=True,
        card="# card",
        tokenizer_from=loaded.folder,
    )
    assert moved[-1] == "sslim.json"
    assert set(moved) == {path.name for path in (tmp_path / "small").iterdir()}
    record = json.loads((tmp_path / "small" / "sslim.json").read_text())
    assert (record["kind"], record["version"]) == ("model", 1)
    assert record["fingerprint"] == load_model(tmp_path / "small").fingerprint
    assert record["files"] == {
        name: hashlib.sha256((tmp_path / "small" / name).read_bytes()).hexdigest()
        for name in moved
        if name not in ("sslim.json", "README.md")
    }


@pytest.mark.parametrize("ended", range(1, 6))
def test_a_kill_while_files_are_moved_leaves_no_record(
    ended: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_teacher("hubert").save_pretrained(tmp_path / "teacher")
    _, small = compressed(tmp_path / "teacher")
    replace, left = Path.replace, [ended]

    def killed(self: Path, target: Path) -> Path:
        left[0] -= 1
        if not left[0]:
            raise SystemExit
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(SystemExit):
        save_folder(tmp_path / "small", small, normalise=True, card="# card")
    assert not (tmp_path / "small" / "sslim.json").exists()
    monkeypatch.setattr(Path, "replace", replace)
    save_folder(tmp_path / "small", small, normalise=True, card="# card")
    assert load_model(tmp_path / "small").normalise


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.mkdir(), "no config.json"),
        (
            lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{")),
            "cannot be read",
        ),
        (
            lambda folder: (
                folder.mkdir(),
                (folder / "config.json").write_text('{"model_type": "bert"}'),
            ),
            "'bert' model",
        ),
    ],
)
def test_bad_teachers_are_named(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "teacher")
    with pytest.raises(TeacherError, match=message):
        load_model(tmp_path / "teacher")


@torch.no_grad()
def test_a_pretraining_checkpoint_gives_its_backbone(tmp_path: Path) -> None:
    dense = tiny_teacher(
        "wav2vec2",
        auto=AutoModelForPreTraining,
        num_codevectors_per_group=4,
        codevector_dim=8,
        proj_codevector_dim=8,
    )
    dense.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.head == ""
    waveforms = torch.randn(1, 3000)
    expected = dense.wav2vec2(waveforms).last_hidden_state
    assert float((loaded.whole(waveforms).last_hidden_state - expected).abs().max()) < 1e-5


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_teacher("hubert").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layers.1.attention.k_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"encoder\.layers\.1\.attention\.k_proj\.weight"):
        load_model(tmp_path)


def test_adapters_are_refused() -> None:
    config = tiny_config("wav2vec2", add_adapter=True)
    with pytest.raises(TeacherError, match="adapter"):
        build(config, {}, "", "test")
