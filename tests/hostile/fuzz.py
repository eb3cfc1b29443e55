"""Thousands of small damages to good files, from a fixed seed, read in one child.

Each is an error of ours or usable.

A child prints one line of JSON: how many were read, how many refused, and the first that ended otherwise.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.audio import CODECS, of_codec

KINDS = (*CODECS, "config", "preprocessor", "safetensors", "onnx")


def mutated(data: bytes, draw: np.random.Generator, head: int = 200) -> bytes:
    """One to eight damages: bytes set, ranges cut, doubled or zeroed, the end cut; half near the start."""
    content = bytearray(data)
    for _ in range(int(draw.integers(1, 9))):
        if not content:
            break
        reach = min(len(content), head) if draw.random() < 0.5 else len(content)
        at = int(draw.integers(reach))
        length = int(draw.integers(1, 64))
        kind = int(draw.integers(7))
        if kind == 0:
            content[at] = int(draw.integers(256))
        elif kind == 1:
            content[at] ^= 1 << int(draw.integers(8))
        elif kind == 2:
            content[at : at + 4] = draw.choice(
                [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80"]
            )
        elif kind == 3:
            del content[at : at + length]
        elif kind == 4:
            content[at:at] = content[at : at + length]
        elif kind == 5:
            content[at : at + length] = bytes(length)
        else:
            del content[len(content) - int(draw.integers(len(content))) :]
    return bytes(content)


ODD = (
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    2**63,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "[/red]",
    [],
    {},
    [[]],
    [None],
    "9" * 400,
)


def mutated_json(text: str, draw: np.random.Generator) -> str:
    """A JSON text with one to three values replaced, or with damaged bytes."""
    if draw.random() < 0.2:
        return mutated(text.encode(), draw, len(text)).decode("utf-8", "replace")
    facts = json.loads(text)
    for _ in range(int(draw.integers(1, 4))):
        place: Any = facts
        while isinstance(place, dict) and place:
            name = str(draw.choice(sorted(place)))
            if isinstance(place[name], dict) and place[name] and draw.random() < 0.7:
                place = place[name]
                continue
            if isinstance(place[name], list) and place[name] and draw.random() < 0.5:
                place[name][int(draw.integers(len(place[name])))] = ODD[
                    int(draw.integers(len(ODD)))
                ]
            elif draw.random() < 0.2:
                del place[name]
            else:
                place[name] = ODD[int(draw.integers(len(ODD)))]
            break
    return json.dumps(facts)


def run(kind: str, shared: str, folder: str, count: str) -> None:
    """Reads `count` damaged files; called in a child."""
    from sslim.errors import SslimError

    read = accepted = 0
    others: list[str] = []
    for name, work in _works(kind, Path(shared), Path(folder), int(count)):
        read += 1
        try:
            work()
            accepted += 1
        except SslimError:
            pass
        except BaseException as error:
            others.append(f"{name}: {type(error).__name__}: {str(error)[:150]}")
    print(
        json.dumps(
            {"read": read, "accepted": accepted, "others": len(others), "first": others[:10]}
        )
    )


def _works(
    kind: str, shared: Path, folder: Path, count: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    folder.mkdir(parents=True, exist_ok=True)
    makers = {"config": _folders, "preprocessor": _folders, "safetensors": _folders, "onnx": _onnx}
    yield from makers.get(kind, _audio)(kind, shared, folder, count)


def _audio(
    kind: str, shared: Path, folder: Path, count: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    from sslim.audio import load_audio, read_source
    from sslim.audio.blocks import read_blocks

    path = folder / f"x.{kind}"

    def listed() -> None:
        for utterance in read_source([path]).utterances:
            assert np.isfinite(load_audio(utterance)).all(), "values that are not finite"

    def streamed() -> None:
        for block in read_blocks(path):
            assert np.isfinite(block).all(), "values that are not finite"

    for number in range(count):
        draw = np.random.default_rng([number, len(kind), ord(kind[0])])
        path.write_bytes(mutated(of_codec(kind, float(draw.choice([0.3, 1.2]))), draw))
        yield f"{kind} {number} as a source", listed
        yield f"{kind} {number} in blocks", streamed


def _folders(
    kind: str, shared: Path, folder: Path, count: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    from sslim.backbone.loading import load_model
    from sslim.report.inspect import inspect_model

    model = folder / "m"
    name = {
        "config": "config.json",
        "preprocessor": "preprocessor_config.json",
        "safetensors": "model.safetensors",
    }[kind]
    for number in range(count):
        draw = np.random.default_rng([number, 77])
        shutil.rmtree(model, ignore_errors=True)
        # A compressed folder has a plan and files of its own; a dense one has not.
        shutil.copytree(
            shared / ("run" if kind == "config" and number % 2 else "teacher"),
            model,
            ignore=shutil.ignore_patterns("run", "*.html"),
        )
        path = model / name
        if kind == "safetensors":
            path.write_bytes(mutated(path.read_bytes(), draw, 3000))
        else:
            path.write_text(mutated_json(path.read_text(), draw))
        yield f"{kind} {number}", lambda: _void(load_model(model))
        if kind == "config":
            yield f"{kind} {number} inspected", lambda: _void(inspect_model(model).to_dict())


def _onnx(
    kind: str, shared: Path, folder: Path, count: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    import onnx

    from sslim.backbone.exported import ExportedModel

    model = onnx.load(shared / "model.onnx")
    good = {entry.key: entry.value for entry in model.metadata_props}
    path = folder / "m.onnx"

    def opened() -> None:
        file = ExportedModel(path)
        for value in (file.hop, file.shortest, file.sampling_rate):
            assert isinstance(value, int), "no number"
        assert file.hop > 0, "no hop"
        assert isinstance(file.facts, dict), "no facts"
        file([np.full(8000, 0.1, np.float32)])

    for number in range(count):
        draw = np.random.default_rng([number, 99])
        facts = dict(good)
        chosen = str(draw.choice(sorted(facts)))
        value = facts[chosen]
        if chosen == "sslim":
            facts[chosen] = mutated_json(value, draw)
        elif draw.random() < 0.2:
            del facts[chosen]
        else:
            facts[chosen] = str(ODD[int(draw.integers(len(ODD)))])
        del model.metadata_props[:]
        for key, text in facts.items():
            entry = model.metadata_props.add()
            entry.key, entry.value = key, text
        path.write_bytes(model.SerializeToString())
        yield f"onnx {number}", opened


def _void(_: object) -> None:
    pass
