"""Folders of models that nobody should trust: damaged, odd, or made to do harm.

A seeded stream of mutations (bytes of weights, values of every JSON file, files cut or replaced) goes through
everything that reads a folder. What comes out is the model, or one line.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCTC

from sslim.backbone.loading import load_model
from sslim.backbone.saving import save_folder, under_head
from sslim.errors import SslimError
from sslim.layout import KINDS
from sslim.prune.gates import Gates
from sslim.prune.surgery import cut
from sslim.report.inspect import inspect_model
from tests.conftest import SOURCE
from tests.models import tiny_teacher
from tests.test_exactness import random_values

CHECKED = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "vocab.json")
VALUES: tuple[Any, ...] = (
    None,
    True,
    "big",
    "",
    [],
    {},
    -1,
    0,
    1,
    7,
    2**31,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    -0.5,
    [0],
    [10**7] * 7,
    ["a"] * 7,
    {"a": {"b": [1]}},
    "x" * 100_000,
    "\ud800",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A dense folder of each kind of encoding, and a pruned one of ours under a CTC head."""
    home = tmp_path_factory.mktemp("folders")
    dense = []
    for family in ("wavlm", "data2vec-audio"):
        tiny_teacher(family).save_pretrained(home / family)
        dense.append(home / family)
    tiny_teacher("hubert", auto=AutoModelForCTC, vocab_size=12).save_pretrained(home / "head")
    loaded = load_model(home / "head")
    (home / "head" / "vocab.json").write_text('{"<pad>": 0, "a": 1}')
    (home / "head" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>", "do_lower_case": false}'
    )
    _, plan = random_values(Gates(loaded.model, KINDS), 5, 0.6)
    student = under_head(loaded, cut(loaded.model, plan).eval())
    save_folder(home / "small", student, normalise=True, tokenizer_from=home / "head")
    return [*dense, home / "small"]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be put into a JSON value."""
    if path:
        yield path
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from places(item, (*path, key))


def odd_value(chance: random.Random, folder: Path) -> None:
    """One value of one JSON file becomes something else, or goes."""
    file = folder / chance.choice([name for name in CHECKED if (folder / name).exists()])
    data = json.loads(file.read_text())
    *outer, key = chance.choice(list(places(data)))
    inner = data
    for step in outer:
        inner = inner[step]
    if isinstance(inner, dict) and chance.random() < 0.1:
        del inner[key]
    else:
        inner[key] = chance.choice(VALUES)
    file.write_text(json.dumps(data))


def odd_whole(chance: random.Random, folder: Path) -> None:
    """A JSON file becomes something else as a whole."""
    file = folder / chance.choice([name for name in CHECKED if (folder / name).exists()])
    deep = "[" * 100_000 + "]" * 100_000
    file.write_text(
        chance.choice(
            ["null", "5", '"x"', "[]", "{}", deep, '{"plan":' + deep + "}", "{", "", "NaN"]
        )
    )


def odd_bytes(chance: random.Random, folder: Path) -> None:
    """Bytes of a file change; of weights, most often in the header, which says what the rest is."""
    file = folder / chance.choice(["model.safetensors"] * 3 + ["config.json"])
    data = bytearray(file.read_bytes())
    for _ in range(chance.choice([1, 1, 2, 8])):
        most = len(data) if chance.random() < 0.3 else min(len(data), 4000)
        data[chance.randrange(most)] = chance.randrange(256)
    file.write_bytes(bytes(data))


def odd_length(chance: random.Random, folder: Path) -> None:
    """A file is cut short, emptied, replaced by junk, or goes."""
    file = folder / chance.choice(["model.safetensors", "model.safetensors", *CHECKED[:2]])
    if not file.exists():
        return
    data = file.read_bytes()
    junk = chance.randbytes(len(data))
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 94000000\n"
    other = chance.choice(
        [b"", b"\0" * 64, data[: chance.randrange(len(data))], junk, lfs, data * 2, None]
    )
    file.unlink()
    if other is not None:
        file.write_bytes(other)


def odd_plan(chance: random.Random, folder: Path) -> None:
    """A plan that is a plan in form, and of another model."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    if not config.get("plan"):
        return odd_value(chance, folder)
    plan = config["plan"]
    layer = chance.choice(plan["layers"])
    part = chance.choice(["heads", "ffn"])
    row = chance.choice([plan["conv"][chance.randrange(7)], layer[part] or [0]])
    chance.choice(
        [
            lambda: row.append(10**9),
            lambda: row.insert(0, -1),
            row.reverse,
            row.clear,
            lambda: row.extend(row),
            lambda: row.__setitem__(slice(None), [0.5]),
            lambda: plan["layers"].append(layer),
            plan["layers"].pop,
            plan["conv"].pop,
            lambda: layer.__setitem__(part, None),
            lambda: layer.pop(part),
            lambda: plan.__setitem__("conv", {}),
        ]
    )()
    file.write_text(json.dumps(config))
    return None


