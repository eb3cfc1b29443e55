"""Lists, tables and manifests that name recordings: wrong, odd, endless, or with orders in them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile

from tests.hostile.audio import heard, of_codec
from tests.hostile.box import Box, speech
from tests.hostile.case import Case, Either, Expected, Make, Refused, Usable, refused, written

NAMES = [f"good{number}.wav" for number in range(4)]


def source(name: str, content: bytes | str) -> Make:
    """Four good recordings and one file that names them (or does not)."""

    def make(box: Box) -> None:
        box.good()
        text = content
        if isinstance(text, str):
            text = text.replace("@CANARY@", str(box.canary)).replace("@IN@", str(box.input))
        written(box.input / name, text)

    return make


LISTS: dict[str, tuple[str, bytes | str, Expected]] = {
    "good": ("l.txt", "\n".join(NAMES), heard(4)),
    "bom": ("l.txt", b"\xef\xbb\xbf" + "\n".join(NAMES).encode(), heard(4)),
    "windows-newlines": ("l.txt", "\r\n".join(NAMES), heard(4)),
    "empty": ("l.txt", "", refused("no audio")),
    "blank-lines": ("l.txt", "\n\n  \n", refused("no audio")),
    "nul": ("l.txt", "good0.wav\x00\ngood1.wav\n", Either(usable=Usable("parameters"))),
    "only-nul": ("l.txt", "a\x00b.wav\n", refused()),
    "utf-16": ("l.txt", "\n".join(NAMES).encode("utf-16"), refused("UTF-8|text")),
    "latin-1": ("l.txt", "caf\xe9.wav".encode("latin-1"), refused()),
    "binary": ("l.txt", np.random.default_rng(3).bytes(4000), refused()),
    "long-line": ("l.txt", "x" * 2_000_000 + ".wav\n", refused()),
    "name-too-long": ("l.txt", "x" * 300 + ".wav\n", refused()),
    "no-such-user": ("l.txt", "~nosuchuser/x.wav\n", refused()),
    "missing": ("l.txt", "gone.wav\n", refused("gone.wav")),
    "itself": ("l.txt", "l.txt\n", refused()),
    "folder": ("l.txt", ".\n", refused()),
    "device": ("l.txt", "/dev/zero\n", refused()),
    "url": ("l.txt", "http://127.0.0.1:9/x.wav\nfile:///etc/passwd\n", refused()),
    "pipe": ("l.txt", "|touch @CANARY@\ntouch @CANARY@ |\n$(touch @CANARY@)\n", refused()),
    "scp-key-path": (
        "l.scp",
        "".join(f"key{i} @IN@/{n}\n" for i, n in enumerate(NAMES)),
        Either(Refused("scp|key"), heard(4)),
    ),
    "scp-pipe": ("l.scp", "key1 touch @CANARY@; cat @IN@/good0.wav |\n", refused()),
    "tsv-good": ("l.tsv", "@IN@\n" + "".join(f"{n}\t12800\n" for n in NAMES), heard(4)),
    "tsv-empty": ("l.tsv", "", refused()),
    "tsv-root-nul": ("l.tsv", "/\x00\nx\t1\n", refused()),
    "tsv-root-file": ("l.tsv", "@IN@/good0.wav\nx.wav\t1\n", refused()),
    "tsv-lying-counts": ("l.tsv", "@IN@\n" + "".join(f"{n}\t-5\n" for n in NAMES), heard(4)),
    "unknown-kind": ("l.xml", "<x/>", refused("kind")),
    "csv-good": ("l.csv", "path\n" + "\n".join(NAMES), heard(4)),
    "csv-bom": ("l.csv", b"\xef\xbb\xbfpath\n" + "\n".join(NAMES).encode(), heard(4)),
    "csv-empty": ("l.csv", "", refused()),
    "csv-header-only": ("l.csv", "path,label\n", refused()),
    "csv-no-path": ("l.csv", "file\ngood0.wav\n", refused("path")),
    "csv-utf-16": ("l.csv", ("path\n" + "\n".join(NAMES)).encode("utf-16"), refused("UTF-8|text")),
    "csv-nul": ("l.csv", "path\ngood0\x00.wav\n", refused()),
    "csv-huge-field": (
        "l.csv",
        "path,label\ngood0.wav," + "x" * 200_000 + "\n",
        Either(usable=Usable("parameters")),
    ),
    "csv-quoted-newline": (
        "l.csv",
        'path,text\ngood0.wav,"one\ntwo"\ngood1.wav,"three\n\nfour"\ngood2.wav,five\n',
        heard(3),
    ),
    "csv-line-separator": (
        "l.csv",
        "path,text\n" + "".join(f"{n},one\u2028two\x85three\n" for n in NAMES),
        heard(4),
    ),
    "csv-form-feed": (
        "l.csv",
        "path,text\n" + "".join(f"{n},one\x0ctwo\x1cthree\n" for n in NAMES),
        heard(4),
    ),
    "csv-open-quote": ("l.csv", 'path,text\n"good0.wav,one\ngood1.wav,two\n', refused()),
    "csv-duplicate-path": (
        "l.csv",
        "path,path\ngood0.wav,gone.wav\n",
        refused("twice|duplicate|more than once"),
    ),
    "csv-short-row": (
        "l.csv",
        "path,start,end\ngood0.wav,0\ngood1.wav\n",
        Either(Refused("field|column"), Usable("parameters")),
    ),
    "csv-long-row": (
        "l.csv",
        "path\ngood0.wav,x,y\ngood1.wav\n",
        Either(Refused("field|column"), Usable("parameters")),
    ),
    "csv-empty-path": ("l.csv", "path,label\n,x\n", refused()),
    "csv-path-dot": ("l.csv", "path\n.\n", refused()),
    "csv-absolute-device": ("l.csv", "path\n/dev/zero\n", refused()),
    "csv-semicolons": ("l.csv", "path;label\ngood0.wav;x\n", refused("path")),
}
for _name, _value in {
    "nan": "nan",
    "inf": "inf",
    "minus": "-5",
    "half": "1.5",
    "huge": "1" + "0" * 400,
    "1e308": "1e308",
    "hex": "0x10",
    "2e63": str(2**63),
    "digits-5000": "9" * 5000,
    "words": "ten",
}.items():
    LISTS[f"csv-start-{_name}"] = (
        "l.csv",
        f"path,start,end\ngood0.wav,{_value},9000\n",
        refused("start|sample|end"),
    )
    LISTS[f"csv-end-{_name}"] = (
        "l.csv",
        f"path,start,end\ngood0.wav,0,{_value}\n",
        refused("end|sample"),
    )
LISTS["csv-superscript"] = ("l.csv", "path,start,end\ngood0.wav,\u00b2,9000\n", refused("start"))
LISTS["csv-end-beyond"] = ("l.csv", "path,start,end\ngood0.wav,0,99999999\n", refused("end"))
LISTS["csv-backwards"] = ("l.csv", "path,start,end\ngood0.wav,9000,10\n", refused("end"))

QUICK_LISTS = {
    "nul",
    "csv-huge-field",
    "no-such-user",
    "name-too-long",
    "csv-quoted-newline",
    "csv-nul",
    "csv-good",
}


def _lists() -> Iterator[Case]:
    for name, (file, content, expected) in LISTS.items():
        yield Case(
            f"compress-{name}",
            "audio",
            f"compress {{teacher}} {{in}}/{file} {{out}} {{tiny}}",
            expected,
            "what the text says is heard, or refused by line",
            source(file, content),
            quick=name in QUICK_LISTS,
            gibibytes=4.0,
        )
        if isinstance(expected, Refused):
            yield Case(
                f"embed-{name}",
                "audio",
                f"embed {{teacher}} {{in}}/{file} {{out}}",
                Either(Refused(expected.says, ("out",)), Usable())
                if "csv-start" in name or "csv-end" in name
                else Refused("", ("out",)),
                "embed takes whole files",
                source(file, content),
            )
        if "csv" in name and isinstance(expected, Refused):
            yield Case(
                f"export-{name}",
                "audio",
                f"export {{teacher}} {{out}}.onnx --audio {{in}}/{file}",
                refused(),
                make=source(file, content),
            )
    for verb, words in {
        "compress": "compress {teacher} /dev/zero {out} {tiny}",
        "compress-proc": "compress {teacher} /proc/self/mem {out} {tiny}",
        "embed": "embed {teacher} /dev/zero {out}",
        "export": "export {teacher} {out}.onnx --audio /dev/zero",
        "fidelity": "evaluate {teacher} {teacher} --task fidelity --data /dev/zero",
        "evaluate": "evaluate {teacher} --task ks --data /dev/zero {fast}",
    }.items():
        yield Case(
            f"{verb}-dev-zero",
            "audio",
            words,
            refused(),
            "an endless file is no list",
            quick=verb == "compress",
            seconds=25,
            gibibytes=1.5,
        )
    for verb, words in {
        "compress": "compress {teacher} {in}/x.csv {out} {tiny}",
        "evaluate": "evaluate {teacher} --task ks --data {in}/x.csv {fast}",
        "list": "compress {teacher} {in}/x.txt {out} {tiny}",
        "manifest": "compress {teacher} {in}/x.jsonl {out} {tiny}",
    }.items():

        def endless(box: Box) -> None:
            for ending in ("csv", "txt", "jsonl"):
                (box.input / f"x.{ending}").symlink_to("/dev/zero")

        yield Case(
            f"{verb}-link-to-dev-zero",
            "audio",
            words,
            refused(),
            make=endless,
            seconds=25,
            gibibytes=1.5,
        )
    for name, words in {
        "no-such-user": "compress {teacher} ~nosuchuser/x {out} {tiny}",
        "too-long": "compress {teacher} " + "n" * 300 + " {out} {tiny}",
        "embed-no-such-user": "embed {teacher} ~nosuchuser/x {out}",
        "embed-too-long": "embed {teacher} " + "n" * 300 + " {out}",
        "evaluate-too-long": "evaluate {teacher} --task ks --data " + "n" * 300 + ".csv {fast}",
    }.items():
        yield Case(f"source-{name}", "audio", words, refused(), quick=name == "no-such-user")


def recording(path: str, kind: str = "file", **changes: Any) -> dict[str, Any]:
    """A recording of lhotse."""
    return {
        "id": "r",
        "sources": [{"type": kind, "channels": [0], "source": path}],
        "sampling_rate": 16000,
        "num_samples": 12800,
        "duration": 0.8,
        "channel_ids": [0],
    } | changes


def cut(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A cut of the whole recording."""
    return {
        "id": "c",
        "start": 0,
        "duration": record.get("duration", 0.8),
        "channel": 0,
        "supervisions": [],
        "recording": record,
        "type": "MonoCut",
    } | changes


