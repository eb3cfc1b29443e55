"""The section "A newcomer's hour" of docs/design.md: its names exist, its stations come in its order."""

from __future__ import annotations

import ast
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import soundfile

from sslim.cli import run
from tests.conftest import REPOSITORY, SOURCE
from tests.models import tiny_teacher

PACKAGE = SOURCE / "sslim"
DESIGN = REPOSITORY / "docs" / "design.md"
TITLE = "A newcomer's hour"
PATHS = ("One waveform", "One gate")
REFERENCE = re.compile(r"`([\w/]+\.py)::([\w.]+)`")
STATION = re.compile(r"^(\d+)\. `([\w/]+\.py)::([\w.]+)`: ", re.MULTILINE)
RUN = (
    "seconds_per_update=2",
    "seconds_per_batch=1",
    "audio.min_seconds=0.2",
    "audio.max_seconds=1",
    "stage1.updates=3",
    "stage2.updates=1",
    "workers=0",
    "precision=float32",
)

Name = tuple[str, str]
"""File below src/sslim, dotted name in it."""


def section(text: str, title: str, level: int) -> str:
    """The text below a heading, up to the next one of its level or above."""
    match = re.search(rf"^{'#' * level} {re.escape(title)}$", text, re.MULTILINE)
    assert match is not None, f"there is no section {title!r}"
    rest = text[match.end() :]
    end = re.search(rf"^#{{1,{level}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def hour() -> str:
    return section(DESIGN.read_text(encoding="utf-8"), TITLE, 2)


def stations(text: str) -> list[Name]:
    """The numbered stations of one path; their numbers must be 1, 2, 3 and so on."""
    found = STATION.findall(text)
    assert [int(number) for number, _, _ in found] == list(range(1, len(found) + 1))
    assert len(re.findall(r"^\d+\.", text, re.MULTILINE)) == len(found), "a station without a name"
    return [(file, name) for _, file, name in found]


def defined(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Dotted names of a module's and its classes' functions, classes and variables."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name
        elif isinstance(node, ast.ClassDef):
            yield prefix + node.name
            yield from defined(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


def missing(names: list[Name]) -> list[Name]:
    """Those that are not defined in their file."""
    gone = []
    for file, name in names:
        path = PACKAGE / file
        known = defined(ast.parse(path.read_text(encoding="utf-8")).body) if path.is_file() else ()
        if name not in known:
            gone.append((file, name))
    return gone


class Entered:
    """While it is open: the functions of the package that are entered, in the order of their first time."""

    def __init__(self) -> None:
        self.order: dict[Name, int] = {}

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)):
            file = Path(code.co_filename).relative_to(PACKAGE).as_posix()
            self.order.setdefault((file, code.co_qualname), len(self.order))

    def __enter__(self) -> Entered:
        self._before: Callable[..., Any] | None = sys.getprofile()
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)
        threading.setprofile(None)


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> dict[Name, int]:
    """What `compress`, `embed` and `export` enter, on a model that wants its waveforms normalised."""
    folder = tmp_path_factory.mktemp("hour")
    tiny_teacher("hubert", "large").save_pretrained(folder / "teacher")
    (folder / "audio").mkdir()
    draw = np.random.default_rng(0)
    for index in range(6):
        noise = 0.1 * draw.standard_normal(6000 + 400 * index)
        soundfile.write(folder / "audio" / f"{index}.wav", noise, 16_000)
    teacher, audio, small = (str(folder / name) for name in ("teacher", "audio", "small"))
    settings = [f"--set={setting}" for setting in RUN]
    with Entered() as entered:
        assert (
            run(["compress", teacher, audio, small, "--params=50%", "--device=cpu", *settings]) == 0
        )
        assert run(["embed", small, audio, str(folder / "features")]) == 0
        assert run(["export", small, str(folder / "small.onnx"), "--audio", audio]) == 0
    return entered.order


def out_of_order(path: list[Name], order: dict[Name, int]) -> list[Name]:
    """Stations that were not entered, or were entered before the one that stands before them."""
    wrong, last = [], -1
    for name in path:
        at = order.get(name, -1)
        if at <= last:
            wrong.append(name)
        last = max(last, at)
    return wrong


def test_every_name_exists() -> None:
    names = REFERENCE.findall(hour())
    assert len(names) > 30
    assert len(names) == hour().count("::"), "a reference that is not written as `file.py::name`"
    assert missing(names) == []


def test_a_name_that_is_gone_is_found() -> None:
    """The corrupted twin."""
    for file, name in (
        ("prune/gates.py", "Gates.folds"),
        ("prune/gates.py", "fold"),  # a method, not a function
        ("prune/gate.py", "Gates.fold"),
    ):
        assert missing([(file, name)]) == [(file, name)]


@pytest.mark.parametrize("title", PATHS)
def test_the_stations_are_entered_in_this_order(title: str, order: dict[Name, int]) -> None:
    path = stations(section(hour(), title, 3))
    assert len(path) >= 15
    assert len(set(path)) == len(path)
    assert out_of_order(path, order) == []


@pytest.mark.parametrize("title", PATHS)
def test_any_two_stations_exchanged_are_found(title: str, order: dict[Name, int]) -> None:
    """The corrupted twin: also a station that no waveform and no gate comes by."""
    path = stations(section(hour(), title, 3))
    for place in range(len(path) - 1):
        exchanged = [*path[:place], path[place + 1], path[place], *path[place + 2 :]]
        assert out_of_order(exchanged, order) == [path[place]]
    elsewhere = ("cli/__init__.py", "main")
    assert missing([elsewhere]) == []
    assert out_of_order([*path, elsewhere], order) == [elsewhere]
