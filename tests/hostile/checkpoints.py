"""Checkpoint files that run code, that are bombs, that hold no weights, or other weights than they say."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import posix
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.hostile.box import Box
from tests.hostile.case import Case, Either, Expected, Refused, Usable, refused, written

ADDRESS = "convert {in}/x.pt {out}"


class Order:
    """Pickles as a call of something with something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.order = (function, arguments)

    def __reduce__(self) -> Any:
        return self.order


def zipped(
    pickled: bytes, tensors: dict[str, bytes] | None = None, compress: bool = False
) -> bytes:
    """A file in torch's zip form."""
    stream = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", kind) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for name, content in (tensors or {}).items():
            archive.writestr(f"archive/data/{name}", content)
    return stream.getvalue()


def saved(content: Any) -> bytes:
    """What torch.save writes."""
    import torch

    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def fairseq(**changes: Any) -> dict[str, Any]:
    """A good fairseq checkpoint; `changes` replace parts of the file."""
    from tests.models import tiny_teacher
    from tests.test_convert import fairseq_state

    state = fairseq_state(tiny_teacher("hubert", num_attention_heads=8), layer_norm=False)
    told = {
        "arch": "hubert",
        "encoder_attention_heads": 8,
        "layer_norm_first": False,
        "normalize": False,
    }
    return {"model": state, "cfg": {"model": told, "task": {"normalize": False}}} | changes


def with_weight(name: str, make: Callable[[Any], Any]) -> Callable[[Box], bytes]:
    """A good file in which the weight that ends in `name` was altered."""

    def content(box: Box) -> bytes:
        data = fairseq()
        key = next(key for key in data["model"] if key.endswith(name))
        data["model"][key] = make(data["model"][key])
        return saved(data)

    return content


def with_settings(**changes: Any) -> Callable[[Box], bytes]:
    """A good file with other settings."""

    def content(box: Box) -> bytes:
        data = fairseq()
        data["cfg"]["model"] |= changes
        return saved(data)

    return content


def ladder(levels: int) -> Any:
    """Each level holds the one below twice: small as a file, endless as a walk."""
    level: Any = {"encoder_attention_heads_": 8}
    for _ in range(levels):
        level = {"model": level, "w2v_args": level}
    return level


def itself() -> dict[str, Any]:
    """A dictionary that holds itself."""
    data: dict[str, Any] = {}
    data["cfg"] = data["model_"] = data
    return data


def _deep(levels: int) -> bytes:
    return pickle.PROTO + b"\x02" + b"]" * levels + b"a" * (levels - 1) + b"."