GOOD = recording("@IN@/good0.wav")
COMMAND = "touch @CANARY@; cat @IN@/good0.wav"
NAN = float("nan")
MANIFESTS: dict[str, tuple[list[Any], Expected]] = {
    "good-recordings": ([recording(f"@IN@/{n}", id=n) for n in NAMES], heard(4)),
    "good-cuts": ([cut(recording(f"@IN@/{n}", id=n), id=n) for n in NAMES], heard(4)),
    "command": ([recording(COMMAND, "command")], refused()),
    "command-in-cut": ([cut(recording(COMMAND, "command"))], refused()),
    "command-second": (
        [
            cut(
                recording(f"@IN@/{NAMES[0]}")
                | {
                    "sources": [
                        GOOD["sources"][0],
                        {"type": "command", "channels": [1], "source": COMMAND},
                    ],
                    "channel_ids": [0, 1],
                }
            )
        ],
        Either(usable=Usable("parameters")),
    ),
    "command-in-mixed": (
        [
            {
                "id": "m",
                "type": "MixedCut",
                "tracks": [
                    {"cut": cut(GOOD), "offset": 0},
                    {"cut": cut(recording(COMMAND, "command"), id="d"), "offset": 0},
                ],
            }
        ],
        refused(),
    ),
    "command-in-padding": (
        [
            {
                "id": "m",
                "type": "MixedCut",
                "tracks": [
                    {"cut": cut(recording(COMMAND, "command")), "offset": 0},
                    {
                        "cut": {
                            "id": "p",
                            "type": "PaddingCut",
                            "duration": 1.0,
                            "sampling_rate": 16000,
                            "feat_value": 0,
                        },
                        "offset": 0.8,
                    },
                ],
            }
        ],
        refused(),
    ),
    "url": ([recording("http://127.0.0.1:9/x.wav", "url")], refused()),
    "url-pipe": ([recording("pipe:touch @CANARY@", "url")], refused()),
    "file-is-pipe": ([recording("pipe:touch @CANARY@")], refused()),
    "file-is-s3": ([recording("s3://bucket/x.wav")], refused()),
    "features": (
        [
            cut(
                GOOD,
                features={
                    "type": "fbank",
                    "num_frames": 1,
                    "num_features": 1,
                    "frame_shift": 0.01,
                    "sampling_rate": 16000,
                    "start": 0,
                    "duration": 0.8,
                    "storage_type": "numpy_files",
                    "storage_path": "/etc",
                    "storage_key": "passwd",
                },
            )
        ],
        Either(usable=Usable("parameters")),
    ),
    "memory": ([recording("AAAA", "memory")], refused()),
    "shar": ([recording("x", "shar")], refused()),
    "unknown-source": ([recording("x", "telepathy")], refused()),
    "speed": (
        [
            cut(
                recording(
                    f"@IN@/{NAMES[0]}", transforms=[{"name": "Speed", "kwargs": {"factor": 2.0}}]
                )
            )
        ],
        refused("transform|speed"),
    ),
    "reverb": (
        [
            cut(
                recording(
                    f"@IN@/{NAMES[0]}",
                    transforms=[
                        {
                            "name": "ReverbWithImpulseResponse",
                            "kwargs": {"rir": recording(COMMAND, "command")},
                        }
                    ],
                )
            )
        ],
        refused(),
    ),
    "unknown-transform": (
        [
            cut(
                recording(
                    f"@IN@/{NAMES[0]}",
                    transforms=[{"name": "os.system", "kwargs": {"command": COMMAND}}],
                )
            )
        ],
        refused(),
    ),
    "rate-0": ([recording("@IN@/good0.wav", sampling_rate=0)], Either(usable=Usable("parameters"))),
    "rate-text": (
        [recording("@IN@/good0.wav", sampling_rate="x")],
        Either(usable=Usable("parameters")),
    ),
    "rate-nan": (
        [recording("@IN@/good0.wav", sampling_rate=NAN)],
        Either(usable=Usable("parameters")),
    ),
    "rate-other": (
        [recording("@IN@/good0.wav", sampling_rate=48000, num_samples=38400)],
        Either(usable=Usable("parameters")),
    ),
    "duration-nan": ([cut(GOOD, duration=NAN)], refused()),
    "duration-inf": ([cut(GOOD, duration=float("inf"))], refused()),
    "duration-1e300": ([cut(GOOD, duration=1e300)], refused()),
    "duration-minus": ([cut(GOOD, duration=-1.0)], refused()),
    "duration-0": ([cut(GOOD, duration=0)], refused()),
    "start-nan": ([cut(GOOD, start=NAN)], refused()),
    "start-minus": ([cut(GOOD, start=-3.0)], refused()),
    "start-text": ([cut(GOOD, start="x")], refused()),
    "source-int": ([recording(5)], refused()),  # type: ignore[arg-type]
    "source-null": ([recording(None)], refused()),  # type: ignore[arg-type]
    "source-nul": ([recording("a\x00b")], refused()),
    "sources-empty": ([recording("x", sources=[])], refused()),
    "sources-null": ([recording("x", sources=None)], refused()),
    "samples-huge": (
        [recording("@IN@/good0.wav", num_samples=2**62, duration=2.0**62 / 16000)],
        Either(usable=Usable("parameters")),
    ),
    "channel-other": ([cut(GOOD, channel=7)], refused()),
    "channel-list": ([cut(GOOD, channel=[0, 1], type="MultiCut")], refused()),
    "number": ([5], refused()),
    "list": ([[1, 2]], refused()),
    "null": ([None], refused()),
    "supervisions": (
        [{"id": "s", "recording_id": "r", "start": 0, "duration": 1, "channel": 0}],
        refused(),
    ),
    "deep": (["@DEEP@"], refused()),
    "empty": ([], refused()),
}
QUICK_MANIFESTS = {"good-cuts", "command", "command-in-mixed", "rate-0", "source-int", "speed"}


