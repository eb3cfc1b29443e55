"""Folders of runs: states, logs, checkpoints and evidence that are damaged, of another shape, or not ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.box import Box
from tests.hostile.case import Case, Either, Expected, Make, Refused, Usable, refused, written
from tests.hostile.warm import Outcome

REPORT = ("in/r/report.html",)
SHAPES: dict[str, bytes | str] = {
    "null": "null",
    "number": "5",
    "text": '"x"',
    "list": "[]",
    "list-of-lists": "[[1], [2]]",
    "empty-object": "{}",
    "empty": "",
    "half": '{"a": ',
    "binary": np.random.default_rng(0).bytes(400),
    "deep": "[" * 100_000,
    "nan": json.dumps(
        dict.fromkeys(
            ("status", "update", "updates", "seconds_left", "waiting_share", "process", "written"),
            float("nan"),
        )
    ),
    "utf-16": "{}".encode("utf-16"),
}


def spoilt(name: str, content: bytes | str, source: str = "run") -> Make:
    """A finished run in which one file is something else."""
    return lambda box: void(written(box.copy(source, "r") / name, content))


def void(_: object) -> None:
    """For lambdas that are made to return nothing."""


def edited(name: str, change: Callable[[dict[str, Any]], None], source: str = "run") -> Make:
    """A JSON file of a run, changed."""

    def make(box: Box) -> None:
        path = box.copy(source, "r") / name
        facts = json.loads(path.read_text())
        change(facts)
        path.write_text(json.dumps(facts))

    return make


def _shapes() -> Iterator[Case]:
    for file in ("run/state.json", "run/run.json", "run/metrics.jsonl", "run/skipped.json"):
        stem = Path(file).stem
        for name, content in SHAPES.items():
            make = spoilt(file, content)
            quick = (stem, name) in {
                ("state", "list"),
                ("metrics", "half"),
                ("run", "number"),
                ("state", "nan"),
            }
            yield Case(
                f"runs-{stem}-{name}",
                "report",
                "runs {in}",
                Usable("r", ()),
                "one damaged run must not hide the others",
                make,
                quick,
            )
            yield Case(
                f"runs-json-{stem}-{name}",
                "report",
                "runs {in} --json",
                Usable("r", (), check=is_json),
                "one damaged run must not hide the others",
                make,
            )
            yield Case(
                f"report-{stem}-{name}",
                "report",
                "report {in}/r",
                Either(usable=Usable("report", REPORT)),
                "a report of what can be read",
                make,
                quick,
            )
            yield Case(
                f"checklist-{stem}-{name}",
                "report",
                "checklist {in}/r",
                Either(usable=Usable("", ())),
                make=make,
            )

    def beside(box: Box) -> None:
        box.copy("run", "good")
        spoilt("run/state.json", "[]")(box)

    yield Case(
        "runs-beside-good",
        "report",
        "runs {in}",
        Usable("good", ()),
        "one damaged run must not hide the others",
        beside,
    )
    yield Case(
        "report-good",
        "report",
        "report {in}/r",
        Usable("report.html", REPORT),
        "a good control",
        lambda box: void(box.copy("run", "r")),
        True,
    )
    yield Case(
        "checklist-good",
        "report",
        "checklist {in}/r",
        Usable("", ()),
        "a good control",
        lambda box: void(box.copy("run", "r")),
    )
    yield Case(
        "checklist-init",
        "report",
        "checklist {in}/r --init",
        Usable("rollout", ("in/r/rollout.toml",)),
        "a good control",
        lambda box: void(box.copy("run", "r")),
    )

    def half(box: Box) -> None:
        path = box.copy("run", "r") / "run/metrics.jsonl"
        path.write_bytes(path.read_bytes()[:-20])

    yield Case(
        "report-log-half-line",
        "report",
        "report {in}/r",
        Usable("report", REPORT),
        "a killed run ends in half a line",
        half,
        True,
    )
    yield Case(
        "checklist-log-half-line",
        "report",
        "checklist {in}/r",
        Usable("", ()),
        "a killed run ends in half a line",
        half,
    )

    def link(box: Box) -> None:
        box.copy("run", "r")
        (box.input / "loop").symlink_to(".")
        (box.input / "again").symlink_to(".")

    yield Case("runs-link-loops", "report", "runs {in}", Usable("r", ()), make=link, seconds=25)


def is_json(box: Box, outcome: Outcome) -> str:
    """What is printed is JSON that every reader reads, NaN included."""

    def refuse(word: str) -> Any:
        raise ValueError(word)

    try:
        json.loads(outcome.stdout, parse_constant=refuse)
    except ValueError as error:
        return f"not JSON: {error}"
    return ""


SCORE = {
    "model": "r", "task": "ks", "metric": "accuracy", "higher_is_better": True, "score": 0.5,
    "interval": [0.4, 0.6],
    "difference": 0.0, "difference_interval": [-0.1, 0.1], "parameters": 5, "macs_per_second": 5,
    "chance": 0.5,
    "conditions": {}, "items": 10, "layers": [],
}  # fmt: skip
EVIDENCE: dict[str, Any] = {
    "results-number": {"results": 5},
    "results-strings": {"results": ["x"]},
    "results-null": {"results": [None]},
    "results-nested": {"results": [[[]]]},
    "results-empty-rows": {"results": [{}]},
    "score-text": {"results": [SCORE | {"score": "x"}]},
    "score-nan": {"results": [SCORE | {"score": float("nan"), "interval": [float("nan")] * 2}]},
    "score-1e308": {"results": [SCORE | {"score": 1e308}, SCORE | {"model": "t", "score": -1e308}]},
    "score-null": {"results": [SCORE | {"score": None}]},
    "interval-short": {"results": [SCORE | {"interval": [1]}]},
    "interval-text": {"results": [SCORE | {"interval": "ab"}]},
    "task-list": {"results": [SCORE | {"task": ["ks"]}]},
    "task-only": {"results": [{"task": "ks"}]},
    "model-number": {"results": [SCORE | {"model": 5}]},
    "model-markup": {
        "results": [SCORE | {"model": "<!--<script>alert(1)</script>"}, SCORE | {"model": "[/red]"}]
    },
    "model-script-end": {"results": [SCORE | {"model": "</script><script>alert(1)</script>"}]},
    "conditions-list": {"results": [SCORE | {"conditions": [1, 2]}]},
    "conditions-odd": {"results": [SCORE | {"conditions": {"x": 5}}]},
    "groups-odd": {"results": [SCORE], "groups": [5]},
    "groups-null": {"results": [SCORE], "groups": None},
    "bench-empty": {"machine": {}, "results": []},
    "bench-odd": {"machine": 5, "results": [5]},
    "bench-half": {"machine": {"processor": 5}, "results": [{"model": "r"}]},
    "bench-zero": {
        "machine": {},
        "results": [
            {
                "model": "r",
                "runtime": "torch",
                "real_time_factor": 0,
                "seconds": 1,
                "threads": 1,
                "median": 0,
                "ratio": 0,
                "quartiles": [0, 0],
            }
        ],
    },
    "export-odd": {"check": 5, "format": 5},
    "export-half": {"check": {}, "format": "onnx", "file": ["x"]},
    "export-layers": {"check": {"layers": 5}, "format": "onnx", "file": "x", "passed": "yes"},
    "fidelity-odd": {"results": [{"layers": 5}]},
    "fidelity-half": {"results": [{"layers": [{}], "model": 5}]},
    "deep": "@DEEP@",
    "digits": "@DIGITS@",
}
MISLEADING = ("score-nan", "score-1e308", "bench-zero")


def _evidence() -> Iterator[Case]:
    for name, facts in EVIDENCE.items():
        text = {"@DEEP@": "[" * 100_000, "@DIGITS@": '{"results": ' + "9" * 5000 + "}"}.get(
            facts if isinstance(facts, str) else "", json.dumps(facts)
        )
        make = spoilt("evidence/x.json", text)
        quick = name in ("results-strings", "score-text", "bench-odd", "deep")
        yield Case(
            f"report-evidence-{name}",
            "report",
            "report {in}/r",
            Usable("report", REPORT, check=no_script),
            "a file of another shape is listed as unread",
            make,
            quick,
        )
        yield Case(
            f"checklist-evidence-{name}",
            "report",
            "checklist {in}/r",
            Usable("", ()),
            "a file of another shape is left out",
            make,
        )
        more = spoilt("../more.json", text)
        expected: Expected = (
            Either(usable=Usable("report", REPORT))
            if "model" in name or name in MISLEADING
            else Either(usable=Usable("unread|report", REPORT))
        )
        yield Case(
            f"report-given-evidence-{name}",
            "report",
            "report {in}/r --evidence {in}/more.json",
            expected,
            make=more,
        )


def no_script(box: Box, outcome: Outcome) -> str:
    """No label of the evidence is read as a script by a browser."""
    page = (box.input / "r/report.html").read_text()
    return (
        "a label stands in the page as markup"
        if "<script>alert(1)" in page or "<!--<script>" in page
        else ""
    )


def _decisions() -> Iterator[Case]:
    for name, content in {
        "not-toml": "{",
        "unknown": "evil = 1\n",
        "list": 'owner = ["a"]\n',
        "deep": "owner = " + "[" * 20_000 + "]" * 20_000,
        "digits": "owner = " + "9" * 5000,
        "binary": np.random.default_rng(0).bytes(300),
        "markup": 'owner = "<script>alert(1)</script>[/red]"\n',
        "table": "[owner]\nx = 1\n",
    }.items():
        make = spoilt("rollout.toml", content)
        fine = name in ("list", "markup", "table")
        yield Case(
            f"checklist-rollout-{name}",
            "report",
            "checklist {in}/r",
            Either(usable=Usable("", ())) if fine else refused("rollout"),
            make=make,
            quick=name == "deep",
        )
        yield Case(
            f"report-rollout-{name}",
            "report",
            "report {in}/r",
            Either(usable=Usable("report", REPORT, check=no_script))
            if fine
            else Either(Refused("rollout"), Usable("report", REPORT)),
            make=make,
        )


def _sources() -> Iterator[Case]:
    def shell(facts: dict[str, Any]) -> None:
        facts["teacher"]["source"] = "x; touch PWNED #"

    def unquoted(box: Box, outcome: Outcome) -> str:
        text = outcome.stdout
        page = box.input / "r/report.html"
        text += page.read_text() if page.is_file() else ""
        return "a command to copy is not quoted" if "evaluate x; touch" in text else ""

    make = edited("run/run.json", shell)
    yield Case(
        "checklist-shell",
        "report",
        "checklist {in}/r",
        Usable("", (), unquoted),
        "commands are there to be copied",
        make,
        True,
    )
    yield Case(
        "report-shell",
        "report",
        "report {in}/r",
        Usable("report", REPORT, unquoted),
        "commands are there to be copied",
        make,
    )


LONG = "--set stage1.updates=4 --set stage2.updates=3"
RESUME = "compress {teacher} {speech} {in}/r {tiny} " + LONG + " --resume"


def _resume() -> Iterator[Case]:
    def newest(spoil: Callable[[Path], None]) -> Make:
        def make(box: Box) -> None:
            box.copy("stopped1", "r")
            spoil(sorted((box.input / "r/run/checkpoints").rglob("update-*"))[-1])

        return make

    def every(spoil: Callable[[Path], None]) -> Make:
        def make(box: Box) -> None:
            box.copy("stopped1", "r")
            for path in (box.input / "r/run/checkpoints").rglob("update-*"):
                spoil(path)

        return make

    def cut(name: str, length: int | None) -> Callable[[Path], None]:
        return lambda path: void((path / name).write_bytes((path / name).read_bytes()[:length]))

    spoils: dict[str, Callable[[Path], None]] = {
        "weights-cut": cut("state.safetensors", 5000),
        "weights-empty": cut("state.safetensors", 0),
        "weights-zeroed": lambda path: void((path / "state.safetensors").write_bytes(bytes(9000))),
        "weights-missing": lambda path: (path / "state.safetensors").unlink(),
        "facts-half": cut("state.json", 10),
        "facts-empty": cut("state.json", 0),
        "facts-list": lambda path: void((path / "state.json").write_text("[]")),
        "facts-other": lambda path: void((path / "state.json").write_text('{"update": "x"}')),
        "facts-missing": lambda path: (path / "state.json").unlink(),
    }
    went_on = Usable("parameters", ("in/r",))
    for name, spoil in spoils.items():
        yield Case(
            f"resume-newest-{name}",
            "run",
            RESUME,
            went_on,
            "an older checkpoint is whole",
            newest(spoil),
            name in ("weights-cut", "facts-half"),
        )
        yield Case(
            f"resume-every-{name}",
            "run",
            RESUME,
            Either(Refused("", ("in/r/run/state.json", "in/r/run/.lock")), went_on),
            "nothing to go on from: refuse, or begin again and say so",
            every(spoil),
        )
    yield Case(
        "resume-good",
        "run",
        RESUME,
        went_on,
        "a good control",
        lambda box: void(box.copy("stopped1", "r")),
        True,
    )
    yield Case(
        "resume-good-2",
        "run",
        RESUME,
        went_on,
        "a good control",
        lambda box: void(box.copy("stopped2", "r")),
    )
    for file in ("state.json", "state.safetensors"):
        for name, length in (("cut", 20), ("empty", 0)):

            def make(box: Box, file: str = file, length: int = length) -> None:
                path = box.copy("stopped2", "r") / "run/products/decide" / file
                path.write_bytes(path.read_bytes()[:length])

            yield Case(
                f"resume-product-{file.replace('.', '-')}-{name}",
                "run",
                RESUME,
                Either(Refused("", ("in/r/run/state.json", "in/r/run/.lock")), went_on),
                make=make,
            )
    for name, content in SHAPES.items():
        kept = ("in/r/run/.lock", "in/r/run/state.json")
        yield Case(
            f"resume-run-json-{name}",
            "run",
            RESUME,
            Refused("run.json|no run|run", kept),
            make=spoilt("run/run.json", content, "stopped1"),
            quick=name == "list",
        )
        yield Case(
            f"resume-state-{name}",
            "run",
            RESUME,
            went_on,
            "where a run stands is told again",
            spoilt("run/state.json", content, "stopped1"),
            quick=name == "list",
        )
        if name != "nan":
            yield Case(
                f"resume-log-{name}",
                "run",
                RESUME,
                Either(Refused("", kept), went_on),
                make=spoilt("run/metrics.jsonl", content, "stopped1"),
            )
    other = "compress {in}/gone {in}/gone {in}/r --params 10% --resume"
    yield Case(
        "resume-finished-other",
        "run",
        other,
        Refused(),
        "another run than the one that finished",
        lambda box: void(box.copy("run", "r")),
        True,
        changes=("in/r/run/.lock",),
    )
    seed = "compress {teacher} {speech} {in}/r {tiny} " + LONG + " --set seed=9 --resume"
    yield Case(
        "resume-other-seed",
        "run",
        seed,
        Refused("seed"),
        "another run",
        lambda box: void(box.copy("stopped1", "r")),
        changes=("in/r/run/.lock", "in/r/run/state.json"),
    )

    def link(box: Box) -> None:
        box.copy("stopped1", "r")
        checkpoints = box.input / "r/run/checkpoints"
        checkpoints.rename(box.input / "elsewhere")
        checkpoints.symlink_to("../../elsewhere")

    yield Case(
        "resume-checkpoints-link",
        "run",
        RESUME,
        Either(Refused("", ("in/r/run/.lock",)), Usable("parameters", ("in/r", "in/elsewhere"))),
        make=link,
    )


def _verify() -> Iterator[Case]:
    """A folder that was received: is it what it was when it was written?"""

    def flip(name: str) -> Make:
        def make(box: Box) -> None:
            path = box.copy("run", "r") / name
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(bytes(content))

        return make

    def code(box: Box) -> None:
        path = box.copy("run", "r") / "modeling_sslim.py"
        path.write_text(path.read_text() + f"\nopen({str(box.canary)!r}, 'w').close()\n")

    def gone(name: str) -> Make:
        return lambda box: (box.copy("run", "r") / name).unlink()

    makers = {
        "weights-changed": flip("model.safetensors"),
        "config-changed": edited(
            "config.json", lambda facts: facts.__setitem__("layer_norm_eps", 1.0)
        ),
        "code-changed": code,
        "weights-gone": gone("model.safetensors"),
        "code-gone": gone("modeling_sslim.py"),
        "record-gone": gone("sslim.json"),
    } | {f"record-{name}": spoilt("sslim.json", content) for name, content in SHAPES.items()}
    for name, make in makers.items():
        quick = name in ("weights-changed", "code-changed", "record-list")
        yield Case(
            f"verify-{name}",
            "backbone",
            "verify {in}/r",
            refused(),
            "not what was written",
            make,
            quick,
        )
    yield Case(
        "verify-good",
        "backbone",
        "verify {in}/r",
        Usable("", ()),
        "a good control",
        lambda box: void(box.copy("run", "r")),
        True,
    )
    yield Case(
        "verify-dense",
        "backbone",
        "verify {teacher}",
        refused(),
        "there is no record to compare it with",
    )
    yield Case(
        "cache-to-file",
        "evaluate",
        "cache --cache {csv} --clear",
        refused(),
        "a file is no cache",
        quick=True,
    )
    yield Case(
        "cache-of-others",
        "evaluate",
        "cache --cache {speech} --clear",
        Either(usable=Usable("", ())),
        "what sslim did not write stays",
        quick=True,
    )
    yield Case("cache-nan", "evaluate", "cache --older-than nan", refused("older-than"))
    yield Case("cache-dev-null", "evaluate", "cache --cache /dev/null", refused())


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _verify()
    yield from _shapes()
    yield from _evidence()
    yield from _decisions()
    yield from _sources()
    yield from _resume()