def _orders(box: Box) -> dict[str, bytes]:
    touch = f"touch {box.canary}"
    compiled = f"open({str(box.canary)!r}, 'w').close()"
    return {
        "os-system": pickle.dumps(Order(os.system, touch)),
        "posix-system": pickle.dumps(Order(posix.system, touch)),
        "eval": pickle.dumps(Order(eval, compiled)),
        "exec": pickle.dumps(Order(exec, compiled)),
        "popen": pickle.dumps(Order(os.popen, touch)),
        "open": pickle.dumps(Order(open, str(box.canary), "w")),
        "getattr": b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR(S'"
        + touch.encode()
        + b"'\ntR.",
        "importlib": b"cimportlib\nimport_module\n(S'os'\ntR.",
        "torch-hub": b"ctorch.hub\nload\n(S'attacker/repo'\nS'x'\ntR.",
        "argparse-file": b"cargparse\nFileType\n(S'w'\ntR(S'"
        + str(box.canary).encode()
        + b"'\ntR.",
        "build": pickle.dumps({"model": Order(os.system, touch), "cfg": {}}),
        "persistent": b"\x80\x02(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ.",
        "inst": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + touch.encode() + b"'\no.",
        "reduce-defaultdict": b"ccollections\ndefaultdict\n(cos\nsystem\ntR.",
        "typing": b"ctyping\nget_type_hints\n(NtR.",
    }


ORDERS = [
    "os-system",
    "posix-system",
    "eval",
    "exec",
    "popen",
    "open",
    "getattr",
    "importlib",
    "torch-hub",
    "argparse-file",
    "build",
    "persistent",
    "inst",
    "obj",
    "reduce-defaultdict",
    "typing",
]


def _files() -> Iterator[tuple[str, Callable[[Box], bytes], Expected]]:
    import torch

    sum_up = "finite|NaN|infinit"
    yield "good", lambda box: saved(fairseq()), Usable("hubert")
    yield "good-legacy", lambda box: _legacy(), Usable("hubert")
    yield (
        "good-namespace",
        lambda box: saved(
            fairseq(cfg=None, args=argparse.Namespace(arch="hubert", encoder_attention_heads=8))
        ),
        Usable("hubert"),
    )
    yield "nan", with_weight("fc1.weight", lambda w: w * float("nan")), refused(sum_up)
    yield (
        "one-inf",
        with_weight("fc1.bias", lambda w: torch.cat([w[:-1], torch.tensor([float("inf")])])),
        refused(sum_up),
    )
    yield "int8", with_weight("fc1.weight", lambda w: w.to(torch.int8)), refused()
    yield "int64", with_weight("fc1.weight", lambda w: w.to(torch.int64)), refused()
    yield "bool", with_weight("fc1.weight", lambda w: w > 0), refused()
    yield "complex", with_weight("fc1.weight", lambda w: w.to(torch.complex64)), refused()
    yield "half", with_weight("fc1.weight", lambda w: w.half()), Usable("hubert")
    yield "double-huge", with_weight("fc1.weight", lambda w: w.double() * 1e300), refused(sum_up)
    yield "sparse", with_weight("fc1.weight", lambda w: w.to_sparse()), refused()
    yield (
        "quantised",
        with_weight("fc1.weight", _quantised),
        refused(),
    )
    yield "meta", with_weight("fc1.weight", lambda w: w.to("meta")), refused()
    yield (
        "stride-0-wide",
        with_weight("fc1.weight", lambda w: torch.zeros(1, 1).expand(10**9, 32)),
        refused(),
    )
    yield (
        "stride-0-square",
        with_weight("fc1.weight", lambda w: torch.zeros(1).expand(2**20, 2**20)),
        refused(),
    )
    yield (
        "stride-0-conv",
        with_weight(
            "conv_layers.0.0.weight", lambda w: torch.zeros(1, 1, 1).expand(10**7, 1, 10**5)
        ),
        refused(),
    )
    yield "empty-weight", with_weight("fc1.weight", lambda w: w[:0]), refused()
    yield "scalar-weight", with_weight("fc1.weight", lambda w: torch.tensor(1.0)), refused()
    yield "list-weight", with_weight("fc1.weight", lambda w: w.tolist()), refused()
    yield "none-weight", with_weight("fc1.weight", lambda w: None), refused()
    yield "missing-weight", lambda box: saved(_without("fc1.weight")), refused("missing|lacks")
    yield "extra-weight", lambda box: saved(_with_name("encoder.evil")), refused("evil")
    yield (
        "layer-10000",
        lambda box: saved(_with_name("encoder.layers.100000.fc1.weight")),
        refused(),
    )
    yield (
        "layer-digits",
        lambda box: saved(_with_name(f"encoder.layers.{'9' * 5000}.fc1.weight")),
        refused(),
    )
    yield "name-int", lambda box: saved(_with_name(5)), refused()
    yield "name-null", lambda box: saved(_with_name(None)), refused()
    yield "name-markup", lambda box: saved(_with_name("encoder.[/red]\n\x1b[2J")), refused()
    yield "heads-0", with_settings(encoder_attention_heads=0), refused()
    yield "heads-minus", with_settings(encoder_attention_heads=-8), refused()
    yield "heads-text", with_settings(encoder_attention_heads="many"), refused()
    yield "heads-7", with_settings(encoder_attention_heads=7), refused()
    yield "heads-nan", with_settings(encoder_attention_heads=float("nan")), refused()
    yield "heads-digits", with_settings(encoder_attention_heads="9" * 5000), refused()
    yield "heads-list", with_settings(encoder_attention_heads=[8]), refused()
    # A list names nothing, so that the family is not told; that it was guessed is said.
    yield "arch-list", with_settings(arch=["hubert"]), Either(usable=Usable("wav2vec2"))
    yield (
        "settings-ladder",
        lambda box: saved(fairseq(cfg=ladder(26))),
        Either(usable=Usable("hubert")),
    )
    yield (
        "settings-ladder-60",
        lambda box: saved(fairseq(cfg=ladder(60), args=ladder(60))),
        Either(usable=Usable("hubert")),
    )
    yield (
        "settings-itself",
        lambda box: saved(fairseq(cfg=itself())),
        Either(usable=Usable("hubert")),
    )
    yield (
        "settings-deep",
        lambda box: saved(fairseq(cfg=_nested(3000))),
        Either(usable=Usable("hubert")),
    )
    yield "settings-list", lambda box: saved(fairseq(cfg=[1, 2])), Either(usable=Usable("hubert"))
    yield "model-itself", lambda box: saved(_loop()), refused()
    yield "model-empty", lambda box: saved({"model": {}}), refused()
    yield "model-list", lambda box: saved({"model": [1, 2, 3]}), refused()
    yield "top-list", lambda box: saved([1, 2]), refused()
    yield "top-tensor", lambda box: saved(torch.zeros(3)), refused()
    yield "top-none", lambda box: saved(None), refused()
    yield "top-string", lambda box: saved("x" * 10**6), refused()
    yield "top-nested-lists", lambda box: saved(_nested_list(900)), refused()
    yield "deep-pickle", lambda box: zipped(_deep(200_000)), refused()
    yield "deflated-bomb", lambda box: _bomb(), refused()
    yield "zip-of-nothing", lambda box: zipped(b""), refused()
    yield "zip-other", lambda box: _other_zip(), refused()
    yield "truncated", lambda box: saved(fairseq())[:5000], refused()
    yield "cut-at-end", lambda box: saved(fairseq())[:-100], refused()
    yield "empty", lambda box: b"", refused()
    yield "junk", lambda box: np.random.default_rng(0).bytes(5000), refused()
    yield "web-page", lambda box: b"<!DOCTYPE html><html>404</html>", refused("text or web page")
    yield (
        "lfs",
        lambda box: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        refused("text"),
    )
    yield "storage-huge", lambda box: zipped(_storage(2**50)), refused()
    yield "storage-overlap", lambda box: zipped(_storage(4), {"0": bytes(4)}), refused()
    for key, value in {
        "encoder_embed_dim": 0,
        "encoder_num_layers": -1,
        "encoder_head_dim": 0,
        "encoder_ff_interm_features": [],
        "extractor_conv_layer_config": "x",
        "encoder_num_heads": [10**9] * 3,
        "encoder_use_attention": None,
        "extractor_mode": 5,
        "encoder_pos_conv_groups": 0,
        "encoder_dropout": float("nan"),
    }.items():
        yield (
            f"dphubert-{key.replace('_', '-')}",
            (lambda box, key=key, value=value: saved(_dphubert(**{key: value}))),
            refused() if "dropout" not in key else Either(usable=Usable("hubert")),
        )
    yield (
        "dphubert-empty-config",
        lambda box: saved({"state_dict": _dphubert()["state_dict"], "config": {}}),
        refused(),
    )
    yield (
        "dphubert-config-list",
        lambda box: saved({"state_dict": _dphubert()["state_dict"], "config": [1]}),
        refused(),
    )
    yield (
        "torchaudio-two-weights",
        lambda box: saved({"encoder.transformer.layers.0.x": torch.zeros(2)}),
        refused(),
    )
    yield "torchaudio-none", lambda box: saved({"encoder.transformer.layers.0.x": None}), refused()


def _quantised(weight: Any) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what a file may hold
        return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


def _dphubert(**changes: Any) -> dict[str, Any]:
    import torch

    config = {
        "encoder_embed_dim": 8, "encoder_num_layers": 1, "encoder_head_dim": 4, "encoder_num_heads": [2],
        "encoder_ff_interm_features": [4], "extractor_conv_layer_config": [(4, 10, 5)] * 2,
        "encoder_use_attention": [True], "encoder_use_feed_forward": [True],
        "extractor_mode": "group_norm", "extractor_conv_bias": False,
        "encoder_layer_norm_first": False, "encoder_pos_conv_kernel": 8, "encoder_pos_conv_groups": 2,
        "encoder_projection_dropout": 0.0, "encoder_attention_dropout": 0.0, "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0, "normalize_waveform": False,
    }  # fmt: skip
    return {
        "state_dict": {"encoder.transformer.layers.0.attention.k_proj.weight": torch.zeros(8, 8)},
        "config": config | changes,
    }


def _legacy() -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(fairseq(), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _without(name: str) -> dict[str, Any]:
    data = fairseq()
    data["model"] = {
        key: value for key, value in data["model"].items() if not key.endswith(f"1.{name}")
    }
    return data


def _with_name(name: Any) -> dict[str, Any]:
    import torch

    data = fairseq()
    data["model"][name] = torch.zeros(2, 2)
    return data


def _nested(levels: int) -> Any:
    level: Any = 1
    for _ in range(min(levels, 400)):
        level = {"model": level}
    return level


def _nested_list(levels: int) -> Any:
    level: Any = []
    for _ in range(min(levels, 400)):
        level = [level]
    return level


def _loop() -> dict[str, Any]:
    data: dict[str, Any] = {}
    data["model"] = data
    return data


def _bomb() -> bytes:
    """Gibibytes of a pickled string in a few megabytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as member:
            size = 2**32
            member.write(b"\x80\x04\x8e" + struct.pack("<Q", size))
            for _ in range(size // 2**24):
                member.write(bytes(2**24))
            member.write(b".")
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def _other_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../canary", "x")
    return stream.getvalue()


def _storage(count: int) -> bytes:
    """A tensor over a storage that says it has so many numbers."""
    number = pickle.dumps(count, 2)[2:-1]
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + number
        + b"tQK\x00"
        + number
        + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR."
    )


QUICK = {"good", "nan", "int8", "settings-ladder", "settings-itself", "stride-0-wide", "truncated"}
QUICK_ORDERS = {"os-system", "getattr", "build"}


def cases() -> Iterator[Case]:
    """All of them."""
    for name in ORDERS:
        for ending, pack in (("pt", lambda pickled: pickled), ("pth", zipped)):

            def make(
                box: Box,
                name: str = name,
                ending: str = ending,
                pack: Callable[[bytes], bytes] = pack,
            ) -> None:
                written(box.input / f"x.{ending}", pack(_orders(box)[name]))

            yield Case(
                f"convert-order-{name}-{ending}",
                "backbone",
                f"convert {{in}}/x.{ending} {{out}}",
                refused(),
                "weights need no code",
                make,
                quick=name in QUICK_ORDERS and ending == "pth",
            )
        yield Case(
            f"compress-order-{name}",
            "backbone",
            "compress {in}/x.pth {speech} {out} {tiny}",
            refused(),
            "weights need no code",
            make,
        )
        yield Case(
            f"inspect-order-{name}",
            "backbone",
            "inspect {in}/x.pth",
            refused(),
            "weights need no code",
            make,
        )
    for name, content, expected in _files():

        def put(box: Box, content: Callable[[Box], bytes] = content) -> None:
            written(box.input / "x.pt", content(box))

        yield Case(
            f"convert-{name}",
            "backbone",
            ADDRESS,
            expected,
            make=put,
            quick=name in QUICK,
            gibibytes=2.5,
            seconds=40,
        )
        if isinstance(expected, Refused):
            yield Case(
                f"inspect-file-{name}",
                "backbone",
                "inspect {in}/x.pt",
                Either() if name in INSPECTABLE else expected,
                "inspect looks at shapes alone",
                put,
                gibibytes=2.5,
                seconds=40,
            )
            yield Case(
                f"embed-file-{name}",
                "backbone",
                "embed {in}/x.pt {speech} {out}",
                refused(),
                make=put,
                gibibytes=2.5,
                seconds=40,
            )
    for name, words in {
        "missing": "convert {in}/gone.pt {out}",
        "folder": "convert {in} {out}",
        "dev-zero": "convert /dev/zero {out}",
        "no-such-user": "convert ~nosuchuser/x.pt {out}",
        "too-long": "convert " + "n" * 300 + ".pt {out}",
    }.items():
        yield Case(f"convert-file-{name}", "backbone", words, refused(), seconds=25)


INSPECTABLE = {
    "nan",
    "one-inf",
    "int8",
    "int64",
    "bool",
    "complex",
    "double-huge",
    "sparse",
    "quantised",
    "meta",
    "missing-weight",
    "scalar-weight",
    "heads-7",
    "heads-minus",
}