def manifest(lines: list[Any], name: str) -> Make:
    """A lhotse manifest beside good recordings."""

    def make(box: Box) -> None:
        box.good()
        text = "".join(
            ("[" * 50_000 + "]" * 50_000 if line == "@DEEP@" else json.dumps(line)) + "\n"
            for line in lines
        )
        text = text.replace("@CANARY@", str(box.canary)).replace("@IN@", str(box.input))
        written(box.input / name, gzip.compress(text.encode()) if name.endswith("gz") else text)

    return make


def _manifests() -> Iterator[Case]:
    why = "a manifest may name files; it may not give orders"
    for name, (lines, expected) in MANIFESTS.items():
        yield Case(
            f"lhotse-{name}",
            "audio",
            "compress {teacher} {in}/m.jsonl {out} {tiny}",
            expected,
            why,
            manifest(lines, "m.jsonl"),
            quick=name in QUICK_MANIFESTS,
        )
        if not isinstance(expected, Usable):
            yield Case(
                f"embed-lhotse-{name}",
                "audio",
                "embed {teacher} {in}/m.jsonl {out}",
                Either(Refused("", ("out",))),
                "embed takes the whole files that a manifest names",
                manifest(lines, "m.jsonl"),
            )
    yield Case(
        "lhotse-gz",
        "audio",
        "compress {teacher} {in}/m.jsonl.gz {out} {tiny}",
        heard(4),
        "a good control",
        manifest(MANIFESTS["good-cuts"][0], "m.jsonl.gz"),
    )
    for name, content in _contents():
        yield Case(
            f"lhotse-{name}",
            "audio",
            "compress {teacher} {in}/m.jsonl.gz {out} {tiny}"
            if "gz" in name
            else "compress {teacher} {in}/m.jsonl {out} {tiny}",
            refused(),
            make=source("m.jsonl.gz" if "gz" in name else "m.jsonl", content),
            gibibytes=2.0,
        )

    def resampled(box: Box) -> None:
        """48 kHz, half low and half high; the manifest resamples to 16 kHz and takes the second half."""
        path = box.input / "x.wav"
        soundfile.write(path, speech(0, 2.0, 48_000), 48_000)
        record = recording(
            str(path),
            sampling_rate=16000,
            num_samples=32000,
            duration=2.0,
            transforms=[
                {
                    "name": "Resample",
                    "kwargs": {"source_sampling_rate": 48000, "target_sampling_rate": 16000},
                }
            ],
        )
        written(box.input / "m.jsonl", json.dumps(cut(record, start=1.0, duration=1.0)) + "\n")

    yield Case(
        "lhotse-resample",
        "audio",
        "compress {teacher} {in}/m.jsonl {out} {tiny}",
        Either(Refused("transform|resampl"), heard(1)),
        "the usual recipe; seconds are seconds whatever the rate",
        resampled,
    )

    def other_channel(box: Box) -> None:
        path = box.input / "x.wav"
        soundfile.write(path, np.stack([speech(0), speech(1)], 1), 16_000)
        record = recording(
            str(path),
            sources=[{"type": "file", "channels": [0, 1], "source": str(path)}],
            channel_ids=[0, 1],
        )
        written(box.input / "m.jsonl", json.dumps(cut(record, channel=1)) + "\n")

    yield Case(
        "lhotse-one-channel",
        "audio",
        "compress {teacher} {in}/m.jsonl {out} {tiny}",
        Either(Refused("channel"), heard(1)),
        make=other_channel,
    )


