"""Every verb meets every class of hostile input: one line and code 2, or a stated effect; nothing else.

The program runs in children of a warm process, with limits and without a network (`tests/hostile/zygote.py`).
`-k NAME` chooses a case, `SSLIM_UNDER_TEST=/path/to/src` another checkout's program.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.box import Box, lacking
from tests.hostile.case import Case, Either, Usable, refused
from tests.hostile.cases import CLASSES, all_cases
from tests.hostile.fuzz import KINDS
from tests.hostile.judge import judge
from tests.hostile.shared import make_results, make_shared
from tests.hostile.warm import Outcome, Warm

CASES = list(all_cases())


@dataclass
class Place:
    """The warm process and what all cases may read."""

    warm: Warm
    shared: Path


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "shared").mkdir()
    make_shared(folder / "shared")
    warm = Warm(folder)
    make_results(folder / "shared", warm, folder / "making")
    yield Place(warm, folder / "shared")
    warm.close()


def answer(case: Case, place: Place, root: Path) -> list[str]:
    """Makes the input, runs the verb, and gives all that is wrong with the answer."""
    if reason := lacking(case.needs):
        pytest.skip(reason)
    box = Box(root, place.shared)
    case.make(box)
    before = box.state()
    outcome = place.warm.run(box, box.words(case.words), case)
    return judge(case, box, outcome, before, box.state())


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{kind}-{case.name}", marks=[] if case.quick else pytest.mark.slow)
        for kind, case in CASES
    ],
)
def test_the_answer_is_right(case: Case, place: Place, tmp_path: Path) -> None:
    problems = answer(case, place, tmp_path / "box")
    shutil.rmtree(tmp_path / "box", ignore_errors=True)  # thousands of them would fill the disk
    assert not problems, "\n".join([f"sslim {case.words}", *problems])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_small_damages(kind: str, place: Place, tmp_path: Path) -> None:
    """A few thousand damaged recordings, hundreds of damaged models, from one seed."""
    box = Box(tmp_path / "box", place.shared)
    count = {"config": 300, "preprocessor": 100, "safetensors": 200, "onnx": 200}.get(kind, 1000)
    words = [kind, str(place.shared), str(box.root / "home" / "fuzz"), str(count)]
    limits = Case("", "", "", refused(), seconds=900, cpu_seconds=900, gibibytes=3.0)
    outcome = place.warm.run(box, words, limits, function="tests.hostile.fuzz:run")
    assert (outcome.code, outcome.late, outcome.events) == (0, False, ()), outcome.stderr[-2000:]
    found = json.loads(outcome.stdout)
    assert found["read"] >= count
    # A reader that refuses everything would pass as well otherwise.
    assert 0 < found["accepted"] < found["read"]
    assert found["others"] == 0, found["first"]


# --- the judge itself -------------------------------------------------------------------------------


def judged(case: Case, box: Box, outcome: Outcome, change: Callable[[], object] = str) -> str:
    before = box.state()
    change()
    return " / ".join(judge(case, box, outcome, before, box.state()))


ERROR = Outcome(2, False, "", "error: no. Do something else.\n", (), 0.1, 0.1, 1)
DONE = Outcome(0, False, "done\n", "", (), 0.1, 0.1, 1)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    (tmp_path / "shared").mkdir()
    return Box(tmp_path / "box", tmp_path / "shared")


def test_the_judge_accepts_the_two_right_answers(box: Box) -> None:
    bad = Case("x", "audio", "embed", refused("no"))
    good = Case("x", "audio", "embed", Usable("done"))
    assert judged(bad, box, ERROR) == ""
    assert judged(good, box, DONE, lambda: (box.out / "x").mkdir(parents=True)) == ""
    either = Case("x", "audio", "embed", Either())
    assert judged(either, box, ERROR) == judged(either, box, DONE) == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"code": 0}, "accepted in silence"),
        ({"code": 1}, "exit code 1"),
        ({"code": -9}, "signal 9"),
        ({"late": True}, "hangs"),
        ({"stderr": "Traceback (most recent call last):\nKeyError: 1\n"}, "traceback"),
        ({"stderr": "error: a\nerror: b\n"}, "2 lines"),
        ({"stderr": "UserWarning: x\nerror: no\n"}, "2 lines on stderr"),
        ({"stderr": "error: yes\n"}, "does not say"),
        ({"events": ("program sh",)}, "program sh"),
    ],
)
def test_the_judge_sees_a_wrong_answer(box: Box, changes: dict[str, Any], says: str) -> None:
    bad = Case("x", "audio", "embed", refused(r"\bno\b"))
    assert says in judged(bad, box, replace(ERROR, **changes))


def test_the_judge_sees_what_was_written_or_lost(box: Box) -> None:
    bad = Case("x", "audio", "embed", refused())
    assert "left behind: out" in judged(bad, box, ERROR, box.out.mkdir)
    draft = box.root / "neighbour/thesis/draft.tex"
    assert "changed: neighbour" in judged(bad, box, ERROR, lambda: draft.write_text("x"))
    assert "lost: neighbour" in judged(bad, box, ERROR, draft.unlink)
    assert "canary" in judged(bad, box, ERROR, box.canary.touch)
    good = Case("x", "audio", "embed", Usable())
    assert "refused although" in judged(good, box, ERROR)
    assert "lost: work/notes.txt" in judged(good, box, DONE, (box.work / "notes.txt").unlink)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("hang", "hangs"),
        ("memory", "MemoryError"),
        ("network", "network"),
        ("shell", "program"),
        ("write", "File too large"),
    ],
)
def test_a_child_has_limits_and_no_secrets(
    what: str, says: str, place: Place, tmp_path: Path
) -> None:
    box = Box(tmp_path / "box", place.shared)
    limits = Case("", "", "", refused(), seconds=2 if what == "hang" else 30, most_bytes=2**16)
    words = [what, str(box.canary)]
    outcome = place.warm.run(box, words, limits, function="tests.hostile.naughty:naughty")
    assert says in judged(limits, box, outcome)


def test_every_verb_and_class_is_met() -> None:
    """A class or a verb that nobody thought of would be missed in silence."""
    from sslim.cli import app

    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    met = {box_free(case.words)[0] for _, case in CASES}
    assert verbs <= met
    assert {kind for kind, _ in CASES} == set(CLASSES)
    for kind in CLASSES:
        mine = [case for other, case in CASES if other == kind]
        assert any(case.quick for case in mine), f"no fast test of {kind}"
        assert any(isinstance(case.expected, Usable) for case in mine), f"no good control of {kind}"
    names = [f"{kind}-{case.name}" for kind, case in CASES]
    assert len(set(names)) == len(names) > 2000


def box_free(words: str | tuple[str, ...]) -> list[str]:
    return words.split() if isinstance(words, str) else list(words)