MUTATIONS: tuple[Callable[[random.Random, Path], None], ...] = (
    odd_value,
    odd_value,
    odd_value,
    odd_plan,
    odd_bytes,
    odd_length,
    odd_whole,
)


def mutated(folders: list[Path], seed: int, out: Path) -> Path:
    """One of the folders, mutated by this seed alone."""
    chance = random.Random(seed)
    shutil.copytree(chance.choice(folders), out)
    chance.choice(MUTATIONS)(chance, out)
    return out


def look(folder: Path) -> str:
    """ "" where the folder gives a model that works and is as inspect says, else its one line."""
    lines = []
    inspected = None
    try:
        inspected = inspect_model(folder).to_dict()
    except SslimError as error:
        lines.append(str(error))
    try:
        loaded = load_model(folder)
    except SslimError as error:
        lines.append(str(error))
        return one_line(lines)
    assert inspected is not None, f"inspect refused what loads: {lines}"
    model = loaded.model
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == inspected["parameters"]
    with torch.no_grad():
        model(torch.randn(1, loaded.receptive_field + 3 * loaded.hop))
    assert len(loaded.fingerprint) == 64
    return ""


def one_line(lines: list[str]) -> str:
    for line in lines:
        assert "\n" not in line
        assert len(line) < 1000
    return lines[-1]


@pytest.mark.parametrize("seed", range(48))
def test_a_mutated_folder_loads_or_is_one_line(
    seed: int, folders: list[Path], tmp_path: Path
) -> None:
    look(mutated(folders, seed, tmp_path / "model"))


def test_the_mutations_reach_something(folders: list[Path], tmp_path: Path) -> None:
    """The same look at an untouched folder finds nothing, and most mutations are found."""
    assert [look(folder) for folder in folders] == ["", "", ""]
    found = [look(mutated(folders, seed, tmp_path / str(seed))) for seed in range(20)]
    assert sum(bool(line) for line in found) >= 10


LOOK = """
import resource, sys, json
resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
from sslim.cli import run
from pathlib import Path
from tests.test_hostile_folders import look
for name in json.load(sys.stdin):
    print("#", name, flush=True)
    look(Path(name))
    print("=", run(["inspect", name]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1500, 50))
def test_hundreds_of_mutated_folders(start: int, folders: list[Path], tmp_path: Path) -> None:
    """In a child with 12 GB of addresses and a minute per folder."""
    names = [str(mutated(folders, seed, tmp_path / str(seed))) for seed in range(start, start + 50)]
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        input=json.dumps(names),
        env={"PATH": "", "PYTHONPATH": f"{SOURCE}:{SOURCE.parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60 * len(names),
        check=False,
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    codes = [line for line in done.stdout.splitlines() if line.startswith("= ")]
    assert len(codes) == len(names)
    assert set(codes) <= {"= 0", "= 2"}
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    assert all(line.startswith("error: ") for line in errors), errors
    assert len(errors) == codes.count("= 2")
