"""Exported files with odd metadata, data elsewhere, or another graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.hostile.box import Box
from tests.hostile.case import Case, Either, Expected, Make, Usable, refused, written

VERBS = {
    "embed": "embed {in}/m.onnx {speech}/00.wav {out}",
    "evaluate": "evaluate {in}/m.onnx --task ks --data {csv} {fast}",
    "bench": "bench {in}/m.onnx --runtime onnx --seconds 0.5 --repeats 1",
    "fidelity": "evaluate {teacher} {in}/m.onnx --task fidelity --data {speech}/00.wav",
}


def graph(change: Callable[[Any], None]) -> Make:
    """The exported model, changed."""

    def make(box: Box) -> None:
        import onnx

        model = onnx.load(box.shared / "model.onnx")
        change(model)
        written(box.input / "m.onnx", model.SerializeToString())

    return make


def metadata(**changes: str | None) -> Make:
    """Other metadata."""

    def change(model: Any) -> None:
        known = {entry.key: entry.value for entry in model.metadata_props} | changes
        del model.metadata_props[:]
        for key, value in known.items():
            if value is not None:
                entry = model.metadata_props.add()
                entry.key, entry.value = key, value

    return graph(change)


def facts(**changes: Any) -> Make:
    """Other facts in the metadata."""

    def change(model: Any) -> None:
        for entry in model.metadata_props:
            if entry.key == "sslim":
                entry.value = json.dumps(json.loads(entry.value) | changes)

    return graph(change)


def _external(location: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        length = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    return change


def _rename_input(model: Any) -> None:
    old = model.graph.input[0].name
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = "evil"
    model.graph.input[0].name = "evil"


def _drop_outputs(model: Any) -> None:
    del model.graph.output[1:]


def _nan(model: Any) -> None:
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()


def _custom(model: Any) -> None:
    model.graph.node[0].op_type = "EvilOp"
    model.graph.node[0].domain = "evil.com"


FILES: dict[str, tuple[Make, Expected]] = {
    "good": (graph(lambda model: None), Usable()),
    "no-sslim": (metadata(sslim=None), refused("sslim export|export")),
    "sslim-null": (metadata(sslim="null"), refused()),
    "sslim-number": (metadata(sslim="5"), refused()),
    "sslim-half": (metadata(sslim="{"), refused()),
    "sslim-deep": (metadata(sslim="[" * 100_000), refused()),
    "sslim-empty": (metadata(sslim="{}"), refused()),
    "rate-missing": (metadata(sampling_rate=None), refused()),
    "rate-text": (metadata(sampling_rate="x"), refused()),
    "rate-0": (metadata(sampling_rate="0"), refused()),
    "rate-8000": (metadata(sampling_rate="8000"), refused()),
    "hop-0": (metadata(hop="0"), refused()),
    "hop-minus": (metadata(hop="-320"), refused()),
    "hop-huge": (metadata(hop="9" * 30), refused()),
    "hop-digits": (metadata(hop="9" * 5000), refused()),
    "hop-missing": (metadata(hop=None), refused()),
    "field-0": (metadata(receptive_field="0"), refused()),
    "field-nan": (metadata(receptive_field="nan"), refused()),
    "field-missing": (metadata(receptive_field=None), refused()),
    "width-text": (facts(width="x"), refused()),
    "width-0": (facts(width=0), refused()),
    "width-other": (facts(width=7), refused()),
    "layers-minus": (facts(layers=-1), refused()),
    "layers-text": (facts(layers="x"), refused()),
    "fingerprint-number": (facts(fingerprint=5), Either()),
    "fingerprint-path": (facts(fingerprint="../../../../canary"), Either()),
    "family-markup": (facts(family="[/red]"), Either()),
    "truncated": (
        lambda box: void(
            written(box.input / "m.onnx", (box.shared / "model.onnx").read_bytes()[:9000])
        ),
        refused(),
    ),
    "empty": (lambda box: void(written(box.input / "m.onnx", b"")), refused()),
    "junk": (
        lambda box: void(written(box.input / "m.onnx", np.random.default_rng(0).bytes(9000))),
        refused(),
    ),
    "external-passwd": (graph(_external("/etc/passwd")), refused()),
    "external-up": (graph(_external("../../canary")), refused()),
    "external-fifo": (graph(_external("/dev/zero")), refused()),
    "input-renamed": (graph(_rename_input), refused()),
    "outputs-dropped": (graph(_drop_outputs), refused()),
    "nan-weights": (graph(_nan), refused("finite|NaN|infinit", keeps=("out",))),
    "custom-operator": (graph(_custom), refused()),
    "opset-99": (graph(lambda model: setattr(model.opset_import[0], "version", 99)), refused()),
}
QUICK = {"good", "hop-0", "sslim-number", "external-passwd", "nan-weights"}


def void(_: object) -> None:
    """For lambdas that are made to return nothing."""


def cases() -> Iterator[Case]:
    """All of them."""
    rooms = {"evaluate": "evaluate", "fidelity": "evaluate"}
    for name, (make, expected) in FILES.items():
        for verb, words in VERBS.items():
            if verb in ("bench", "fidelity") and name not in (
                "good",
                "hop-0",
                "truncated",
                "external-passwd",
                "input-renamed",
            ):
                continue
            mine = Either() if verb == "bench" and name == "hop-0" else expected
            yield Case(
                f"{verb}-onnx-{name}",
                rooms.get(verb, "deploy"),
                words,
                mine,
                "",
                make,
                name in QUICK and verb == "embed",
                seconds=60,
            )
    for name, words in {
        "missing": "embed {in}/gone.onnx {speech} {out}",
        "folder": "embed {in} {speech} {out}",
        "zero": "embed /dev/zero {speech} {out}",
        "export-onnx": "export {onnx} {out}.onnx",
        "inspect-onnx": "inspect {onnx}",
        "compress-onnx": "compress {onnx} {speech} {out} {tiny}",
        "report-onnx": "report {onnx}",
    }.items():
        yield Case(
            f"onnx-{name}",
            "report"
            if name.startswith("report")
            else "backbone"
            if "inspect" in name or "compress" in name
            else "deploy",
            words,
            refused(),
            seconds=25,
        )
