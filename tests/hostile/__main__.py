"""Lists the cases, or makes the input of one to look at."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.hostile.box import Box
from tests.hostile.cases import all_cases
from tests.hostile.shared import make_shared


def main() -> None:
    """`python -m tests.hostile`, or `python -m tests.hostile NAME FOLDER`."""
    known = {f"{kind}-{case.name}": case for kind, case in all_cases()}
    if len(sys.argv) != 3 or sys.argv[1] not in known:
        print("\n".join(known))
        return
    case, folder = known[sys.argv[1]], Path(sys.argv[2]).resolve()
    (folder / "shared").mkdir(parents=True)
    make_shared(folder / "shared")
    box = Box(folder / "box", folder / "shared")
    case.make(box)
    print(
        "sslim "
        + " ".join(
            repr(word) if " " in word or not word else word for word in box.words(case.words)
        )
    )
    print(f"expected: {case.expected} {case.why}")


if __name__ == "__main__":
    main()
