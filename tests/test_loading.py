"""Loading: what is never executed, what is refused before it costs anything, and what a model is."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sslim.backbone.convert import convert
from sslim.backbone.formats import read_checkpoint
from sslim.backbone.loading import load_config, load_model
from sslim.backbone.processing import read_tokenizer
from sslim.backbone.saving import save_folder
from sslim.errors import ConversionError, SslimError, TeacherError
from tests.conftest import SOURCE
from tests.models import tiny_teacher
from tests.test_convert import fairseq_state
from tests.test_saved_folder import compressed


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    tiny_teacher("hubert").save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def edit(file: Path, **changes: Any) -> None:
    """Changes keys of a JSON file, or makes one."""
    data = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(data | changes))


def refused(folder: Path, words: str) -> None:
    with pytest.raises(TeacherError, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


# --- nothing is executed or asked ------------------------------------------------


EVIL = "open('executed', 'w')\nfrom transformers import HubertConfig as C, HubertModel as M\n"


def with_code(teacher: Path, model_type: str) -> None:
    auto = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoFeatureExtractor": "evil.M"}
    edit(teacher / "config.json", model_type=model_type, auto_map=auto)
    edit(teacher / "preprocessor_config.json", do_normalize=False, auto_map=auto)
    (teacher / "evil.py").write_text(EVIL)


def test_code_in_a_folder_is_never_asked_about(teacher: Path, tmp_path: Path) -> None:
    """A person, or `yes |`, would have said y."""
    with_code(teacher, "evil")
    done = subprocess.run(
        [sys.executable, "-m", "sslim", "inspect", str(teacher)],
        input="y\n" * 100,
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(SOURCE), "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "[y/N]" not in done.stdout + done.stderr
    assert not (tmp_path / "executed").exists()
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("model_type", ["evil", "hubert", "sslim-hubert"])
def test_code_in_a_folder_is_never_run(
    teacher: Path, tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_code(teacher, model_type)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    if model_type == "evil":
        refused(teacher, "'evil' model")
    else:
        assert not load_model(teacher).normalise
    assert not (tmp_path / "executed").exists()


def test_every_loader_of_transformers_is_told_not_to_trust() -> None:
    found = 0
    for file in (SOURCE / "sslim").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                options = {key.arg: ast.unparse(key.value) for key in node.keywords}
                assert options.get("trust_remote_code") == "False", f"{file}:{node.lineno}"
                found += 1
    assert found >= 1


def test_keys_that_are_not_the_models_stay_behind(teacher: Path, tmp_path: Path) -> None:
    edit(
        teacher / "config.json",
        custom_pipelines={"feature-extraction": {"impl": "attacker/repo--pipe.P"}},
        auto_map={"AutoTokenizer": ["attacker/repo--tok.Tok", None]},
        _name_or_path="/home/somebody/secret",
        quantization_config={"quant_method": "evil"},
        surprise="attacker",
    )
    _, small = compressed(teacher)
    save_folder(tmp_path / "small", small, normalise=False)
    written = (tmp_path / "small" / "config.json").read_text()
    for word in ("attacker", "custom_pipelines", "secret", "quant", "surprise"):
        assert word not in written
    assert set(json.loads(written)["auto_map"].values()) == {
        f"modeling_sslim.SslimHubert{ending}"
        for ending in (
            "Config",
            "Model",
            "ForCTC",
            "ForSequenceClassification",
            "ForAudioFrameClassification",
            "ForXVector",
        )
    }


# --- tokenizers ------------------------------------------------------------------


def test_tokenizer_files_are_written_anew_without_code(tmp_path: Path) -> None:
    vocabulary = {"<pad>": 0, "a": 1}
    edit(tmp_path / "vocab.json", **vocabulary)
    edit(
        tmp_path / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["attacker/repo--tok.Tok", None]},
        tokenizer_class="Wav2Vec2CTCTokenizer",
        pad_token={"content": "<pad>", "lstrip": True, "__type": "attacker"},
        chat_template="{{ attacker }}",
        name_or_path="/home/attacker",
        do_lower_case=False,
    )
    edit(tmp_path / "special_tokens_map.json", pad_token="<pad>", attacker=["x"])
    edit(tmp_path / "tokenizer.json", model={"type": "WordLevel"}, auto_map="attacker")
    texts = read_tokenizer(tmp_path)
    assert set(texts) == {
        "vocab.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
    }
    assert "attacker" not in "".join(texts.values())
    assert json.loads(texts["vocab.json"]) == vocabulary
    assert json.loads(texts["tokenizer_config.json"]) == {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "pad_token": {"content": "<pad>", "lstrip": True},
        "do_lower_case": False,
    }


def test_a_tokenizer_of_transformers_survives(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Wav2Vec2CTCTokenizer

    edit(tmp_path / "vocab.json", **{"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5})
    before = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), do_lower_case=True)
    before.save_pretrained(tmp_path / "old")
    (tmp_path / "new").mkdir()
    for name, text in read_tokenizer(tmp_path / "old").items():
        (tmp_path / "new" / name).write_text(text)
    edit(tmp_path / "new" / "config.json", model_type="wav2vec2")
    after = AutoTokenizer.from_pretrained(tmp_path / "new", trust_remote_code=False)
    assert type(after).__name__ == "Wav2Vec2CTCTokenizer"
    assert after("A|a").input_ids == before("A|a").input_ids
    assert after.decode([5, 5, 0, 5]) == before.decode([5, 5, 0, 5]) == "aa"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: file.symlink_to("/etc/hostname"), "link to /etc/hostname, outside"),
        (lambda file: file.symlink_to("/nowhere/vocab.json"), "outside the model's folder"),
        (lambda file: file.write_text("[1, 2]"), "holds no object"),
        (lambda file: file.write_text('{"a": "b"}'), "symbols and whole numbers"),
        (lambda file: file.write_text('{"a": -1}'), "symbols and whole numbers"),
        (lambda file: file.write_text('{"a": 1, "b": {}}'), "no table of symbols"),
        (lambda file: file.write_text(" " * (17 * 2**20)), "larger than 16 MiB"),
        (lambda file: file.mkdir(), "not a file"),
    ],
)
def test_what_is_no_vocabulary_does_not_travel(
    make: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    make(tmp_path / "vocab.json")
    with pytest.raises(TeacherError, match=words):
        read_tokenizer(tmp_path)


def test_the_hubs_own_links_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "123").write_text('{"a": 1}')
    (snapshot / "vocab.json").symlink_to("../../blobs/123")
    assert json.loads(read_tokenizer(snapshot)["vocab.json"]) == {"a": 1}


# --- weights and sizes --------------------------------------------------------------


def with_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


WEIGHT = "encoder.layers.1.feed_forward.output_dense.weight"
BAD_WEIGHTS = [
    (lambda s: s[WEIGHT].view(-1)[3:4].fill_(torch.nan), "holds NaN or infinity"),
    (lambda s: s[WEIGHT].view(-1)[3:4].fill_(-torch.inf), "holds NaN or infinity"),
    (lambda s: s.update({WEIGHT: s[WEIGHT].double() * 1e300}), "holds NaN or infinity"),
    (lambda s: s.update({WEIGHT: s[WEIGHT].to(torch.int8)}), "is int8, not floating-point"),
    (lambda s: s.update({WEIGHT: s[WEIGHT] > 0}), "is bool, not floating-point"),
    (
        lambda s: s.update({WEIGHT: s[WEIGHT].to(torch.complex64)}),
        "is complex64, not floating-point",
    ),
]


@pytest.mark.parametrize(("change", "words"), BAD_WEIGHTS)
def test_weights_that_are_no_numbers_are_refused_by_name(
    change: Any, words: str, teacher: Path, tmp_path: Path
) -> None:
    dense = tiny_teacher("hubert", num_attention_heads=4)
    state = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    change(state)
    save_file(state, teacher / "model.safetensors", metadata={"format": "pt"})
    refused(teacher, f"{WEIGHT} {words}")
    foreign = {"model": {}, "args": {"encoder_attention_heads": 4, "arch": "hubert"}}
    model = tiny_teacher("hubert")
    names = dict(zip(model.state_dict(), fairseq_state(model, layer_norm=False), strict=True))
    foreign["model"] = {names[name]: tensor for name, tensor in state.items()}
    torch.save(foreign, tmp_path / "m.pt")
    with pytest.raises(ConversionError, match=words):
        convert(tmp_path / "m.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_taken(dtype: torch.dtype, teacher: Path) -> None:
    before = load_model(teacher).whole.state_dict()[WEIGHT].to(dtype).float()
    with_weights(teacher, lambda s: s.update({WEIGHT: s[WEIGHT].to(dtype)}))
    after = load_model(teacher).whole.state_dict()[WEIGHT]
    assert after.dtype == torch.float32
    assert torch.equal(after, before)


def test_a_refused_pickle_is_one_line(teacher: Path) -> None:
    from tests.test_convert import _Evil

    (teacher / "model.safetensors").unlink()
    torch.save({"a": _Evil()}, teacher / "pytorch_model.bin")
    refused(teacher, "not on the list of allowed names")


@torch.no_grad()
def test_shards_and_torchs_own_format(teacher: Path, tmp_path: Path) -> None:
    whole = load_model(teacher)
    state = load_file(teacher / "model.safetensors")
    (teacher / "model.safetensors").unlink()
    torch.save(state, teacher / "pytorch_model.bin")
    assert load_model(teacher).fingerprint == whole.fingerprint
    (teacher / "pytorch_model.bin").unlink()
    names = sorted(state)
    files = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, part in files.items():
        save_file({name: state[name] for name in part}, teacher / file)
    table = {name: file for file, part in files.items() for name in part}
    edit(teacher / "model.safetensors.index.json", weight_map=table)
    assert load_model(teacher).fingerprint == whole.fingerprint
    for odd in ("../b.safetensors", "/etc/hostname", 5, "c.safetensors"):
        edit(teacher / "model.safetensors.index.json", weight_map=table | {names[0]: odd})
        refused(teacher, "does not list|lacks")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers .* from 1 to 200, got 1000000"),
        ({"conv_dim": [10**7] * 7}, "conv_dim"),
        ({"hidden_size": 10**6}, "hidden_size"),
        ({"intermediate_size": 10**9}, "intermediate_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 5}, "hidden_size 32 is no multiple of num_attention_heads 5"),
        ({"num_conv_pos_embedding_groups": 3}, "no multiple of num_conv_pos_embedding_groups"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 0]}, "conv_stride"),
        ({"conv_stride": [5, 2]}, "differ in length"),
        ({"layerdrop": 2}, "layerdrop .* from 0 to 1"),
        ({"conv_kernel": [1000] * 7, "conv_stride": [1000] * 7}, "one frame reads"),
        ({"num_labels": 10**9, "id2label": None}, "num_labels"),
        ({"hidden_act": "os.system"}, "hidden_act"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"hidden_size": 1024}, "of the wrong shape"),
        ({"num_hidden_layers": 200, "hidden_size": 16_384}, "missing|wrong shape"),
        ({"intermediate_size": 10**5, "num_hidden_layers": 150}, "missing|wrong shape"),
    ],
)
def test_sizes_are_bounded_and_compared_before_they_are_allocated(
    changes: dict[str, Any], words: str, teacher: Path
) -> None:
    """The last ones would be models of up to 2.6 TB."""
    edit(teacher / "config.json", **changes)
    began = time.perf_counter()
    refused(teacher, words)
    assert time.perf_counter() - began < 20


def test_a_plan_of_another_model_is_not_shown_as_a_fact(teacher: Path, tmp_path: Path) -> None:
    _, small = compressed(teacher)
    save_folder(tmp_path / "small", small, normalise=False)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    for change in (
        lambda plan: plan["layers"][0].update(heads=[7]),
        lambda plan: plan["layers"][0].update(ffn=[3, 1]),
        lambda plan: plan["conv"][0].append(24),
        lambda plan: plan["layers"].append(plan["layers"][0]),
    ):
        plan = json.loads(json.dumps(config["plan"]))
        change(plan)
        edit(tmp_path / "small" / "config.json", plan=plan)
        with pytest.raises(TeacherError, match="plan"):
            load_config(tmp_path / "small")


# --- foreign checkpoints that unpack to more than they hold ---------------------------


def checkpoint(path: Path, **more: Any) -> Path:
    state = fairseq_state(tiny_teacher("hubert"), layer_norm=False)
    torch.save({"model": state, "args": {"encoder_attention_heads": 4}} | more, path)
    return path


def test_settings_that_share_or_hold_themselves_are_read_once(tmp_path: Path) -> None:
    """26 levels of two names each: 67 million paths, a file of 100 kB."""
    level: dict[str, Any] = {"end": 1}
    for _ in range(26):
        level = {"model": level, "w2v_args": level}
    began = time.perf_counter()
    assert read_checkpoint(checkpoint(tmp_path / "a.pt", cfg=level)).config.num_attention_heads == 4
    itself: dict[str, Any] = {}
    itself["model"] = itself
    assert read_checkpoint(checkpoint(tmp_path / "b.pt", cfg=itself)).config.hidden_size == 32
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"model": deep}
    with pytest.raises(ConversionError, match="levels deep"):
        read_checkpoint(checkpoint(tmp_path / "c.pt", cfg=deep))
    assert time.perf_counter() - began < 20


def test_values_that_are_not_there_are_not_allocated(tmp_path: Path) -> None:
    """Stride 0: one value that claims to be a matrix of 15 GB."""
    state = fairseq_state(tiny_teacher("hubert"), layer_norm=False)
    state["encoder.layers.0.fc1.weight"] = torch.zeros(1).expand(120_000, 32)
    torch.save({"model": state, "args": {"encoder_attention_heads": 4}}, tmp_path / "m.pt")
    with pytest.raises(ConversionError, match="claims 3,840,000 values"):
        convert(tmp_path / "m.pt", tmp_path / "out")


def test_a_deflated_file_is_not_unpacked(tmp_path: Path) -> None:
    torch.save(
        {"model": {"encoder.layers.0.fc1.weight": torch.zeros(2_000_000)}}, tmp_path / "a.pt"
    )
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as plain,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    with pytest.raises(ConversionError, match="would unpack to"):
        read_checkpoint(tmp_path / "b.pt")


# --- how audio is normalised -----------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"do_normalize": "false"}, "do_normalize .*'false', neither true nor false"),
        ({"do_normalize": 1}, "neither true nor false"),
        ({"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80}, "Whisper"),
        ({"sampling_rate": 8000}, "wants audio at 8000 Hz"),
        ({"sampling_rate": "16000"}, "wants audio at 16000 Hz|16000"),
        ("[]", "no object"),
        ("{", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_foreign_preprocessor_is_refused(settings: Any, words: str, teacher: Path) -> None:
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (teacher / "preprocessor_config.json").write_text(text)
    refused(teacher, words)


@pytest.mark.parametrize("size", ["base", "large"])
def test_a_missing_preprocessor_goes_by_the_kind_of_model(size: str, tmp_path: Path) -> None:
    tiny_teacher("hubert", size).save_pretrained(tmp_path)
    assert load_model(tmp_path).normalise is (size == "large")
    edit(tmp_path / "preprocessor_config.json", sampling_rate=16000)
    assert load_model(tmp_path).normalise is True, "the default of transformers' class"
    edit(tmp_path / "preprocessor_config.json", do_normalize=False)
    assert load_model(tmp_path).normalise is False
    edit(tmp_path / "processor_config.json", feature_extractor={"do_normalize": True})
    assert load_model(tmp_path).normalise is True, "newer files go before older ones"


# --- identity ----------------------------------------------------------------------


EDITS: dict[str, Any] = {
    "hidden_act": "relu",
    "feat_extract_activation": "relu",
    "layer_norm_eps": 1e-3,
    "num_attention_heads": 2,
    "conv_stride": [4, 2, 2, 2, 2, 2, 2],
    "do_stable_layer_norm": True,
    "exact_padding": False,
    "hidden_dropout": 0.3,
    "mask_time_prob": 0.1,
}


@pytest.mark.parametrize("name", [*EDITS, "plan", "weights", "do_normalize"])
def test_whatever_changes_the_arithmetic_changes_the_identity(
    name: str, teacher: Path, tmp_path: Path
) -> None:
    """Each edit leaves a folder that loads, with the same weights where they are not the edit."""
    folder = teacher
    edit(folder / "preprocessor_config.json", do_normalize=False)
    if name == "plan":  # which heads of WavLM are kept, not only how many
        tiny_teacher("wavlm").save_pretrained(tmp_path / "wavlm")
        loaded, small = compressed(tmp_path / "wavlm")
        folder = tmp_path / "small"
        save_folder(folder, small, normalise=loaded.normalise)
    before = load_model(folder)
    assert load_model(folder).fingerprint == before.fingerprint
    if name == "plan":
        plan = json.loads((folder / "config.json").read_text())["plan"]
        rows = [layer["heads"] for layer in plan["layers"]]
        row = next(heads for heads in rows if heads and len(heads) < 4)
        row[0] = next(head for head in range(4) if head not in row)
        row.sort()
        edit(folder / "config.json", plan=plan)
    elif name == "weights":
        with_weights(folder, lambda state: state[WEIGHT].view(-1)[0:1].add_(1e-3))
    elif name == "do_normalize":
        edit(folder / "preprocessor_config.json", do_normalize=True)
    else:
        edit(folder / "config.json", **{name: EDITS[name]})
    assert load_model(folder).fingerprint != before.fingerprint


def test_what_a_folder_says_by_default_does_not_change_its_identity(teacher: Path) -> None:
    before = load_model(teacher).fingerprint
    edit(teacher / "config.json", transformers_version="1.0", surprise=1, exact_padding=True)
    assert load_model(teacher).fingerprint == before


def test_a_dense_model_of_ours_and_the_familys_are_one(teacher: Path, tmp_path: Path) -> None:
    loaded = load_model(teacher)
    save_folder(tmp_path / "ours", loaded.whole, normalise=loaded.normalise)
    assert load_model(tmp_path / "ours").fingerprint == loaded.fingerprint


def test_nobody_pays_for_an_identity_that_nobody_asks_for(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslim.backbone import load, loaded

    def costs(*_: Any) -> str:
        raise AssertionError("hashed")

    monkeypatch.setattr(loaded, "fingerprint", costs)
    assert load(teacher) is not None
    with pytest.raises(AssertionError, match="hashed"):
        _ = load_model(teacher).fingerprint


# --- the hub ---------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub's cache with two commits of owner/name; what was never downloaded is known to be missing."""
    from huggingface_hub import constants

    commits = ["a" * 40, "b" * 40]
    home = tmp_path / "hub" / "models--owner--name"
    (home / "refs").mkdir(parents=True)
    for seed, (name, commit) in enumerate(zip(("main", "v1"), commits, strict=True)):
        (home / "refs" / name).write_text(commit)
        tiny_teacher("hubert", seed=seed).save_pretrained(home / "snapshots" / commit)
        (home / ".no_exist" / commit).mkdir(parents=True)
        for missing in ("preprocessor_config.json", "processor_config.json"):
            (home / ".no_exist" / commit / missing).touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return commits