def _contents() -> Iterator[tuple[str, bytes]]:
    line = json.dumps(recording("good0.wav")).encode()
    yield "truncated-gz", gzip.compress(line * 50)[:60]
    yield "junk-gz", b"\x1f\x8b" + bytes(50)
    yield "gz-bomb-gz", gzip.compress(bytes(2**28) + line, 1)
    yield "python-yaml", b"!!python/object/apply:os.system ['touch PWNED']\n"
    yield "half-line", line[:40]
    yield "binary", np.random.default_rng(0).bytes(3000)
    yield "utf-16", line.decode().encode("utf-16")
    yield "not-json", b"path,label\nx,y\n"


def _pairs() -> Iterator[Case]:
    def duplicated(box: Box) -> None:
        box.good()
        written(box.input / "l.txt", "good0.wav\n" * 3 + "./good0.wav\n")

    yield Case(
        "compress-list-duplicates",
        "audio",
        "compress {teacher} {in}/l.txt {out} {tiny}",
        Usable("parameters"),
        "hearing one file more often is the list's own wish",
        duplicated,
    )

    def traversing(box: Box) -> None:
        box.good("store")
        written(box.input / "lists" / "l.txt", "".join(f"../store/{name}\n" for name in NAMES))

    yield Case(
        "compress-list-elsewhere",
        "audio",
        "compress {teacher} {in}/lists/l.txt {out} {tiny}",
        heard(4),
        "lists name files anywhere: a good control",
        traversing,
    )
    for name in ("mp3", "opus"):

        def lossy(box: Box, name: str = name) -> None:
            written(box.input / f"x.{name}", of_codec(name, 2.0))
            written(
                box.input / "l.csv", f"path,start,end\nx.{name},1000,16000\nx.{name},8000,24000\n"
            )

        yield Case(
            f"compress-stretches-{name}",
            "audio",
            "compress {teacher} {in}/l.csv {out} {tiny}",
            heard(2),
            "a good control",
            lossy,
        )


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _lists()
    yield from _manifests()
    yield from _pairs()
