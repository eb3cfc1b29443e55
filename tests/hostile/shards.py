"""Shards: tar files and lhotse Shar folders that are cut, that lie, that are bombs, or that give orders."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.hostile.audio import encoded, example, of_codec
from tests.hostile.box import Box, speech
from tests.hostile.case import Case, Either, Expected, Make, Refused, Usable, refused, written
from tests.hostile.sources import COMMAND, cut, recording
from tests.hostile.warm import Outcome

Fill = Callable[[tarfile.TarFile], None]


def add(archive: tarfile.TarFile, name: str, content: bytes, **facts: Any) -> None:
    """One member."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in facts.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def clips(archive: tarfile.TarFile, count: int = 6, start: int = 0) -> None:
    """Good clips."""
    for number in range(start, start + count):
        add(archive, f"{number}.flac", encoded(speech(number, 0.8), form="FLAC"))


def tar(fill: Fill, mode: str = "w") -> bytes:
    """A tar file's bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        fill(archive)
    return stream.getvalue()


def around(odd: Fill) -> bytes:
    """A shard in which something odd stands between good clips."""

    def fill(archive: tarfile.TarFile) -> None:
        clips(archive, 3)
        odd(archive)
        clips(archive, 3, 3)

    return tar(fill)


def linked(kind: bytes, target: str) -> Fill:
    """A symbolic or hard link that is called like a recording."""
    return lambda archive: add(archive, "link.wav", b"", type=kind, linkname=target)


def sparse(gibibytes: int = 6) -> bytes:
    """A GNU sparse member that claims gigabytes and has 512 bytes."""
    header = bytearray(tarfile.TarInfo("big.wav").tobuf(tarfile.GNU_FORMAT))
    size = gibibytes * 2**30
    header[124:136] = b"%011o\0" % 512
    header[156:157] = b"S"
    number = (size - 512).to_bytes(12, "big")
    header[386:398] = bytes([number[0] | 0x80]) + number[1:]
    header[398:410] = b"%011o\0" % 512
    real = size.to_bytes(12, "big")
    header[483:495] = bytes([real[0] | 0x80]) + real[1:]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512) + tar(clips)


def bomb() -> bytes:
    """A gzip that unpacks to a member larger than any that is read."""
    member = tarfile.TarInfo("big.wav")
    member.size = 2**30 + 2**24
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1) as packed:
        packed.write(member.tobuf())
        for _ in range(member.size // 2**24):
            packed.write(bytes(2**24))
        packed.write(tar(clips))
    return stream.getvalue()


def bad_clip(name: str) -> Fill:
    """A damaged recording among the members."""
    ending, content = example(name)
    return lambda archive: add(archive, f"bad.{ending}", content)


def heard_all(names: tuple[str, ...] = ("parameters",)) -> Usable:
    """The run went to its end, and says what it left out where it did."""

    def check(box: Box, outcome: Outcome) -> str:
        said = outcome.stdout + outcome.stderr
        for file in (box.out / "run").glob("*.json*"):
            said += file.read_text()
        return next((f"{name} is not named" for name in names if name not in said), "")

    return Usable("parameters", check=check)


TARS: dict[str, tuple[bytes | Callable[[], bytes], Expected]] = {
    "good": (tar(clips), heard_all()),
    "good-gzip": (tar(clips, "w:gz"), heard_all()),
    "empty": (b"", refused()),
    "junk": (np.random.default_rng(0).bytes(5000), refused()),
    "zeros": (bytes(10240), refused()),
    "text-members": (tar(lambda archive: add(archive, "a.txt", b"x")), refused()),
    "cut-in-first": (tar(clips)[:3000], refused()),
    "cut": (tar(clips)[:40_000], Either(usable=Usable("parameters"))),
    "gzip-cut": (tar(clips, "w:gz")[:30_000], Either(usable=Usable("parameters"))),
    "symlink": (around(linked(tarfile.SYMTYPE, "0.flac")), heard_all(("link.wav",))),
    "symlink-outside": (around(linked(tarfile.SYMTYPE, "/etc/passwd")), heard_all(("link.wav",))),
    "hard-link": (around(linked(tarfile.LNKTYPE, "0.flac")), heard_all(("link.wav",))),
    "fifo": (around(linked(tarfile.FIFOTYPE, "")), heard_all(("link.wav",))),
    "device": (around(linked(tarfile.CHRTYPE, "")), heard_all(("link.wav",))),
    "folder": (around(linked(tarfile.DIRTYPE, "")), heard_all()),
    "traversal": (
        around(lambda archive: add(archive, "../../canary.wav", of_codec("wav"))),
        heard_all(),
    ),
    "absolute": (
        around(lambda archive: add(archive, "/etc/passwd.wav", of_codec("wav"))),
        heard_all(),
    ),
    "not-utf-8": (
        around(lambda archive: add(archive, "caf\udce9.wav", of_codec("wav"))),
        heard_all(),
    ),
    "newline": (around(lambda archive: add(archive, "a\nb.wav", b"junk")), heard_all()),
    "markup": (around(lambda archive: add(archive, "a[/red].wav", b"junk")), heard_all()),
    "empty-clip": (around(lambda archive: add(archive, "bad.wav", b"")), heard_all(("bad.wav",))),
    "nested-tar": (
        around(lambda archive: add(archive, "bad.wav", tar(clips))),
        heard_all(("bad.wav",)),
    ),
    "sparse-6-gib": (sparse, Either(usable=Usable("parameters"))),
    "gzip-bomb": (bomb, Either(usable=Usable("parameters"))),
    "pax-bomb": (
        around(lambda archive: add(archive, "bad.wav", b"", pax_headers={"comment": "x" * 10**6})),
        heard_all(),
    ),
    "size-negative": (tar(clips)[:124] + b"-0000000012\0" + tar(clips)[136:], refused()),
    "checksum": (tar(clips)[:148] + b"0000000\0" + tar(clips)[156:], refused()),
}
for _name in (
    "flac-total-huge",
    "rate-1",
    "nan",
    "loud-1e30",
    "anti-phase",
    "wav-cut",
    "mp3-cut",
    "junk",
):
    _ending = example(_name)[0]
    TARS[f"clip-{_name}"] = (around(bad_clip(_name)), heard_all((f"bad.{_ending}",)))
QUICK = {"symlink", "sparse-6-gib", "cut-in-first"}


def shar(lines: list[dict[str, Any]], members: list[tuple[str, bytes]]) -> Make:
    """A Shar folder of one shard."""

    def make(box: Box) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        box.good("plain")
        text = text.replace("@CANARY@", str(box.canary)).replace("@IN@", str(box.input / "plain"))
        written(box.input / "shar/cuts.000000.jsonl.gz", gzip.compress(text.encode()))

        def fill(archive: tarfile.TarFile) -> None:
            for name, content in members:
                add(archive, name, content)

        written(box.input / "shar/recording.000000.tar", tar(fill))

    return make


def placeholder(name: str, **changes: Any) -> dict[str, Any]:
    """A cut whose recording lies in the tar file."""
    record = recording("", "shar", id=name)
    return cut(record | changes, id=name)


def inside(name: str, content: bytes | None = None) -> list[tuple[str, bytes]]:
    """Audio and its description in the tar file."""
    data = content if content is not None else encoded(speech(0, 0.8), form="FLAC")
    facts = recording("", "memory", id=name)
    facts["sources"][0]["source"] = ""
    return [(f"{name}.flac", data), (f"{name}.json", json.dumps(facts).encode())]


def nodata(name: str) -> list[tuple[str, bytes]]:
    """What lhotse writes where a cut has no data: the cut's own recording stands."""
    return [(f"{name}.nodata", b""), (f"{name}.nometa", b"")]