def test_a_revision_is_pinned_in_either_spelling(hub: list[str]) -> None:
    newest = load_model("owner/name")
    assert (newest.source, newest.commit) == ("owner/name", hub[0])
    for pinned in (
        load_model("owner/name@v1"),
        load_model("owner/name", revision="v1"),
        load_model("owner/name@v1", revision="v1"),
    ):
        assert (pinned.source, pinned.commit) == ("owner/name@v1", hub[1])
        assert pinned.fingerprint != newest.fingerprint
    assert load_model(f"owner/name@{hub[1]}").fingerprint == pinned.fingerprint
    assert load_config("owner/name@v1").model_type == "hubert"


def test_a_pinned_model_becomes_a_folder(hub: list[str], tmp_path: Path) -> None:
    converted = convert("owner/name", tmp_path / "out", revision="v1")
    assert converted.family == "hubert"
    assert load_model(tmp_path / "out").fingerprint == load_model("owner/name@v1").fingerprint
    record = json.loads((tmp_path / "out" / "sslim.json").read_text())
    assert record["converted_from"]["commit"] == hub[1]


@pytest.mark.parametrize(
    ("source", "revision", "words"),
    [
        ("owner/name@v1", "main", "names the revision 'v1', --revision 'main'"),
        ("owner/name@v2", None, "config.json is not on this machine"),
        ("owner/other", None, "config.json is not on this machine"),
        (".", "v1", "no revision 'v1'"),
        ("owner/name/more", None, "does not exist"),
        ("owner/name.pt", None, "does not exist"),
        ("x" * 300 + "/y", None, "Repo id|repo id|characters"),
        ("x" * 300, None, "does not exist"),
        ("a\0b", None, "does not exist"),
        ("", None, "does not exist"),
    ],
)
def test_what_no_revision_is(source: str, revision: str | None, words: str, hub: list[str]) -> None:
    with pytest.raises(SslimError, match=words) as caught:
        load_model(source, revision=revision)
    assert "\n" not in str(caught.value)


def test_a_preprocessor_that_was_never_asked_for_is_not_guessed(
    hub: list[str], tmp_path: Path
) -> None:
    marks = tmp_path / "hub" / "models--owner--name" / ".no_exist" / hub[0]
    (marks / "preprocessor_config.json").unlink()
    with pytest.raises(TeacherError, match=r"preprocessor_config\.json is not on this machine"):
        load_model("owner/name")
