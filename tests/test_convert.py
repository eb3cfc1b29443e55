"""Foreign checkpoints: every format read, strictly and safely."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCTC

from sslim.backbone.convert import convert
from sslim.backbone.formats import read_checkpoint
from sslim.backbone.loading import load_model
from sslim.errors import ConversionError, OutputError
from tests.models import tiny_teacher

GOLDEN = Path(__file__).parent / "golden"
WIDE = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 40}
"""A width whose heads can be told (64 each) where a format does not say them."""


def fairseq_name(name: str) -> str:
    """The inverse map, written independently: transformers -> fairseq."""
    parts = name.split(".")
    if name == "masked_spec_embed":
        return "mask_emb"
    if parts[:2] == ["feature_extractor", "conv_layers"]:
        index, what, leaf = parts[2], parts[3], parts[4]
        if what == "conv":
            return f"feature_extractor.conv_layers.{index}.0.{leaf}"
        return f"feature_extractor.conv_layers.{index}.2{'.1' if fairseq_name.layer_norm else ''}.{leaf}"  # type: ignore[attr-defined]
    if parts[0] == "feature_projection":
        return ("layer_norm." if parts[1] == "layer_norm" else "post_extract_proj.") + parts[2]
    if parts[1] == "pos_conv_embed":
        if parts[2] == "layers":
            return f"encoder.pos_conv.{parts[3]}.0.{parts[5]}"
        old = {"original0": "weight_g", "original1": "weight_v", "bias": "bias"}
        return f"encoder.pos_conv.0.{old[parts[-1]]}"
    if parts[1] == "layer_norm":
        return name
    layer, rest = parts[2], ".".join(parts[3:])
    inner = {
        "attention.gru_rel_pos_const": "self_attn.grep_a",
        "attention.rel_attn_embed.weight": "self_attn.relative_attention_bias.weight",
    }
    for old, new in (
        ("attention.gru_rel_pos_linear", "self_attn.grep_linear"),
        ("attention", "self_attn"),
        ("layer_norm", "self_attn_layer_norm"),
        ("feed_forward.intermediate_dense", "fc1"),
        ("feed_forward.output_dense", "fc2"),
    ):
        if rest in inner:
            rest = inner[rest]
        elif rest.startswith(old + "."):
            rest = new + rest.removeprefix(old)
            break
    return f"encoder.layers.{layer}.{rest}"


def fairseq_state(model: Any, *, layer_norm: bool) -> dict[str, torch.Tensor]:
    fairseq_name.layer_norm = layer_norm  # type: ignore[attr-defined]
    return {fairseq_name(name): tensor.clone() for name, tensor in model.state_dict().items()}


def largest(left: Any, right: Any) -> float:
    torch.manual_seed(0)
    waveforms = torch.randn(1, 3000)
    with torch.no_grad():
        ours = left(waveforms, output_hidden_states=True).hidden_states
        theirs = right(waveforms, output_hidden_states=True).hidden_states
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("family", "size"),
    [
        ("hubert", "base"),
        ("hubert", "large"),
        ("wav2vec2", "base"),
        ("wav2vec2", "large"),
        ("wavlm", "base"),
        ("wavlm", "large"),
        ("data2vec-audio", "base"),
    ],
)
@pytest.mark.parametrize("settings", ["cfg", "args"])
def test_fairseq_pretrained(family: str, size: str, settings: str, tmp_path: Path) -> None:
    dense = tiny_teacher(family, size, num_attention_heads=8)
    state = fairseq_state(dense, layer_norm=size == "large" or family == "data2vec-audio")
    state |= {"final_proj.weight": torch.zeros(2, 2), "final_proj.bias": torch.zeros(2)}
    if family == "hubert":
        state["label_embs_concat"] = torch.zeros(4, 2)
    if family == "wav2vec2":
        state |= {"quantizer.vars": torch.zeros(1, 2), "project_q.weight": torch.zeros(2, 2)}
    told: dict[str, Any] = {
        "arch": family.replace("-", "_"),
        "encoder_attention_heads": 8,
        "layer_norm_first": size == "large",
        "normalize": size == "large",
        "max_distance": 30,
    }
    if settings == "cfg":
        file = {"model": state, "cfg": {"model": told, "task": {"normalize": size == "large"}}}
    else:
        file = {"model": state, "args": argparse.Namespace(**told), "cfg": None}
    torch.save(file, tmp_path / "model.pt")
    converted = convert(tmp_path / "model.pt", tmp_path / "out")
    assert converted.family == family
    assert "only pre-training uses" in converted.summary_line()
    again, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert largest(again.eval(), dense) < 1e-6
    loaded = load_model(tmp_path / "model.pt")
    assert loaded.normalise is (size == "large")
    assert largest(loaded.whole, dense) < 1e-5


def test_fairseq_fine_tuned_with_its_dictionary(tmp_path: Path) -> None:
    dense = tiny_teacher("wav2vec2", auto=AutoModelForCTC, vocab_size=5)
    state = {
        f"w2v_encoder.w2v_model.{name}": tensor
        for name, tensor in fairseq_state(dense.wav2vec2, layer_norm=False).items()
    }
    state |= {
        "w2v_encoder.proj.weight": dense.lm_head.weight.detach(),
        "w2v_encoder.proj.bias": dense.lm_head.bias.detach(),
    }
    module = types.ModuleType("fairseq.data.dictionary")
    dictionary_class = type("Dictionary", (), {"__module__": "fairseq.data.dictionary"})
    module.Dictionary = dictionary_class  # type: ignore[attr-defined]
    names = ["fairseq", "fairseq.data", "fairseq.data.dictionary"]
    sys.modules |= {name: module for name in names}
    try:
        dictionary = dictionary_class()
        dictionary.symbols = ["<s>", "<pad>", "</s>", "a", "b"]  # type: ignore[attr-defined]
        cfg = {
            "model": {"_name": "wav2vec_ctc", "w2v_args": {"model": {"encoder_attention_heads": 4}}}
        }
        torch.save(
            {"model": state, "cfg": cfg, "task_state": {"target_dictionary": dictionary}},
            tmp_path / "tuned.pt",
        )
    finally:
        for name in names:
            del sys.modules[name]
    convert(tmp_path / "tuned.pt", tmp_path / "out")
    again = AutoModelForCTC.from_pretrained(tmp_path / "out").eval()
    waveforms = torch.randn(1, 3000)
    with torch.no_grad():
        assert float((again(waveforms).logits - dense(waveforms).logits).abs().max()) < 1e-6
    vocabulary = json.loads((tmp_path / "out" / "vocab.json").read_text())
    assert vocabulary["b"] == 4
    assert vocabulary["<pad>"] == again.config.pad_token_id == 0, "the blank of transformers"


@pytest.mark.parametrize(
    ("family", "size"), [("hubert", "base"), ("wav2vec2", "large"), ("wavlm", "base")]
)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_torchaudio(family: str, size: str, ending: str, tmp_path: Path) -> None:
    changes = WIDE | ({"num_buckets": 16, "max_bucket_distance": 800} if family == "wavlm" else {})
    dense = tiny_teacher(family, size, mask_time_prob=0.0, **changes)
    state = {}
    for name, tensor in dense.state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        if name.startswith("encoder."):
            name = "encoder.transformer." + name.removeprefix("encoder.")
        state[name.replace("feature_projection.", "encoder.feature_projection.")] = tensor.clone()
    file = tmp_path / f"model.{ending}"
    save_file(state, file) if ending == "safetensors" else torch.save(state, file)
    converted = convert(file, tmp_path / "out", family=None if family == "wavlm" else family)
    assert converted.family == family
    assert largest(AutoModel.from_pretrained(tmp_path / "out").eval(), dense) < 1e-6


@pytest.mark.parametrize("name", sorted(path.parent.name for path in GOLDEN.glob("*/meta.json")))
def test_dphubert_files_load_anywhere_ours_do(name: str, tmp_path: Path) -> None:
    converted = convert(GOLDEN / name / "reference_pruned.pth", tmp_path / "out")
    assert "DPHuBERT" in converted.summary_line()
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    states = load_file(GOLDEN / name / "tensors.safetensors")
    waveforms = states["waveforms"]
    if name.endswith("large"):
        waveforms = torch.nn.functional.layer_norm(waveforms, waveforms.shape[-1:])
    with torch.no_grad():
        found = model.distillation_features(waveforms)
    off = [float((a - states[f"paper.pruned.hidden.{k}"]).abs().max()) for k, a in enumerate(found)]
    assert max(off) < 1e-4


def reference_file(tmp_path: Path, change: Any) -> Path:
    data = torch.load(GOLDEN / "wavlm_base" / "reference_pruned.pth", weights_only=True)
    change(data)
    torch.save(data, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


def test_a_wavlm_that_lost_its_first_attention_block_has_no_position_bias(tmp_path: Path) -> None:
    def lose(data: dict[str, Any]) -> None:
        data["config"]["encoder_use_attention"][0] = False
        for name in list(data["state_dict"]):
            if name.startswith("encoder.transformer.layers.0.attention."):
                del data["state_dict"][name]

    model = load_model(reference_file(tmp_path, lose)).model
    assert model.encoder.layers[0].attention is None
    assert model.encoder.rel_attn_embed is not None
    assert not model.encoder.rel_attn_embed.weight.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["state_dict"].pop("encoder.transformer.layers.1.attention.k_proj.weight"),
            r"missing: encoder\.layers\.1\.attention\.k_proj\.weight",
        ),
        (
            lambda d: d["state_dict"].update({"encoder.transformer.surprise": torch.zeros(1)}),
            r"unexpected: encoder\.surprise",
        ),
        (
            lambda d: d["state_dict"].update(
                {"encoder.transformer.layer_norm.weight": torch.zeros(7)}
            ),
            r"wrong shape: encoder\.layer_norm\.weight",
        ),
        (
            lambda d: d["state_dict"].update(
                {
                    "encoder.transformer.pos_conv_embed.conv.weight_x": d["state_dict"].pop(
                        "encoder.transformer.pos_conv_embed.conv.weight_g"
                    )
                }
            ),
            r"pos_conv_embed\.conv",
        ),
    ],
)
def test_strictness_names_the_weight(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(reference_file(tmp_path, change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_fairseq_weight_is_named(tmp_path: Path) -> None:
    state = fairseq_state(tiny_teacher("hubert"), layer_norm=False)
    torch.save({"model": state | {"encoder.surprise": torch.zeros(1)}}, tmp_path / "m.pt")
    with pytest.raises(ConversionError, match=r"unexpected weight\(s\): encoder\.surprise"):
        convert(tmp_path / "m.pt", tmp_path / "out")


class _Evil:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch executed",)


def test_a_malicious_file_is_refused_by_name_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "cfg": _Evil()}, "evil.pt")
    with pytest.raises(ConversionError, match=r"system"):
        convert("evil.pt", "out")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(ConversionError):
        convert("evil.pkl", "out")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>not found</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "text or web page"),
        (b"PK\x03\x04 cut short", "damaged or cut short"),
        (b"", "damaged or cut short"),
        (None, "does not exist"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ConversionError, match=message) as caught:
        convert(tmp_path / "model.pt", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_something_else_is_named(tmp_path: Path) -> None:
    torch.save({"backbone.weight": torch.zeros(2)}, tmp_path / "m.pt")
    with pytest.raises(ConversionError, match=r"holds backbone\.weight"):
        read_checkpoint(tmp_path / "m.pt")


def test_an_unresolved_reference_is_no_value(tmp_path: Path) -> None:
    state = fairseq_state(tiny_teacher("hubert", "large"), layer_norm=True)
    model = {"_name": "hubert", "encoder_attention_heads": 4, "normalize": "${task.normalize}"}
    torch.save(
        {"model": state, "cfg": {"model": model, "task": {"normalize": False}}}, tmp_path / "m.pt"
    )
    assert load_model(tmp_path / "m.pt").normalise is False


@pytest.mark.parametrize(
    "name", ["encoder_num_layers", "encoder_remaining_heads", "extractor_mode"]
)
def test_a_missing_setting_is_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConversionError, match=f"contradicts its own format.*{name}"):
        read_checkpoint(reference_file(tmp_path, lambda data: data["config"].pop(name)))


def test_a_failed_write_keeps_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    from sslim.backbone import saving

    torch.save(
        {"model": fairseq_state(tiny_teacher("hubert"), layer_norm=False)}, tmp_path / "m.pt"
    )
    with pytest.raises(ConversionError):  # width 32 does not say its heads
        convert(tmp_path / "m.pt", tmp_path / "out")
    args = argparse.Namespace(encoder_attention_heads=4, arch="hubert")
    state = fairseq_state(tiny_teacher("hubert"), layer_norm=False)
    torch.save({"model": state, "args": args}, tmp_path / "m.pt")
    convert(tmp_path / "m.pt", tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        convert(tmp_path / "m.pt", tmp_path / "out", force=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "out"]


def test_an_existing_folder_is_kept_unless_forced(tmp_path: Path) -> None:
    file = GOLDEN / "hubert_base" / "reference_pruned.pth"
    convert(file, tmp_path / "out")
    with pytest.raises(OutputError, match="--force"):
        convert(file, tmp_path / "out")
    convert(file, tmp_path / "out", force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "mine" / "config.json").write_text('{"name": "my web site"}')
    with pytest.raises(OutputError, match="may be another's"):
        convert(file, tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_force_replaces_what_its_own_record_names_and_nothing_else(tmp_path: Path) -> None:
    pruned = GOLDEN / "hubert_base" / "reference_pruned.pth"
    args = argparse.Namespace(encoder_attention_heads=4, arch="hubert")
    state = fairseq_state(tiny_teacher("hubert"), layer_norm=False)
    torch.save({"model": state, "args": args}, tmp_path / "dense.pt")
    out = tmp_path / "out"
    convert(pruned, out)
    (out / "web" / "src").mkdir(parents=True)
    (out / "web" / "src" / "app.js").write_text("mine")
    (out / "notes.txt").write_text("mine")
    assert (out / "modeling_sslim.py").is_file()
    convert(tmp_path / "dense.pt", out, force=True)
    assert (out / "web" / "src" / "app.js").read_text() == "mine"
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "modeling_sslim.py").exists(), "it was the pruned model's"
    assert load_model(out).model.config.plan is None
    (out / "modeling_sslim.py").write_text("mine")
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(OutputError, match=r"modeling_sslim\.py is in the way"):
        convert(pruned, out, force=True)
    assert (out / "modeling_sslim.py").read_text() == "mine"
    assert sorted(path.name for path in out.iterdir()) == before
    assert load_model(out).model.config.plan is None


@pytest.mark.parametrize(
    "record",
    ["", "[]", "5", "{", '{"result": {}}', '{"converted_from": {}, "files": {"../x": ""}}'],
)
def test_a_record_of_something_else_proves_nothing(record: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "x").write_text("mine")
    (out / "config.json").write_text("{}")
    (out / "sslim.json").write_text(record)
    with pytest.raises(OutputError):
        convert(GOLDEN / "hubert_base" / "reference_pruned.pth", out, force=True)
    assert (tmp_path / "x").read_text() == "mine"
    assert (out / "config.json").read_text() == "{}"


def test_here_is_a_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`convert X .`, also where the folder may not be renamed (a mount point)."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert(GOLDEN / "hubert_base" / "reference_pruned.pth", ".")
    assert load_model(tmp_path / "here").family == "hubert"
    assert not [path for path in (tmp_path / "here").iterdir() if path.name.startswith(".")]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot write .*name too long"):
        convert(GOLDEN / "hubert_base" / "reference_pruned.pth", tmp_path / ("x" * 300))
    with pytest.raises(OutputError, match="is a file"):
        convert(GOLDEN / "hubert_base" / "reference_pruned.pth", tmp_path / "file", force=True)


def test_a_model_with_pickles_becomes_a_plain_folder(tmp_path: Path) -> None:
    dense = tiny_teacher("wavlm", auto=AutoModelForCTC, vocab_size=5)
    dense.config.architectures = ["WavLMForCTC"]
    dense.config.save_pretrained(tmp_path / "old")
    torch.save(dense.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "vocab.json").write_text('{"<pad>": 0, "a": 1}')
    (tmp_path / "old" / "evil.py").write_text("raise SystemExit")
    converted = convert(tmp_path / "old", tmp_path / "new")
    assert converted.family == "wavlm"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "sslim.json",
        "vocab.json",
    }
    again = AutoModelForCTC.from_pretrained(tmp_path / "new").eval()
    waveforms = torch.randn(1, 3000)
    with torch.no_grad():
        assert torch.equal(again(waveforms).logits, dense(waveforms).logits)
    assert load_model(tmp_path / "new").fingerprint == load_model(tmp_path / "old").fingerprint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("normalize_waveform", "false"),
        ("encoder_num_layers", 10**9),
        ("encoder_embed_dim", 2**40),
        ("encoder_head_dim", 0),
        ("encoder_ff_interm_features", [10**9] * 3),
        ("encoder_use_attention", None),
    ],
)
def test_odd_settings_of_a_reference_file_are_a_sentence(
    tmp_path: Path, name: str, value: Any
) -> None:
    data = torch.load(GOLDEN / "hubert_base" / "reference_pruned.pth", weights_only=True)
    data["config"][name] = value
    torch.save(data, tmp_path / "changed.pth")
    with pytest.raises(ConversionError) as caught:
        convert(tmp_path / "changed.pth", tmp_path / "out")
    assert "\n" not in str(caught.value)
