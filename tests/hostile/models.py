"""Model folders: values of `config.json` that no model has, weights that are none, code that wants to run."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.hostile.box import Box
from tests.hostile.case import Case, Either, Expected, Make, Usable, refused, written

NAN, INF = float("nan"), float("inf")
VERBS = {
    "inspect": "inspect {in}/m",
    "compress": "compress {in}/m {speech} {out} {tiny}",
    "embed": "embed {in}/m {speech}/00.wav {out}",
    "export": "export {in}/m {out}.onnx",
    "export-int8": "export {in}/m {out}.onnx --format onnx-int8",
    "export-dphubert": "export {in}/m {out}.pth --format dphubert",
    "fidelity": "evaluate {in}/m {teacher} --task fidelity --data {speech}/00.wav",
    "evaluate": "evaluate {in}/m --task ks --data {csv} {fast}",
    "bench": "bench {in}/m --runtime torch --seconds 0.5 --repeats 1",
}


def changed(
    change: Callable[[dict[str, Any]], Any], name: str = "config.json", source: str = "teacher"
) -> Make:
    """A good model folder whose JSON file was altered."""

    def make(box: Box) -> None:
        folder = box.copy(source, "m")
        path = folder / name
        facts = json.loads(path.read_text()) if path.is_file() else {}
        new = change(facts)
        path.write_text(
            json.dumps(facts if new is None else new).replace("@CANARY@", str(box.canary))
        )

    return make


def key(name: str, value: Any, file: str = "config.json", source: str = "teacher") -> Make:
    """One key of a JSON file set to a value."""
    return changed(lambda facts: facts.__setitem__(name, value), file, source)


def content(name: str, data: bytes | str, source: str = "teacher") -> Make:
    """One file of the folder replaced."""
    return lambda box: nothing(written(box.copy(source, "m") / name, data))


def nothing(_: object) -> None:
    """For lambdas that are made to return nothing."""


KEYS: dict[str, tuple[Any, ...]] = {
    "hidden_size": (None, 0, -32, 33, "big", [32], 2**40, 1e308, NAN, True, {}),
    "num_attention_heads": (None, 0, -4, 5, "x", 2**31, [4]),
    "num_hidden_layers": (None, 0, -1, 10**6, 10**12, "3", [], 4, 2),
    "intermediate_size": (None, 0, -1, 10**12, "x", 41),
    "conv_dim": (None, [], [0] * 7, [-1] * 7, [10**7] * 7, "abc", [24], 5, [None] * 7, [[24]] * 7),
    "conv_stride": (None, [], [0] * 7, [-1] * 7, "x", [5], [10**9] * 7),
    "conv_kernel": (None, [], [0] * 7, [-3] * 7, [10**9] * 7, [10]),
    "num_conv_pos_embeddings": (None, 0, -1, 10**12, "x"),
    "num_conv_pos_embedding_groups": (None, 0, -4, 5, 10**9, "x"),
    "layer_norm_eps": (None, "x", NAN, INF, -1.0, 0.0, [1e-5]),
    "hidden_act": (None, "evil", 5, [], "__import__"),
    "feat_extract_activation": (None, "evil", 7),
    "feat_extract_norm": (None, "none", 3, "batch"),
    "conv_bias": ("maybe", 7),
    "do_stable_layer_norm": ("false", 5),
    "architectures": (None, [], 5, [5], "HubertModel", ["Evil"], [None], ["WhisperModel"]),
    "model_type": (None, 5, "", "evil", "whisper", "bert", ["hubert"], "../../x", "wavlm"),
    "add_adapter": (True,),
    "plan": ({}, [], 5, "x", {"conv": 5}),
    "layerdrop": (NAN, "x", 7),
    "hidden_dropout": (NAN, "x", 2.0),
    "vocab_size": (0, -1, 10**12, "x"),
    "dtype": ("evil", 5, "int8", "float16"),
    "transformers_version": (5, None),
    "id2label": (5, {"x": "y"}, {str(i): "l" for i in range(50_000)}),
    "problem_type": ("evil", 5),
    "attn_implementation": ("evil",),
    "_attn_implementation": ("evil",),
    "quantization_config": (
        {"quant_method": "evil"},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        5,
    ),
    "base_model_pp_plan": ({"x": "y"},),
}
"""Key -> values. Most have no meaning; those that may stand are in HARMLESS."""
HARMLESS = {
    "num_hidden_layers": (),
    "layerdrop": (NAN, "x", 7),
    "hidden_dropout": (NAN, "x", 2.0),
    "vocab_size": (0, -1, 10**12, "x"),
    "architectures": (None, [], ["Evil"], [None], ["WhisperModel"], 5, [5], "HubertModel"),
    "conv_bias": ("maybe", 7),
    "do_stable_layer_norm": ("false", 5),
    "dtype": ("evil", 5, "int8", "float16"),
    "transformers_version": (5, None),
    "id2label": (5, {"x": "y"}, KEYS["id2label"][2]),
    "problem_type": ("evil", 5),
    "attn_implementation": ("evil",),
    "_attn_implementation": ("evil",),
    "quantization_config": KEYS["quantization_config"],
    "base_model_pp_plan": ({"x": "y"},),
    "layer_norm_eps": (0.0,),
    # The family in transformers declares no plan, so that its models are what their weights are.
    "plan": ({}, [], 5, "x", {"conv": 5}),
    "num_conv_pos_embedding_groups": (),
}
"""Values that a backbone does not use, or that have a default: both answers are defensible."""
# By itself a configuration says nothing of whether the weights fit it.
FITS_ALONE = {
    ("num_hidden_layers", 4),
    ("num_hidden_layers", 2),
    ("intermediate_size", 41),
    ("model_type", "wavlm"),
    ("conv_bias", "maybe"),
}
QUICK_KEYS = [
    ("hidden_size", "big"),
    ("num_attention_heads", 0),
    ("num_hidden_layers", 10**6),
    ("conv_stride", [0] * 7),
    ("conv_dim", None),
]


def _one(
    name: str,
    make: Make,
    expected: Expected,
    verbs: tuple[str, ...],
    quick: bool = False,
    why: str = "",
    **more: Any,
) -> Iterator[Case]:
    room = {
        "bench": "deploy",
        "evaluate": "evaluate",
        "fidelity": "evaluate",
        "export-int8": "deploy",
        "export-dphubert": "deploy",
    }
    for verb in verbs:
        mine = expected
        if isinstance(expected, Usable):
            mine = Usable(writes=("out", "out.onnx", "out.onnx.json", "out.pth", "out.pth.json"))
        elif isinstance(expected, Either):
            mine = Either(
                expected.refused,
                Usable(writes=("out", "out.onnx", "out.onnx.json", "out.pth", "out.pth.json")),
            )
        elif verb == "inspect" and name in ALONE:
            mine = Either()
        seconds = 60.0 if verb == "bench" else 45.0
        yield Case(
            f"{verb}-{name}",
            room.get(verb, "backbone"),
            VERBS[verb],
            mine,
            why,
            make,
            quick and verb in ("inspect", "embed"),
            seconds=seconds,
            gibibytes=2.5,
            **more,
        )


ALONE: set[str] = set()
"""Names of cases in which `inspect`, which reads a configuration alone, has nothing to object to."""


def _config() -> Iterator[Case]:
    all_verbs = tuple(name for name in VERBS if name != "bench")
    for name, values in KEYS.items():
        for number, value in enumerate(values):
            title = f"config-{name.replace('_', '-')}-{number}"
            harmless = any(value is mine or value == mine for mine in HARMLESS.get(name, ()))
            if (name, value if not isinstance(value, (list, dict)) else None) in FITS_ALONE:
                ALONE.add(title)
            quick = any(name == n and value == v for n, v in QUICK_KEYS)
            verbs = all_verbs if number < 3 else ("inspect", "embed", "compress")
            yield from _one(
                title,
                key(name, value),
                Either() if harmless else refused(),
                verbs,
                quick,
                f"{name} = {value!r}"[:120],
            )


PLANS: dict[str, Any] = {
    "list": [],
    "text": "x",
    "number": 5,
    "empty": {},
    "conv-number": lambda plan: plan | {"conv": 5},
    "conv-missing": lambda plan: {"layers": plan["layers"]},
    "layers-missing": lambda plan: {"conv": plan["conv"]},
    "one-layer-less": lambda plan: plan | {"layers": plan["layers"][:-1]},
    "one-layer-more": lambda plan: plan | {"layers": plan["layers"] + plan["layers"][-1:]},
    "layer-null": lambda plan: plan | {"layers": [None] * len(plan["layers"])},
    "layer-list": lambda plan: plan | {"layers": [[1, 2]] * len(plan["layers"])},
    "heads-text": lambda plan: _layer(plan, heads="all"),
    "heads-beyond": lambda plan: _layer(plan, heads=[0, 99]),
    "heads-minus": lambda plan: _layer(plan, heads=[-1]),
    "heads-twice": lambda plan: _layer(plan, heads=[0, 0]),
    "heads-falling": lambda plan: _layer(plan, heads=[1, 0]),
    "heads-huge": lambda plan: _layer(plan, heads=[10**30]),
    "heads-nan": lambda plan: _layer(plan, heads=[NAN]),
    "heads-null-each": lambda plan: _layer(plan, heads=[None]),
    "ffn-many": lambda plan: _layer(plan, ffn=list(range(10**6))),
    "ffn-float": lambda plan: _layer(plan, ffn=[0.5, 1.5]),
    "conv-empty": lambda plan: plan | {"conv": [[] for _ in plan["conv"]]},
    "axes-number": lambda plan: plan | {"axes": 5},
    "axes-list": lambda plan: plan | {"axes": [[1]]},
    "axes-null": lambda plan: plan | {"axes": {"conv.0": None}},
    "axes-twice": lambda plan: plan | {"axes": {"conv.0": [0]}},
    "axes-unknown": lambda plan: plan | {"axes": {"x" * 10**5: [0]}},
    "conv-beyond": lambda plan: plan | {"conv": [[10**9] for _ in plan["conv"]]},
    # By its number: which unit it is shows in no shape.
    "other-sizes": lambda plan: _layer(
        plan, ffn=[0, 1] if len(plan["layers"][0]["ffn"] or ()) == 1 else [0]
    ),
}


def _layer(plan: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return plan | {"layers": [plan["layers"][0] | changes, *plan["layers"][1:]]}


def _plans() -> Iterator[Case]:
    ALONE.add("plan-other-sizes")  # a plan of other sizes is a plan
    ALONE.add("plan-empty")
    for name, plan in PLANS.items():

        def change(facts: dict[str, Any], plan: Any = plan) -> None:
            facts["plan"] = plan(facts["plan"]) if callable(plan) else plan

        yield from _one(
            f"plan-{name}",
            changed(change, source="run"),
            Either() if name == "empty" else refused(),
            ("inspect", "embed", "compress", "export", "fidelity"),
            name in ("heads-beyond", "conv-number"),
            "a plan that is not of this model",
        )


def header(facts: bytes, data: bytes = b"", size: int | None = None) -> bytes:
    """A safetensors file with this header."""
    return struct.pack("<Q", len(facts) if size is None else size) + facts + data


def tensors(change: Callable[[dict[str, Any]], None]) -> Make:
    """The weights altered and written again."""

    def make(box: Box) -> None:
        from safetensors.torch import load_file, save_file

        path = box.copy("teacher", "m") / "model.safetensors"
        found = load_file(path)
        change(found)
        path.unlink()
        save_file(found, path, metadata={"format": "pt"})

    return make


def _first(found: dict[str, Any]) -> str:
    return next(name for name in sorted(found) if name.endswith("intermediate_dense.weight"))


def _weights() -> Iterator[Case]:
    import torch

    def set_first(value: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
        return lambda found: found.__setitem__(_first(found), value(found[_first(found)]))

    def truncated(share: float) -> Make:
        def make(box: Box) -> None:
            path = box.copy("teacher", "m") / "model.safetensors"
            path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

        return make

    def missing(box: Box) -> None:
        (box.copy("teacher", "m") / "model.safetensors").unlink()

    def pickled(box: Box) -> None:
        from tests.hostile.checkpoints import _orders, zipped

        folder = box.copy("teacher", "m")
        (folder / "model.safetensors").unlink()
        written(folder / "pytorch_model.bin", zipped(_orders(box)["os-system"]))

    def index(box: Box) -> None:
        folder = box.copy("teacher", "m")
        (folder / "model.safetensors").unlink()
        written(
            folder / "model.safetensors.index.json",
            json.dumps({"metadata": {}, "weight_map": {"x": "../../../etc/passwd"}}),
        )

    entry = json.dumps(
        {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ).encode()
    overlap = json.dumps(
        {
            "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "y": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        }
    ).encode()
    name = "model.safetensors"
    makers: dict[str, Make] = {
        "empty": content(name, b""),
        "half": truncated(0.5),
        "almost": truncated(0.999),
        "header-cut": truncated(0.001),
        "junk": content(name, np.random.default_rng(0).bytes(5000)),
        "lfs": content(name, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "web-page": content(name, "<!DOCTYPE html><html>404</html>"),
        "header-huge": content(name, header(b"{}", size=2**63)),
        "header-2-gib": content(name, header(b"{}", size=2**31)),
        "header-list": content(name, header(b"[]")),
        "header-deep": content(name, header(b"[" * 100_000)),
        "header-not-utf8": content(name, header(b"\xff\xfe")),
        "offsets-beyond": content(name, header(entry)),
        "overlap": content(name, header(overlap, bytes(12))),
        "no-tensors": content(name, header(b"{}")),
        "missing": missing,
        "pickle": pickled,
        "index-outside": index,
        "nan": tensors(set_first(lambda w: w * NAN)),
        "one-inf": tensors(lambda found: found[_first(found)].view(-1).__setitem__(0, INF)),
        "int8": tensors(set_first(lambda w: w.to(torch.int8))),
        "bool": tensors(set_first(lambda w: w > 0)),
        "complex": tensors(set_first(lambda w: w.to(torch.complex64))),
        "shape": tensors(set_first(lambda w: w[:-1].contiguous())),
        "renamed": tensors(lambda found: found.__setitem__("evil", found.pop(_first(found)))),
        "one-less": tensors(lambda found: nothing(found.pop(_first(found)))),
    }
    ALONE.update(f"weights-{name}" for name in makers)
    verbs = tuple(name for name in VERBS if name != "inspect")
    for case, make in makers.items():
        yield from _one(
            f"weights-{case}",
            make,
            refused(),
            verbs
            if case in ("half", "nan", "int8", "empty", "pickle")
            else ("embed", "compress", "inspect"),
            case in ("half", "nan", "junk"),
            "these are not the model's weights",
        )
    extra = tensors(lambda found: found.__setitem__("evil.weight", torch.zeros(2)))
    yield from _one("weights-extra", extra, Either(), ("embed", "compress"))
    half = tensors(
        lambda found: [found.__setitem__(n, found[n].half()) for n in list(found)] and None
    )
    yield from _one(
        "weights-float16",
        half,
        Usable(),
        ("embed", "inspect"),
        why="half precision is usual: a good control",
    )


EVIL = "import pathlib\npathlib.Path({canary!r}).touch()\nclass C: pass\nclass M: pass\n"


def code(**files: dict[str, Any]) -> Make:
    """A folder that brings code, and keys that name it."""

    def make(box: Box) -> None:
        folder = box.copy("teacher", "m")
        written(folder / "evil.py", EVIL.format(canary=str(box.canary)))
        written(folder / "modeling_sslim.py", EVIL.format(canary=str(box.canary)))
        for name, changes in files.items():
            path = folder / f"{name}.json"
            facts = json.loads(path.read_text()) if path.is_file() else {}
            path.write_text(json.dumps(facts | changes))

    return make


AUTO = {
    "AutoConfig": "evil.C",
    "AutoModel": "evil.M",
    "AutoModelForCTC": "evil.M",
    "AutoFeatureExtractor": "evil.M",
    "AutoProcessor": "evil.M",
    "AutoTokenizer": ["evil.M", "evil.M"],
}
REMOTE = {name: "attacker/repo--evil.M" for name in AUTO}


def clean(box: Box, outcome: Any) -> str:
    """Nothing of the hostile keys is in what was written."""
    if not box.out.is_dir():
        return ""
    for path in box.out.rglob("*"):
        if path.suffix in (".json", ".md", ".py", ".html") and path.is_file():
            text = path.read_text(errors="replace")
            for word in ("evil.M", "evil.C", "attacker/", "custom_pipelines", "root:x:0"):
                if word in text:
                    return f"{path.relative_to(box.out)} holds {word!r}"
    return ""


def _code() -> Iterator[Case]:
    makers = {
        "auto-map": (code(config={"auto_map": AUTO}), True),
        "auto-map-remote": (code(config={"auto_map": REMOTE}), True),
        "auto-map-unknown-type": (code(config={"auto_map": AUTO, "model_type": "evil"}), False),
        "auto-map-remote-unknown-type": (
            code(config={"auto_map": REMOTE, "model_type": "evil"}),
            False,
        ),
        "auto-map-sslim": (code(config={"auto_map": AUTO, "model_type": "sslim-evil"}), False),
        "custom-pipelines": (
            code(
                config={
                    "custom_pipelines": {
                        "feature-extraction": {"impl": "attacker/repo--pipe.P", "pt": ["AutoModel"]}
                    }
                }
            ),
            True,
        ),
        "tokenizer-auto-map": (
            code(
                tokenizer_config={"auto_map": AUTO, "tokenizer_class": "Wav2Vec2CTCTokenizer"},
                vocab={"a": 0},
            ),
            True,
        ),
        "tokenizer-remote": (
            code(tokenizer_config={"auto_map": REMOTE, "tokenizer_class": "evil"}, vocab={"a": 0}),
            True,
        ),
        "preprocessor-auto-map": (
            code(preprocessor_config={"auto_map": AUTO, "feature_extractor_type": "Evil"}),
            True,
        ),
        "processor-auto-map": (
            code(processor_config={"auto_map": AUTO, "processor_class": "Evil"}),
            True,
        ),
        "adapter": (
            code(adapter_config={"base_model_name_or_path": "attacker/repo", "peft_type": "LORA"}),
            True,
        ),
        "name-or-path": (code(config={"_name_or_path": "attacker/repo"}), True),
        "generation": (code(generation_config={"auto_map": REMOTE}), True),
    }
    for name, (make, usable) in makers.items():
        for verb in ("inspect", "compress", "embed", "export", "fidelity"):
            good: Expected = Usable(writes=("out", "out.onnx", "out.onnx.json"), check=clean)
            expected = Either(usable=good) if usable else refused()  # type: ignore[arg-type]
            yield Case(
                f"{verb}-code-{name}",
                "backbone",
                VERBS[verb],
                expected,
                "the weights may be good; the code is never run, and does not travel on",
                make,
                name in ("auto-map-unknown-type", "custom-pipelines", "tokenizer-remote")
                and verb in ("inspect", "compress"),
                typed="y\ny\ny\ny\n",
                seconds=40,
            )
    unknown = makers["auto-map-unknown-type"][0]
    yield Case(
        "bench-code-transformers",
        "deploy",
        "bench {in}/m --runtime transformers --seconds 0.5 --repeats 1",
        refused(),
        "a worker must not ask either",
        unknown,
        typed="y\ny\n",
        seconds=60,
    )


def _files() -> Iterator[Case]:
    def link(name: str, target: str) -> Make:
        def make(box: Box) -> None:
            path = box.copy("teacher", "m") / name
            path.unlink(missing_ok=True)
            path.symlink_to(target.replace("@ROOT@", str(box.root)))

        return make

    secret = clean
    for name in (
        "vocab.json",
        "tokenizer.json",
        "special_tokens_map.json",
        "preprocessor_config.json",
        "README.md",
    ):
        good = Usable(writes=("out",), check=secret)
        yield Case(
            f"compress-link-{name.split('.')[0].replace('_', '-')}",
            "backbone",
            VERBS["compress"],
            Either(usable=good),
            "what lies outside the folder is not the folder's to publish",
            link(name, "/etc/passwd"),
            name == "vocab.json",
        )
    yield from _one(
        "link-config-zero", link("config.json", "/dev/zero"), refused(), ("inspect", "embed")
    )
    yield from _one(
        "link-weights-zero",
        link("model.safetensors", "/dev/zero"),
        refused(),
        ("embed", "compress"),
    )
    yield from _one(
        "link-config-itself", link("config.json", "config.json"), refused(), ("inspect",)
    )

    def fifo(box: Box) -> None:
        path = box.copy("teacher", "m") / "config.json"
        path.unlink()
        os.mkfifo(path)

    def folder(box: Box) -> None:
        path = box.copy("teacher", "m") / "config.json"
        path.unlink()
        path.mkdir()

    yield from _one("config-fifo", fifo, refused(), ("inspect", "embed"))
    yield from _one("config-folder", folder, refused(), ("inspect",))
    for name, data in {
        "null": "null",
        "number": "5",
        "text": '"hubert"',
        "list": "[]",
        "empty-object": "{}",
        "empty": "",
        "half": '{"model_type": "hub',
        "deep": "[" * 100_000,
        "deep-object": '{"a":' * 50_000,
        "utf-16": '{"model_type": "hubert"}'.encode("utf-16"),
        "binary": np.random.default_rng(0).bytes(500),
        "duplicate-keys": '{"model_type": "evil", "model_type": 5}',
        "digits": '{"model_type": "hubert", "hidden_size": ' + "9" * 5000 + "}",
        "long": '{"model_type": "hubert", "x": "' + "x" * 30_000_000 + '"}',
    }.items():
        yield from _one(
            f"config-is-{name}",
            content("config.json", data),
            refused() if name != "long" else Either(),
            ("inspect", "embed", "compress", "export"),
            name in ("null", "deep"),
        )
    for name, value in {
        "whisper": {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80},
        "normalise-text": {
            "do_normalize": "false",
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        },
        "normalise-number": {
            "do_normalize": 7,
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        },
        "rate-8000": {"sampling_rate": 8000, "feature_extractor_type": "Wav2Vec2FeatureExtractor"},
        "rate-text": {
            "sampling_rate": "16000",
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        },
        "rate-0": {"sampling_rate": 0, "feature_extractor_type": "Wav2Vec2FeatureExtractor"},
        "rate-nan": {"sampling_rate": NAN, "feature_extractor_type": "Wav2Vec2FeatureExtractor"},
        "type-number": {"feature_extractor_type": 5},
        "list": [1, 2],
        "null": None,
    }.items():
        yield from _one(
            f"preprocessor-{name}",
            content("preprocessor_config.json", json.dumps(value)),
            refused(),
            ("embed", "compress"),
            name == "normalise-text",
            "how audio is fed decides every number: no guessing",
        )
    for name, data in {
        "half": '{"do_norm',
        "empty": "",
        "deep": "[" * 100_000,
        "binary": np.random.default_rng(0).bytes(90),
    }.items():
        yield from _one(
            f"preprocessor-is-{name}",
            content("preprocessor_config.json", data),
            refused(),
            ("embed", "compress"),
            name == "half",
            "how audio is fed decides every number: no guessing",
        )


def _facts() -> Iterator[Case]:
    """`sslim.json` of a folder that was compressed once."""
    for name, data in {
        "null": "null",
        "list": "[]",
        "empty": "",
        "half": '{"res',
        "numbers": '{"result": 5, "teacher": 5, "config": 5, "audio": 5}',
        "deep": "[" * 100_000,
        "files": json.dumps(
            {"files": {"../../etc/passwd": "00", "model.safetensors": 5}, "fingerprint": 5}
        ),
    }.items():
        make = content("sslim.json", data, "run")
        for verb in ("inspect", "embed", "export", "compress"):
            allowed = Usable(writes=("out", "out.onnx", "out.onnx.json"))
            yield Case(
                f"{verb}-sslim-json-{name}",
                "backbone",
                VERBS[verb],
                Either(usable=allowed),
                "the model itself may be whole",
                make,
                changes=("in/m/README.md",),
            )
        yield Case(
            f"report-sslim-json-{name}",
            "report",
            "report {in}/m",
            Either(usable=Usable(writes=("in/m/report.html",))),
            "a report may leave out what it cannot read, and say so",
            make,
            name in ("null", "numbers"),
        )
        yield Case(
            f"checklist-sslim-json-{name}", "report", "checklist {in}/m", Either(), make=make
        )


def _controls() -> Iterator[Case]:
    for verb, words in VERBS.items():
        writes = ("out", "out.onnx", "out.onnx.json", "out.pth", "out.pth.json")
        expected: Expected = Usable(writes=writes)
        room = (
            "deploy"
            if verb in ("bench", "export", "export-int8", "export-dphubert")
            else "backbone"
        )
        # Two seconds each for export and bench: the slow tests see them.
        yield Case(
            f"{verb}-good-model",
            room,
            words.replace("{in}/m", "{teacher}"),
            expected,
            "a good control",
            quick=verb in ("inspect", "embed", "export-dphubert"),
            seconds=120,
        )
        yield Case(
            f"{verb}-good-run",
            room,
            words.replace("{in}/m", "{run}"),
            expected,
            "a good control",
            seconds=120,
            changes=("shared/run/README.md",),
        )
    for name, words in {
        "missing": "inspect {in}/gone",
        "no-such-user": "inspect ~nosuchuser/m",
        "too-long": "inspect " + "n" * 300,
        "hub-id": "inspect nobody/nothing-of-the-kind",
        "url": "inspect https://127.0.0.1:9/x",
        "dev-null": "inspect /dev/null",
        "dev-zero": "inspect /dev/zero",
        "dots": "inspect ..",
        "nul-like": "inspect %00",
        "embed-missing": "embed {in}/gone {speech} {out}",
        "json": "inspect {teacher} --json /dev/null/x.json",
        "png": "inspect {teacher} --png {in}/gone/x.png",
    }.items():
        # Asking the hub for an id is what an id means; here it cannot be reached, and says so.
        yield Case(
            f"model-{name}",
            "report" if name in ("json", "png") else "backbone",
            words,
            refused(),
            seconds=40,
            asks_hub=name == "hub-id",
        )


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _controls()
    yield from _config()
    yield from _plans()
    yield from _weights()
    yield from _code()
    yield from _files()
    yield from _facts()
