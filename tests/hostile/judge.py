"""Whether the answer to an input was the right one; what was wrong with it, in words."""

from __future__ import annotations

import re

from tests.hostile.box import Box
from tests.hostile.case import Case, Either, Refused, Usable
from tests.hostile.warm import Outcome

MOST_LINES = 12
"""On stderr beside the error: a folder of bad files may name each, a library may not talk."""


def judge(
    case: Case, box: Box, outcome: Outcome, before: dict[str, str], after: dict[str, str]
) -> list[str]:
    """Everything that is wrong, empty where the answer was right."""
    problems = list(_always(case, box, outcome))
    expected = case.expected
    if isinstance(expected, Either):
        expected = expected.usable if outcome.code == 0 else expected.refused
    if isinstance(expected, Refused):
        problems += _refused(expected, outcome)
    else:
        problems += _usable(expected, box, outcome)
    allowed = expected.writes if isinstance(expected, Usable) else expected.keeps
    problems += _changes(before, after, (*allowed, *case.changes))
    return problems


def _always(case: Case, box: Box, outcome: Outcome) -> list[str]:
    problems = []
    if outcome.late:
        problems.append(f"hangs: killed after {case.seconds:g} s")
    elif outcome.code < 0:
        problems.append(
            f"ended by signal {-outcome.code} after {outcome.cpu_seconds:.0f} s of processor"
        )
    if "Traceback (most recent call last)" in outcome.stderr:
        last = [line for line in outcome.stderr.splitlines() if line and not line.startswith(" ")]
        problems.append(f"traceback: {last[-1][:200]}")
    if box.canary.exists():
        problems.append("a command of the input was executed: the canary exists")
    problems += [
        f"the input made it do this: {event}"
        for event in outcome.events
        if not (case.asks_hub and event.lstrip("'\"").startswith("network"))
    ]
    return problems


def _refused(expected: Refused, outcome: Outcome) -> list[str]:
    if outcome.code == 0:
        return ["accepted in silence (exit code 0)"]
    problems = []
    if outcome.code != 2 and outcome.code >= 0:
        problems.append(f"exit code {outcome.code}, not 2")
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) != 1 or lines[-1] != errors[0]:
        problems.append(f"{len(errors)} lines begin with 'error:', of {len(lines)} on stderr")
    elif len(lines) > MOST_LINES or any(re.search(r"\wWarning: ", line) for line in lines):
        problems.append(f"{len(lines)} lines on stderr: {lines[0][:120]}")
    if expected.says and errors and not re.search(expected.says, errors[0], re.IGNORECASE):
        problems.append(f"does not say {expected.says!r}: {errors[0][:300]}")
    return problems


def _usable(expected: Usable, box: Box, outcome: Outcome) -> list[str]:
    if outcome.code != 0:
        last = outcome.stderr.strip().splitlines()[-1:] or [""]
        return [f"refused although it is usable (exit code {outcome.code}): {last[0][:300]}"]
    problems = []
    if expected.says and not re.search(
        expected.says, outcome.stdout + outcome.stderr, re.IGNORECASE
    ):
        problems.append(f"does not say {expected.says!r}: {outcome.stdout[-300:]!r}")
    if expected.check is not None and (wrong := expected.check(box, outcome)):
        problems.append(wrong)
    return problems


def _changes(before: dict[str, str], after: dict[str, str], allowed: tuple[str, ...]) -> list[str]:
    """What was written, changed or lost outside the places where that is allowed."""

    def may(name: str) -> bool:
        parent, _, file = name.rpartition("/")
        if file.endswith(".lock") and parent in before:
            return True  # a lock on a folder that was there is no result, and holds nothing of anybody's
        return any(name == place or name.startswith(f"{place}/") for place in allowed)

    found = []
    for what, names in (
        ("lost", before.keys() - after.keys()),
        ("left behind", after.keys() - before.keys()),
        ("changed", {name for name in before.keys() & after.keys() if before[name] != after[name]}),
    ):
        wrong = sorted(name for name in names if not may(name))
        if wrong:
            found.append(f"{what}: {', '.join(wrong[:5])}")
    return found