def _mixed(source: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "c",
        "type": "MixedCut",
        "tracks": [
            {"cut": cut(source), "offset": 0},
            {"cut": cut(recording("@IN@/good1.wav"), id="d"), "offset": 0},
        ],
    }


_ids = [f"c{number}" for number in range(6)]
SHARS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, bytes]], Expected]] = {
    "good": ([placeholder(i) for i in _ids], [m for i in _ids for m in inside(i)], heard_all()),
    "command": ([cut(recording(COMMAND, "command"))], nodata("c"), refused()),
    "command-many": (
        [cut(recording(COMMAND, "command", id=i), id=i) for i in _ids],
        [m for i in _ids for m in nodata(i)],
        refused(),
    ),
    "command-in-mixed": ([_mixed(recording(COMMAND, "command"))], nodata("c"), refused()),
    "command-second-source": (
        [
            cut(
                recording(
                    "@IN@/good0.wav",
                    sources=[
                        {"type": "file", "channels": [0], "source": "@IN@/good0.wav"},
                        {"type": "command", "channels": [1], "source": COMMAND},
                    ],
                    channel_ids=[0, 1],
                )
            )
        ],
        nodata("c"),
        refused(),
    ),
    "pipe-url": ([cut(recording("pipe:touch @CANARY@", "url"))], nodata("c"), refused()),
    "url": ([cut(recording("http://127.0.0.1:9/x", "url"))], nodata("c"), refused()),
    "file": ([cut(recording("/etc/passwd"))], nodata("c"), refused()),
    "file-good": (
        [cut(recording("@IN@/good0.wav"))],
        nodata("c"),
        Either(usable=Usable("parameters")),
    ),
    "meta-command": (
        [placeholder("c")],
        [
            ("c.flac", encoded(speech(0), form="FLAC")),
            ("c.json", json.dumps(recording(COMMAND, "command", id="c")).encode()),
        ],
        Either(usable=Usable("parameters")),
    ),
    "transform-command": (
        [
            placeholder(
                "c",
                transforms=[
                    {
                        "name": "ReverbWithImpulseResponse",
                        "kwargs": {"rir": recording(COMMAND, "command")},
                    }
                ],
            )
        ],
        inside("c"),
        Either(usable=Usable("parameters")),
    ),
    "augmented": (
        [
            cut(
                recording(
                    "@IN@/good0.wav", transforms=[{"name": "Speed", "kwargs": {"factor": 9.0}}]
                )
            )
        ],
        nodata("c"),
        refused(),
    ),
    "uneven-more-cuts": (
        [placeholder(i) for i in _ids],
        inside("c0"),
        Either(usable=Usable("parameters")),
    ),
    "uneven-more-audio": (
        [placeholder("c0")],
        [m for i in _ids for m in inside(i)],
        Either(usable=Usable("parameters")),
    ),
    "other-names": ([placeholder("c0")], inside("z"), refused()),
    "no-cuts": ([], inside("c0"), refused()),
    "junk-audio": ([placeholder("c0")], inside("c0", b"junk" * 100), refused()),
    "junk-meta": ([placeholder("c0")], [("c0.flac", b"x"), ("c0.json", b"{{{")], refused()),
    "null-cut": ([{"id": "c"}], inside("c"), refused()),
    "numbers": (
        [placeholder("c0", duration=float("nan"), num_samples=-3)],
        inside("c0"),
        Either(usable=Usable("parameters")),
    ),
}
QUICK_SHAR = {"good", "command", "command-in-mixed", "command-second-source", "uneven-more-cuts"}


