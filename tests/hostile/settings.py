"""Settings: files of TOML, `--set`, budgets, and the other words that a person types."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.hostile.box import Box
from tests.hostile.case import Case, Either, Expected, Usable, refused, written

TOML: dict[str, tuple[bytes | str, Expected]] = {
    "good": ("seed = 3\n", Usable("parameters")),
    "empty": ("", Usable("parameters")),
    "deep-array": ("seed = " + "[" * 20_000 + "]" * 20_000, refused()),
    "deep-inline": ("seed = " + "{a=" * 20_000 + "1" + "}" * 20_000, refused()),
    "deep-keys": (".".join("a" * 1 for _ in range(20_000)) + " = 1", refused()),
    "digits-5000": ("seed = " + "9" * 5000, refused()),
    "digits-100": ("seed = " + "9" * 100, refused()),
    "nan": ("clip_norm = nan", refused("clip_norm")),
    "inf": ("seconds_per_update = inf", refused("seconds_per_update")),
    "bool": ("seed = true", refused("seed")),
    "date": ("seed = 2020-01-01", refused("seed")),
    "text": ('seed = "x"', refused("seed")),
    "unknown": ("sede = 1", refused("seed")),
    "section-value": ("stage1 = 5", refused("stage1")),
    "table-for-value": ("[seed]\nx = 1", refused()),
    "array-of-tables": ("[[stage1]]\nupdates = 2", refused()),
    "not-toml": ("{json: 5}", refused("TOML")),
    "half": ("seed = ", refused("TOML")),
    "nul": ("seed = 1\x00", refused()),
    "latin-1": (b'budget = "\xe9"', refused()),
    "utf-16": ("seed = 1".encode("utf-16"), refused()),
    "bom": (b"\xef\xbb\xbfseed = 1\n", Either(usable=Usable("parameters"))),
    "binary": (np.random.default_rng(0).bytes(4000), refused()),
    "trackers": ('trackers = ["os.system"]', refused("tracker")),
    "device-list": ('device = ["cpu"]', refused("device")),
    "units-nested": ('units = [["conv"]]', refused("units")),
    "budget-markup": ('budget = "[/red]\\u001b[2J"', refused("budget")),
    "long-key": ("x" * 10**6 + " = 1", refused()),
}

SET = {
    "seed": (
        "-1",
        "1.5",
        "nan",
        "20000000000",
        "9" * 5000,
        "\u00b2",
        "\u0663",
        "0x10",
        "1_000_000_000_000_000_000_000",
        str(2**64),
        str(2**63 - 1),
        "",
    ),
    "workers": ("-1", "100000", "1e3", "nan", str(2**70)),
    "seconds_per_update": ("nan", "inf", "1e308", "-1", "0", "1e-308", "1e-9", "\u0662"),
    "seconds_per_batch": ("nan", "inf", "-0.1", "1e308", "1e-300"),
    "audio.max_seconds": ("nan", "1e300", "inf", "0", "1e-9"),
    "audio.min_seconds": ("nan", "1e300", "-1"),
    "target_cache_gib": ("nan", "1e300", "inf", "-1"),
    "stage1.updates": ("0", "-1", "1e20", "100000000000000000000", "nan"),
    "stage2.updates": ("-1", "100000000000000000000"),
    "stage1.learning_rate": ("nan", "inf", "0", "-1", "1e308"),
    "stage1.gate_learning_rate": ("nan", "1e308"),
    "stage1.warmup_fraction": ("nan", "-0.1", "1.1"),
    "stage1.shrink_multiple": ("0", str(10**30)),
    "stage1.shrink_chances": ("-1", str(10**30)),
    "clip_norm": ("nan", "0", "inf", "-1"),
    "checkpoint_every": ("0", "-5", str(10**40)),
    "keep_checkpoints": ("0", str(10**40)),
    "log_every": ("0", str(10**40)),
    "layers": ("99", "-1", "0,0", "3,2", "x", "9" * 5000, "nan"),
    "units": ("evil", "", "conv,conv", "head,"),
    "budget": (
        "",
        "nan%",
        "inf",
        "-5%",
        "0",
        "0%",
        "101%",
        "1e308",
        "9" * 5000,
        "\u0665%",
        "1%%",
        "[/red]",
    ),
    "budget_quantity": ("evil", ""),
    "precision": ("int8", ""),
    "device": ("cuda:99999999999", "evil", "cpu:0", "mps:1", "meta", "/dev/null"),
    "trackers": ("evil", "os", "../x", "[/red]"),
    "__class__": ("x",),
    "stage1": ("5",),
    "stage1.__dict__": ("5",),
}
FINE = {
    ("units", "head,"),
    ("seed", str(2**63 - 1)),
    ("seed", "20000000000"),
    ("seed", "\u0663"),
    ("seconds_per_update", "\u0662"),
    ("log_every", str(10**40)),
    ("checkpoint_every", str(10**40)),
    ("keep_checkpoints", str(10**40)),
    ("stage1.shrink_chances", str(10**30)),
    ("stage1.shrink_multiple", str(10**30)),
    ("stage1.learning_rate", "1e308"),
    ("stage1.gate_learning_rate", "1e308"),
    ("device", "mps:1"),
    ("seconds_per_batch", "1e-300"),
    ("seconds_per_update", "1e-9"),
    ("audio.min_seconds", "1e300"),
}
"""Odd but with a meaning, or refused later for what they do: both answers are defensible."""
QUICK = {
    ("seed", "20000000000"),
    ("audio.max_seconds", "1e300"),
    ("stage1.updates", "100000000000000000000"),
    ("workers", "100000"),
    ("seconds_per_update", "1e308"),
    ("budget", "\u0665%"),
    ("layers", "9" * 5000),
}
PARAMS = (
    "",
    "nan",
    "inf",
    "-1",
    "0",
    "25",
    "25%%",
    "1e308%",
    "101%",
    "0%",
    "100%",
    "1e-9%",
    "9" * 5000,
    "24X",
    "\u00b2%",
    "\u0662\u0665%",
    "2 5%",
    "[/red]",
    "25%;id",
)
MIXES = (
    "",
    "=",
    "x",
    "=0.2",
    "{speech}=",
    "{speech}=1",
    "{speech}=0",
    "{speech}=-0.2",
    "{speech}=nan",
    "{speech}=inf",
    "{speech}=5e-324",
    "{speech}=0.9999999999999999",
    "{in}/gone=0.2",
    "/dev/zero=0.2",
    "~nosuchuser/x=0.2",
    "[/red]=0.2",
    "n" * 300 + "=0.2",
)
SPARSITY = (
    "nan",
    "inf",
    "-inf",
    "-0.1",
    "1.0",
    "1.5",
    "1e308",
    "x",
    "0x1",
    "\u0660.\u0665",
    "9" * 400,
)


def cases() -> Iterator[Case]:
    """All of them."""
    for name, (content, expected) in TOML.items():

        def make(box: Box, content: bytes | str = content) -> None:
            written(box.input / "run.toml", content)

        yield Case(
            f"toml-{name}",
            "method",
            "compress {teacher} {speech} {out} {tiny} --config {in}/run.toml",
            expected,
            make=make,
            quick=name in ("deep-array", "digits-5000"),
            seconds=40,
        )
    for name, path in {
        "missing": "{in}/gone.toml",
        "folder": "{in}",
        "dev-zero": "/dev/zero",
        "dev-null": "/dev/null",
        "too-long": "n" * 300,
        "no-such-user": "~nosuchuser/x",
    }.items():
        yield Case(
            f"toml-is-{name}",
            "method",
            f"compress {{teacher}} {{speech}} {{out}} {{tiny}} --config {path}",
            refused() if name != "dev-null" else Usable("parameters"),
            seconds=25,
            quick=name == "dev-zero",
            gibibytes=1.5,
        )
    for key, values in SET.items():
        for number, value in enumerate(values):
            words = (
                "compress",
                "{teacher}",
                "{speech}",
                "{out}",
                "{tiny}",
                "--set",
                f"{key}={value}",
            )
            expected = Either(usable=Usable("parameters")) if (key, value) in FINE else refused()
            yield Case(
                f"set-{key.replace('_', '-').strip('-')}-{number}",
                "method",
                words,
                expected,
                f"{key} = {value}"[:60],
                quick=(key, value) in QUICK,
                seconds=40,
            )
    for word in ("", "=", "x", "seed", "seed=1=2", "=5", "[/red]=1", "seed.x=1", "\x1b[2J=1"):
        words = ("compress", "{teacher}", "{speech}", "{out}", "{tiny}", "--set", word)
        yield Case(
            f"set-form-{len(word)}-{abs(hash_of(word)) % 1000}",
            "method",
            words,
            refused(),
            repr(word),
        )
    for number, value in enumerate(PARAMS):
        words = ("compress", "{teacher}", "{speech}", "{out}", "{tiny}", "--params", value)
        meant = value in ("25%;id",) or False
        expected = (
            Either(usable=Usable("parameters"))
            if value in ("100%", "\u0662\u0665%", "2 5%") and not meant
            else refused()
        )
        yield Case(
            f"params-{number}", "method", words, expected, f"--params {value}"[:60], seconds=40
        )
    for number, value in enumerate(MIXES):
        words = ("compress", "{teacher}", "{speech}", "{out}", "{tiny}", "--mix", value)
        quick = value in ("{speech}=nan", "/dev/zero=0.2")
        why = f"--mix {value}"[:60]
        yield Case(f"mix-{number}", "method", words, refused(), why, quick=quick, seconds=40)
    for number, value in enumerate(SPARSITY):
        words = (
            "compress",
            "{teacher}",
            "{speech}",
            "{out}",
            "--device",
            "cpu",
            "--sparsity",
            value,
        )
        expected = refused() if value != "\u0660.\u0665" else Either()
        yield Case(
            f"sparsity-{number}",
            "method",
            words,
            expected,
            f"--sparsity {value}"[:60],
            seconds=40,
            quick=value == "nan",
        )
    others = {
        "recipe": "compress {teacher} {speech} {out} --recipe ../../etc/passwd",
        "device": "compress {teacher} {speech} {out} {tiny} --device evil",
        "where-form": "compress {teacher} {speech} {out} {tiny} --where x",
        "where-folder": "compress {teacher} {speech} {out} {tiny} --where a=b",
        "where-unknown": "compress {teacher} {csv} {out} {tiny} --where colour=red",
        "where-nothing": "compress {teacher} {csv} {out} {tiny} --where split=none",
        "both": "compress {teacher} {speech} {out} --resume --force",
        "no-verb": "teleport {teacher}",
        "no-words": "compress",
        "option": "compress {teacher} {speech} {out} --parms 5",
        "demo-set": "demo {out} --set seed=nan",
        "demo-unknown": "demo {out} --set evil=1",
        "runs-missing": "runs {in}/gone",
        "report-lang": "report {run} --lang xx",
        "report-evidence": "report {run} --evidence /dev/null/x",
        "checklist-lang": "checklist {run} --lang ../../x",
        "verify-missing": "verify {in}/gone",
    }
    rooms = {
        "runs": "report",
        "report": "report",
        "checklist": "report",
        "demo": "method",
        "verify": "backbone",
    }
    for name, line in others.items():
        yield Case(
            f"word-{name}", rooms.get(name.split("-")[0], "method"), line, refused(), seconds=30
        )


def hash_of(word: str) -> int:
    """A number for a name, the same in every process."""
    return sum((index + 1) * ord(letter) for index, letter in enumerate(word))
