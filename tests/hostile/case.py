"""What a case is, and the two right answers that a program can give to an input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.hostile.box import Box
    from tests.hostile.warm import Outcome

Make = Callable[["Box"], None]
Check = Callable[["Box", "Outcome"], str]
"""What is wrong with the result of a usable input, or an empty string."""


def nothing(box: Box) -> None:
    """Makes nothing: the words alone are the input."""


@dataclass(frozen=True)
class Refused:
    """One line that begins with `error:`, exit code 2, and nothing written or lost."""

    says: str = ""
    """A regular expression that must be found in that line, case ignored."""
    keeps: tuple[str, ...] = ()
    """Places that may be written although the answer is an error: what was good of the input."""


@dataclass(frozen=True)
class Usable:
    """Exit code 0: the input means something, and the effect is what it means."""

    says: str = ""
    """A regular expression that must be found in what is printed, case ignored."""
    writes: tuple[str, ...] = ("out",)
    """Places under the box that may be written."""
    check: Check | None = None


@dataclass(frozen=True)
class Either:
    """Both answers are defensible, a traceback, a hang and a loss are not."""

    refused: Refused = Refused()
    usable: Usable = Usable()


Expected = Refused | Usable | Either


@dataclass(frozen=True)
class Case:
    """One input of one verb, and the answer that it deserves."""

    name: str
    room: str
    """Whose code has to give the answer: audio, run, method, backbone, evaluate, report or deploy."""
    words: str | tuple[str, ...]
    """What follows `sslim`; `{in}`, `{out}`, ... are places (see `Box.places`), `{tiny}` settings."""
    expected: Expected
    why: str = ""
    """Why that answer is the right one, where it does not go without saying."""
    make: Make = nothing
    quick: bool = False
    """Belongs to the fast tests: one or two of each class."""
    gibibytes: float = 3.0
    """Address space beyond what the imported libraries take."""
    seconds: float = 60.0
    """Wall time, on a machine that is busy with something else too."""
    cpu_seconds: int = 30
    most_bytes: int = 2**28
    """Largest file that may be written."""
    environment: tuple[tuple[str, str], ...] = ()
    needs: str = ""
    """What this system must offer, see `box.LACKING`; otherwise the case is skipped with a reason."""
    typed: str = ""
    """What stands on standard input."""
    asks_hub: bool = False
    """What it means is to ask the network, which cannot be reached."""
    changes: tuple[str, ...] = ()
    """Inputs that the verb is there to change, besides what `expected` allows."""


def refused(says: str = "", *, keeps: tuple[str, ...] = ()) -> Refused:
    """Shorthand."""
    return Refused(says, keeps)


def written(path: Path, content: bytes | str) -> Path:
    """Writes a file with its folders; bytes as they are, text as UTF-8 with its newlines unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    )
    return path