def cases() -> Iterator[Case]:
    """All of them."""
    for name, (content, expected) in TARS.items():

        def make(box: Box, content: Any = content) -> None:
            written(box.input / "a.tar", content() if callable(content) else content)

        yield Case(
            f"tar-{name}",
            "audio",
            "compress {teacher} {in} {out} {tiny}",
            expected,
            "one odd member is left out and named, the rest is heard",
            make,
            quick=name in QUICK,
            # A bomb is unpacked once in each epoch to hear what follows: time is not bounded, memory is.
            seconds=240 if name == "gzip-bomb" else 60,
            cpu_seconds=180 if name == "gzip-bomb" else 30,
            gibibytes=2.5,
        )
        if isinstance(expected, Refused):
            yield Case(
                f"embed-tar-{name}",
                "audio",
                "embed {teacher} {in} {out}",
                Refused("", ("out",)),
                make=make,
                gibibytes=2.5,
            )
    for name, (lines, members, expected) in SHARS.items():
        yield Case(
            f"shar-{name}",
            "audio",
            "compress {teacher} {in}/shar {out} {tiny}",
            expected,
            "audio lies in the tar file; whatever points elsewhere is an order",
            shar(lines, members),
            quick=name in QUICK_SHAR,
        )

    def lonely(box: Box) -> None:
        written(box.input / "recording.000000.tar", tar(clips))

    yield Case(
        "shar-without-cuts",
        "audio",
        "compress {teacher} {in} {out} {tiny}",
        refused("cuts"),
        make=lonely,
    )

    def folders(box: Box) -> None:
        (box.input / "a.tar").mkdir()
        (box.input / "b.tar").symlink_to("b.tar")

    yield Case(
        "tar-is-folder", "audio", "compress {teacher} {in} {out} {tiny}", refused(), make=folders
    )
    yield Case(
        "shard-world-size-text",
        "run",
        "compress {teacher} {speech} {out} {tiny}",
        refused("WORLD_SIZE"),
        environment=(("WORLD_SIZE", "abc"), ("RANK", "0")),
    )
    yield Case(
        "shard-rank-text",
        "run",
        "compress {teacher} {speech} {out} {tiny}",
        Either(Refused("RANK"), Usable("parameters")),
        environment=(("RANK", "x"),),
    )
