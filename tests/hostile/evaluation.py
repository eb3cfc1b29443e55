"""What `evaluate` is given: labels, options, trials, RTTM, noise, rooms; `embed`'s and `bench`'s words."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator

import numpy as np

from tests.hostile.audio import encoded, example
from tests.hostile.box import Box, speech
from tests.hostile.case import (
    Case,
    Either,
    Expected,
    Make,
    Refused,
    Usable,
    nothing,
    refused,
    written,
)

KS = "evaluate {teacher} --task ks --data {in}/clips/clips.csv {fast}"
SPLIT = ("in/clips/clips.split.csv",)
Rows = list[dict[str, str]]


def rows(change: Callable[[Rows], Rows | None], raw: Callable[[str], str] = str) -> Make:
    """The good corpus, its rows changed."""

    def make(box: Box) -> None:
        path = box.copy("speech", "clips") / "clips.csv"
        with path.open(newline="") as stream:
            found = list(csv.DictReader(stream))
        found = change(found) or found
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
            writer = csv.DictWriter(stream, list(found[0]))
            writer.writeheader()
            writer.writerows(found)
        path.write_bytes(
            raw(path.read_text(encoding="utf-8", errors="surrogateescape")).encode(
                "utf-8", "surrogateescape"
            )
        )

    return make


def each(**changes: Callable[[dict[str, str], int], str]) -> Make:
    """Columns set row by row."""

    def change(found: Rows) -> None:
        for number, row in enumerate(found):
            row.update({name: value(row, number) for name, value in changes.items()})

    return rows(change)


def _drop(name: str) -> Make:
    return rows(lambda found: [{k: v for k, v in row.items() if k != name} for row in found])


def _grouped(box: Box) -> None:
    """Two groups that are large enough to be compared, with names that a terminal would take for orders."""
    path = box.copy("speech", "clips") / "clips.csv"
    lines = [path.read_text().replace(",m\n", ",m[/b]x\n").rstrip("\n")]
    for number in range(60):
        group = ("f", "m[/b]x")[number % 2]
        lines.append(f"more{number}.wav,word{number // 2 % 2},t{number},test,{group}")
        sound = speech(5 * (number // 2 % 2), 0.4) + speech(number + 20, 0.4) / 50
        written(box.input / "clips" / f"more{number}.wav", encoded(sound))
    path.write_text("\n".join(lines) + "\n")


TABLES: dict[str, tuple[Make, Expected]] = {
    "good": (rows(lambda found: None), Usable("accuracy", ())),
    "markup-labels": (each(label=lambda row, n: row["label"] + "[/b]"), Usable("accuracy", ())),
    "markup-groups": (_grouped, Usable("accuracy", ())),
    "control-labels": (each(label=lambda row, n: row["label"] + "\x1b[2J"), Usable("accuracy", ())),
    "quoted-newlines": (
        each(label=lambda row, n: row["label"] + "\nsecond"),
        Usable("accuracy", ()),
    ),
    "line-separators": (
        each(label=lambda row, n: row["label"] + "\u2028\x85\x0c"),
        Usable("accuracy", ()),
    ),
    "formula": (each(label=lambda row, n: "=1+1+cmd|" + row["label"]), Usable("accuracy", ())),
    "bom": (rows(lambda found: None, lambda text: "\ufeff" + text), Usable("accuracy", ())),
    "no-label": (_drop("label"), refused("label")),
    "no-path": (_drop("path"), refused("path")),
    "duplicate-column": (
        rows(lambda found: None, lambda text: text.replace("gender", "label", 1)),
        refused("twice|duplicate|more than once"),
    ),
    "one-class": (each(label=lambda row, n: "x"), refused("class")),
    "class-per-clip": (each(label=lambda row, n: f"c{n}"), refused("class|one training")),
    "empty-labels": (each(label=lambda row, n: ""), refused()),
    "nul": (
        rows(lambda found: None, lambda text: text.replace("word1", "wo\x00rd1", 1)),
        refused(),
    ),
    "huge-field": (
        each(label=lambda row, n: row["label"] + "x" * 140_000),
        Either(usable=Usable("accuracy", ())),
    ),
    "utf-16": (
        rows(lambda found: None, lambda text: text.encode("utf-16").decode("latin-1")),
        refused(),
    ),
    "not-utf-8": (
        rows(lambda found: None, lambda text: text.replace("word1", "w\udce9", 1)),
        refused("UTF-8|text"),
    ),
    "empty": (rows(lambda found: None, lambda text: ""), refused()),
    "header-only": (rows(lambda found: None, lambda text: text.splitlines()[0]), refused()),
    "short-row": (
        rows(lambda found: None, lambda text: text + "x.wav,word1\n"),
        refused("field|column"),
    ),
    "long-row": (
        rows(lambda found: None, lambda text: text + "x.wav" + ",y" * 30 + "\n"),
        refused("field|column"),
    ),
    "speaker-leak": (each(speaker=lambda row, n: "s"), refused("speaker")),
    "speaker-case": (each(speaker=lambda row, n: "S1" if n % 2 else "s1 "), refused("speaker")),
    "same-file-twice": (each(path=lambda row, n: "00.wav"), refused("in train|part|twice|same")),
    "same-file-spelled": (
        each(path=lambda row, n: "00.wav" if row["split"] == "train" else "../clips/00.wav"),
        refused(),
    ),
    "no-test": (each(split=lambda row, n: "train"), refused("test")),
    "misspelt-split": (
        each(split=lambda row, n: row["split"].replace("test", "tets") if n % 2 else row["split"]),
        Either(Refused("tets|split"), Usable("tets|part|left out|no part", ())),
    ),
    "split-unknown": (each(split=lambda row, n: "x"), refused()),
    "no-split": (_drop("split"), Usable("split", SPLIT)),
    "path-folder": (each(path=lambda row, n: "."), refused()),
    "path-device": (each(path=lambda row, n: "/dev/zero"), refused()),
    "path-empty": (each(path=lambda row, n: ""), refused()),
    "path-missing": (each(path=lambda row, n: "gone.wav"), refused("gone.wav")),
    "path-long": (each(path=lambda row, n: "n" * 300 + ".wav"), refused()),
    "start-nan": (rows(lambda found: [row | {"start": "nan"} for row in found]), refused("start")),
    "start-beyond": (rows(lambda found: [row | {"start": "99999999"} for row in found]), refused()),
    "overlapping-stretches": (
        rows(
            lambda found: [
                row
                | {"path": "00.wav", "speaker": "", "start": str(number), "end": str(6000 + number)}
                for number, row in enumerate(found)
            ]
        ),
        refused(),
    ),
}
QUICK = {"good", "markup-groups", "nul", "quoted-newlines", "same-file-spelled", "huge-field"}

OPTIONS = {
    "task": ("--task evil", "--task ks --suite superb", "--task ''"),
    "seeds": ("--seeds 0", "--seeds -1", "--seeds nan", "--seeds 1e3"),
    "epochs": ("--epochs 0", "--epochs -5"),
    "learning-rates": (
        "--learning-rates -1",
        "--learning-rates nan",
        "--learning-rates inf",
        "--learning-rates 0",
        "--learning-rates x",
        "--learning-rates 1e308,",
        "--learning-rates ,",
    ),
    "snr": (
        "--noise {in}/noise --snr 1e300",
        "--noise {in}/noise --snr nan",
        "--noise {in}/noise --snr inf",
        "--noise {in}/noise --snr x",
        "--noise {in}/noise --snr ,",
    ),
    "cache-gib": ("--cache-gib nan", "--cache-gib inf", "--cache-gib -1", "--cache-gib 1e300"),
    "cache": ("--cache /dev/null/x", "--cache {csv}", "--cache /proc/x"),
    "json": ("--json /dev/null/x.json", "--json {in}", "--json /proc/x.json"),
    "collar": ("--collar nan", "--collar -1"),
    "hidden": ("--hidden -1", "--hidden 100000000000"),
    "batch": ("--batch 0", "--batch -3"),
    "precision": ("--precision int8",),
    "device": ("--device evil", "--device cuda:999"),
    "group": ("--group evil", "--group ,"),
    "folds": ("--folds evil", "--folds path"),
    "split-column": ("--split-column evil",),
    "where": ("--where x", "--where colour=red", "--where label=none"),
    "noise": ("--noise {in}/gone", "--noise {csv}", "--noise /dev/zero", "--noise {in}/empty"),
    "rooms": (
        "--rooms {in}/gone",
        "--rooms {in}/empty",
        "--rooms {in}/silent",
        "--rooms {in}/long",
    ),
    "conditions": ("--conditions evil", "--conditions [/red]"),
}
HARMLESS = {
    "--learning-rates ,",
    "--learning-rates 1e308,",
    "--group ,",
    "--folds path",
    "--cache-gib inf",
    "--cache-gib 1e300",
    "--noise {in}/noise --snr ,",
    "--noise {csv}",  # a list of recordings is a source of noise like a folder of them
    "--collar nan",
    "--collar -1",
}
FIRST = {
    "--learning-rates nan",
    "--noise {in}/noise --snr 1e300",
    "--cache-gib nan",
    "--json /dev/null/x.json",
}


def _folders(box: Box) -> None:
    box.copy("speech", "clips")
    box.good("noise", 2)
    (box.input / "empty").mkdir()
    ending, content = example("silent")
    written(box.input / "silent" / f"x.{ending}", content)
    written(box.input / "long" / "x.wav", encoded(speech(0, 12.0)))


def _tables() -> Iterator[Case]:
    for name, (make, expected) in TABLES.items():
        words = KS + (" --group gender" if name == "markup-groups" else "")
        yield Case(
            f"evaluate-{name}",
            "evaluate",
            words,
            expected,
            "scores are of what the table says, or there are none",
            make,
            name in QUICK,
        )
    for option, values in OPTIONS.items():
        for number, value in enumerate(values):
            words = tuple(word.strip("'") for word in f"{KS} {value}".split())
            expected = Either(usable=Usable("", ())) if value in HARMLESS else refused()
            yield Case(
                f"evaluate-option-{option}-{number}",
                "evaluate",
                words,
                expected,
                value,
                _folders,
                value in FIRST,
                seconds=60,
            )
    for name, words in {
        "no-data": "evaluate {teacher} --task ks",
        "no-task": "evaluate {teacher} --data {csv}",
        "suite-no-root": "evaluate {teacher} --suite superb",
        "suite-evil": "evaluate {teacher} --suite ../x --root {in}",
        "suite-empty": "evaluate {teacher} --suite superb --root {in}",
        "fidelity-one": "evaluate {teacher} --task fidelity --data {csv}",
        "fidelity-fbank": "evaluate {teacher} fbank --task fidelity --data {csv}",
        "model-twice": "evaluate {teacher} {in}/gone --task ks --data {csv} {fast}",
        "folder-for-csv": "evaluate {teacher} --task ks --data {speech} {fast}",
        "missing-csv": "evaluate {teacher} --task ks --data {in}/gone.csv {fast}",
        "fidelity-json": "evaluate {teacher} {teacher} --task fidelity --data {csv} --json /dev/null/x",
    }.items():
        yield Case(f"evaluate-word-{name}", "evaluate", words, refused())


def _trials() -> Iterator[Case]:
    good = "target,utt1,utt2\n" + "".join(
        f"{int(a // 4 == b // 4)},{a:02}.wav,{b:02}.wav\n"
        for a in range(16, 20)
        for b in range(16, 20)
        if a != b
    )
    contents: dict[str, bytes | str] = {
        "empty": "",
        "header-only": "target,utt1,utt2\n",
        "no-columns": "a,b\n1,2\n",
        "unknown-clip": "target,utt1,utt2\n1,gone.wav,gone.wav\n",
        "target-text": "target,utt1,utt2\nyes,16.wav,17.wav\n",
        "target-7": "target,utt1,utt2\n7,16.wav,17.wav\n0,16.wav,18.wav\n",
        "one-kind": "target,utt1,utt2\n1,16.wav,17.wav\n1,16.wav,18.wav\n",
        "digits": "target,utt1,utt2\n" + "9" * 5000 + ",16.wav,17.wav\n",
        "superscript": "target,utt1,utt2\n\u00b2,16.wav,17.wav\n",
        "nul": "target,utt1,utt2\n1,16\x00.wav,17.wav\n",
        "huge-field": "target,utt1,utt2\n1,16.wav," + "x" * 140_000 + "\n",
        "binary": np.random.default_rng(0).bytes(2000),
        "kind-of-pairs": good.replace("target", "label"),
    }
    for name, content in contents.items():

        def make(box: Box, content: bytes | str = content) -> None:
            written(box.input / "t.csv", content)

        yield Case(
            f"evaluate-trials-{name}",
            "evaluate",
            "evaluate {teacher} --task asv --data {csv} {fast} --hidden 8 --trials {in}/t.csv",
            refused(),
            "a score over no trials, or over others, is no score",
            make,
            name in ("one-kind", "huge-field"),
        )
    yield Case(
        "evaluate-trials-dev-zero",
        "evaluate",
        "evaluate {teacher} --task asv --data {csv} {fast} --trials /dev/zero",
        refused(),
        seconds=25,
        gibibytes=1.5,
    )


def _rttm() -> Iterator[Case]:
    line = "SPEAKER x 1 {} {} <NA> <NA> {} <NA>\n"
    contents: dict[str, bytes | str] = {
        "empty": "",
        "nan": line.format("nan", "0.2", "a") + line.format("0.1", "0.2", "b"),
        "minus-start": line.format("-5", "0.2", "a") + line.format("0.1", "0.2", "b"),
        "minus-length": line.format("0.0", "-0.2", "a") + line.format("0.1", "0.2", "b"),
        "inf": line.format("0.0", "inf", "a"),
        "huge": line.format("0.0", "1e300", "a"),
        "text": line.format("x", "y", "a"),
        "short": "SPEAKER x 1\n",
        "three-speakers": "".join(line.format("0.0", "0.2", name) for name in "abc"),
        "binary": np.random.default_rng(0).bytes(500),
        "nul": line.format("0.0\x00", "0.2", "a"),
    }
    for name, content in contents.items():

        def make(box: Box, content: bytes | str = content) -> None:
            rows(lambda found: [row | {"rttm": "x.rttm"} for row in found])(box)
            written(box.input / "clips" / "x.rttm", content)

        yield Case(
            f"evaluate-rttm-{name}",
            "evaluate",
            "evaluate {teacher} --task sd --data {in}/clips/clips.csv {fast} --hidden 8",
            refused(),
            "a NaN score is no score",
            make,
            name in ("nan", "minus-length"),
        )
    for name, value in {
        "missing": "gone.rttm",
        "folder": ".",
        "device": "/dev/zero",
        "too-long": "n" * 300,
        "no-name": "",
    }.items():
        yield Case(
            f"evaluate-rttm-{name}",
            "evaluate",
            "evaluate {teacher} --task sd --data {in}/clips/clips.csv {fast} --hidden 8",
            refused(),
            make=rows(lambda found, value=value: [row | {"rttm": value} for row in found]),
            seconds=25,
        )  # type: ignore[misc]


def _words() -> Iterator[Case]:
    for option, values in {
        "layer": ("\u00b2", "99", "-1", "x", "1.0", "9" * 5000, "", "nan"),
        "chunk": ("nan", "inf", "0", "-1", "1e300", "1e-9"),
        "left": ("nan", "-1", "inf", "1e300"),
        "right": ("nan", "-1", "1e300"),
        "batch": ("0", "-1", "1e3"),
        "format": ("evil", "npz.exe", "[/red]"),
    }.items():
        for number, value in enumerate(values):
            words = ("embed", "{teacher}", "{speech}/00.wav", "{out}", f"--{option}", value)
            expected = Either() if (option, value) in {("chunk", "1e-9")} else refused()
            yield Case(
                f"embed-option-{option}-{number}",
                "deploy",
                words,
                expected,
                f"--{option} {value}"[:40],
                quick=(option, value) in {("layer", "\u00b2"), ("chunk", "nan")},
            )
    for number, line in enumerate((
        "--threads 0", "--threads x", "--threads nan", "--threads 1,,2", "--threads 1000000000000",
        "--seconds nan",
        "--seconds inf", "--seconds -1", "--seconds 1e9", "--seconds 1e-9", "--repeats 0", "--repeats -1",
        "--runtime evil", "--runtime ,",
        "--price-per-hour nan --runtime torch --seconds 0.5 --repeats 1",
        "--price-per-hour -1 --runtime torch --seconds 0.5 --repeats 1",
        "--json /dev/null/x.json", "--json {in}",
    )):  # fmt: skip
        yield Case(
            f"bench-option-{number}",
            "deploy",
            f"bench {{teacher}} {line}",
            refused(),
            line,
            seconds=60,
        )
    for number, line in enumerate((
        "--format evil", "--min-cosine nan --format onnx-int8", "--min-cosine 2 --format onnx-int8",
        "--min-cosine x",
        "--task evil --labels {csv}", "--labels {in}/gone.csv",
        "--where x", "--where a=b", "--audio {in}/gone", "--audio {in}",
    )):  # fmt: skip
        yield Case(
            f"export-option-{number}",
            "deploy",
            f"export {{teacher}} {{out}}.onnx {line}",
            refused(),
            line,
            nothing,
            seconds=60,
        )


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _tables()
    yield from _trials()
    yield from _rttm()
    yield from _words()
