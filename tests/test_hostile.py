"""Every verb meets every class of hostile input: one line and code 2, or a stated effect; nothing else.

The program runs in children of a warm process, with limits and without a network (`tests/hostile/zygote.py`).
`-k NAME` chooses a case, `SSLIM_UNDER_TEST=/path/to/src` another checkout's program.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hostile.box import Box, lacking
from tests.hostile.case import Case
from tests.hostile.cases import all_cases
from tests.hostile.judge import judge
from tests.hostile.shared import make_results, make_shared
from tests.hostile.warm import Warm

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
