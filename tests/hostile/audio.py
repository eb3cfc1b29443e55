"""Recordings that are damaged, that lie, that are no recordings, and those that only look odd."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import socket
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from tests.hostile.box import Box, speech
from tests.hostile.case import Case, Either, Expected, Make, Refused, Usable, refused, written
from tests.hostile.warm import Outcome

RATE = 16_000


def encoded(
    samples: np.ndarray, rate: int = RATE, form: str = "WAV", kind: str | None = None
) -> bytes:
    """An audio file's bytes."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=form, subtype=kind)
    return stream.getvalue()


CODECS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}


def of_codec(ending: str, seconds: float = 1.2, seed: int = 3) -> bytes:
    """A good file of one codec."""
    return encoded(speech(seed, seconds), RATE, *CODECS[ending])


def wav(
    data: bytes, *, rate: int = RATE, channels: int = 1, bits: int = 16, says: int | None = None
) -> bytes:
    """A WAV whose header says what it is told to; `says`: bytes of the data chunk."""
    frame = channels * bits // 8
    length = len(data) if says is None else says
    code = 3 if bits in (32, 64) else 1
    header = struct.pack(
        "<HHIIHH", code, channels, rate, rate * frame & 0xFFFFFFFF, frame & 0xFFFF, bits
    )
    body = b"WAVEfmt " + struct.pack("<I", 16) + header + b"data" + struct.pack("<I", length) + data
    return b"RIFF" + struct.pack("<I", len(body) & 0xFFFFFFFF) + body


def pcm(samples: np.ndarray) -> bytes:
    """16-bit little-endian samples."""
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def flac_total(total: int) -> bytes:
    """A FLAC whose header names another number of samples (36 bits; 0: unknown, as the format allows)."""
    data = bytearray(of_codec("flac"))
    # "fLaC", a block header of 4, then STREAMINFO: its bytes 13 to 17 end in the 36 bits of the total.
    at = 8 + 13
    data[at] = data[at] & 0xF0 | total >> 32 & 0x0F
    data[at + 1 : at + 5] = struct.pack(">I", total & 0xFFFFFFFF)
    return bytes(data)


def channels(count: int) -> bytes:
    """The same sound in many channels."""
    one = (speech(1, 0.6) * 32767).astype("<i2")
    return wav(np.repeat(one[:, None], count, axis=1).tobytes(), channels=count)


def float_wav(samples: np.ndarray) -> bytes:
    """32-bit floats."""
    return encoded(samples.astype(np.float32), RATE, "WAV", "FLOAT")


def stained(value: float) -> bytes:
    """Good sound with one value in it."""
    samples = speech(2)
    samples[5000] = value
    return float_wav(samples)


def anti_phase() -> bytes:
    """Two channels that cancel but for the rounding of one of them."""
    left = pcm(speech(4))
    samples = np.frombuffer(left, "<i2").astype(np.int32)
    both = np.stack(
        [samples, np.clip(-samples + (np.arange(len(samples)) % 2), -32768, 32767)], axis=1
    )
    return wav(both.astype("<i2").tobytes(), channels=2)


def zipped() -> bytes:
    """Gigabytes of zeros in a few hundred kilobytes."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.wav", "w", force_zip64=True) as member,
    ):
        for _ in range(64):
            member.write(bytes(2**22))
    return stream.getvalue()


FILES: dict[str, tuple[str, bytes | None, str]] = {
    # name: ending, content (None: made by MAKERS), what the line should say
    "empty": ("wav", b"", "empty"),
    "header-only": ("wav", wav(b""), ""),
    "junk": ("wav", np.random.default_rng(0).bytes(5000), ""),
    "text": ("wav", b"<!DOCTYPE html><html><body>404</body></html>" * 20, ""),
    "lfs-pointer": (
        "flac",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "",
    ),
    "riff-cut-in-header": ("wav", wav(pcm(speech(0)))[:30], ""),
    "flac-cut-in-header": ("flac", of_codec("flac")[:20], ""),
    "gzip": ("mp3", gzip.compress(bytes(2**22)), ""),
    "rate-0": ("wav", wav(pcm(speech(0)), rate=0), ""),
    "rate-1": ("wav", wav(pcm(speech(0)), rate=1), "1 Hz|rate"),
    "rate-7": ("wav", wav(pcm(speech(0)), rate=7), "7 Hz|rate"),
    "rate-1e9": ("wav", wav(pcm(speech(0)), rate=10**9), "Hz|rate|short"),
    "rate-4e9": ("wav", wav(pcm(speech(0)), rate=2**32 - 1), ""),
    "channels-0": ("wav", wav(pcm(speech(0)), channels=0), ""),
    "channels-65535": ("wav", wav(pcm(speech(0)), channels=65535), ""),
    "bits-0": ("wav", wav(pcm(speech(0)), bits=0), ""),
    "nan": ("wav", stained(float("nan")), "not finite|NaN"),
    "inf": ("wav", stained(float("inf")), "not finite|NaN|infinit"),
    "loud-1e30": ("wav", stained(1e30), "peak|loud|amplitude|full scale"),
    "all-1e30": ("wav", float_wav(speech(2) * 1e31), "peak|loud|amplitude|full scale"),
    "silent": ("wav", wav(pcm(np.zeros(RATE))), "silent"),
    "anti-phase": ("wav", anti_phase(), "silent"),
    "flac-total-huge": ("flac", flac_total(2**36 - 1), ""),
    "flac-total-2e9": ("flac", flac_total(2**31), ""),
    "wav-data-longer": (
        "wav",
        wav(pcm(speech(0, 0.6)), says=2 * RATE * 2),
        "truncated|cut|short|end",
    ),
    "wav-cut": ("wav", wav(pcm(speech(0, 2.0)))[:8000], "truncated|cut|short|end"),
    "mp3-cut": ("mp3", of_codec("mp3", 3.0)[:1500], "truncated|cut|short|end"),
    "ogg-cut": ("ogg", of_codec("ogg", 3.0)[:4200], ""),
    "opus-cut": ("opus", of_codec("opus", 3.0)[:700], ""),
    "flac-cut": ("flac", of_codec("flac", 3.0)[:9000], ""),
    "flac-zeroed": ("flac", of_codec("flac", 3.0)[:9000] + bytes(40_000), ""),
    "mp3-in-junk": ("mp3", np.random.default_rng(1).bytes(9000), ""),
}

GOOD: dict[str, tuple[str, bytes]] = {
    "wav": ("wav", of_codec("wav")),
    "flac": ("flac", of_codec("flac")),
    "mp3": ("mp3", of_codec("mp3")),
    "ogg": ("ogg", of_codec("ogg")),
    "opus": ("opus", of_codec("opus")),
    "upper-case-ending": ("WAV", of_codec("wav")),
    "rate-8000": ("wav", encoded(speech(0, 1.2, 8000), 8000)),
    "rate-44100-stereo": ("flac", encoded(np.stack([speech(0, 1.2, 44100)] * 2, 1), 44100, "FLAC")),
    "double": ("wav", encoded(speech(0, 1.2), RATE, "WAV", "DOUBLE")),
    "flac-total-0": ("flac", flac_total(0)),
    "wrong-ending": ("mp3", of_codec("wav")),
    "id3-tag": ("mp3", b"ID3\x04\x00\x00\x00\x00\x07\x76" + bytes(1014) + of_codec("mp3")),
    "data-says-2^32-1": ("wav", wav(pcm(speech(0, 1.2)), says=0xFFFFFFFF)),
}
WHY_GOOD = {
    "flac-total-0": "0 means `unknown` in the format: encoders that write to a pipe leave it so",
    "wrong-ending": "libsndfile goes by content, as players do",
    "data-says-2^32-1": "what recorders and ffmpeg write into a pipe, where the length is not known yet",
}

QUIET = ("silent", "anti-phase")
"""Nothing is heard in these; a program may still give out its features."""


def put(content: bytes, name: str) -> Make:
    """One file in `in`."""
    return lambda box: void(written(box.input / name, content))


def void(_: object) -> None:
    """For lambdas that are made to return nothing."""


def put_among(content: bytes, name: str) -> Make:
    """One file among good ones."""

    def make(box: Box) -> None:
        box.good()
        written(box.input / name, content)

    return make


def put_labelled(content: bytes, name: str) -> Make:
    """A labelled corpus of good clips in which one clip is this file."""

    def make(box: Box) -> None:
        box.copy("speech", "clips")
        written(box.input / "clips" / name, content)
        csv = box.input / "clips" / "clips.csv"
        lines = csv.read_text().splitlines()
        lines[1] = ",".join([name, *lines[1].split(",")[1:]])
        csv.write_text("\n".join(lines) + "\n")

    return make


def frames(least: int) -> Usable:
    """Features of one file were written, of at least so many frames."""

    def check(box: Box, outcome: Outcome) -> str:
        files = sorted(box.out.glob("*.npz"))
        if len(files) != 1:
            return f"{len(files)} files of features"
        with np.load(files[0]) as held:
            found = max(held[name].shape[0] for name in held.files if held[name].ndim == 2)
            finite = all(
                np.isfinite(held[name]).all() for name in held.files if held[name].ndim == 2
            )
        return "" if found >= least and finite else f"{found} frames, finite: {finite}"

    return Usable(check=check)


def skips(name: str) -> Usable:
    """A compression that went on without one file, and says so in `run/skipped.json`."""

    def check(box: Box, outcome: Outcome) -> str:
        file = box.out / "run" / "skipped.json"
        if not file.is_file():
            return "no run/skipped.json"
        return "" if name in file.read_text() else f"{name} is not in run/skipped.json"

    return Usable(check=check)


def _bad() -> Iterator[Case]:
    quick = {
        "empty",
        "rate-1",
        "nan",
        "loud-1e30",
        "anti-phase",
        "flac-total-huge",
        "wav-cut",
        "junk",
        "mp3-cut",
    }
    among = {"flac-total-huge"}
    for name, (ending, content, says) in FILES.items():
        assert content is not None
        file = f"bad.{ending}"
        yield Case(
            f"embed-{name}",
            "audio",
            f"embed {{teacher}} {{in}}/{file} {{out}}",
            Either(refused(says, keeps=("out",)))
            if name in QUIET
            else refused(says, keeps=("out",)),
            "features of silence are what they are; training on it is not" if name in QUIET else "",
            put(content, file),
            name in quick,
        )
        yield Case(
            f"compress-{name}",
            "audio",
            "compress {teacher} {in} {out} {tiny}",
            refused(says),
            make=put(content, file),
        )
        yield Case(
            f"compress-among-{name}",
            "audio",
            "compress {teacher} {in} {out} {tiny}",
            skips(file),
            "one bad file among thousands must not end a run; it is skipped and named",
            put_among(content, file),
            quick=name in among,
        )
        yield Case(
            f"embed-among-{name}",
            "audio",
            "embed {teacher} {in} {out}",
            Either(refused(f"1 recording.*{file}|{file}", keeps=("out",)))
            if name in QUIET
            else refused(f"1 recording.*{file}|{file}", keeps=("out",)),
            "the good ones are written, the exit code tells that one is not",
            put_among(content, file),
        )
        yield Case(
            f"evaluate-{name}",
            "audio",
            "evaluate {teacher} --task ks --data {in}/clips/clips.csv {fast}",
            refused(file),
            "every model must be scored on the same clips, so nothing may be left out",
            put_labelled(content, file),
        )
        yield Case(
            f"export-{name}",
            "audio",
            f"export {{teacher}} {{out}}.onnx --audio {{in}}/{file}",
            refused(),
            make=put(content, file),
        )
        yield Case(
            f"fidelity-{name}",
            "audio",
            f"evaluate {{teacher}} {{teacher}} --task fidelity --data {{in}}/{file}",
            refused(),
            make=put(content, file),
        )


def _good() -> Iterator[Case]:
    for name, (ending, content) in GOOD.items():
        file, why = f"good.{ending}", WHY_GOOD.get(name, "a good control")
        # 1.2 s at 16 kHz and a hop of 320 are 59 frames; a lossy coder may drop its last packet.
        yield Case(
            f"embed-good-{name}",
            "audio",
            f"embed {{teacher}} {{in}}/{file} {{out}}",
            frames(50),
            why,
            put(content, file),
            quick=name in ("flac-total-0", "opus"),
        )
        yield Case(
            f"compress-good-{name}",
            "audio",
            "compress {teacher} {in} {out} {tiny}",
            Usable("parameters"),
            why,
            put(content, file),
        )


def _nodes() -> Iterator[Case]:
    def fifo(box: Box) -> None:
        os.mkfifo(box.input / "bad.wav")

    def bound(box: Box) -> None:
        here = os.open(box.input, os.O_RDONLY)
        before = os.getcwd()
        os.chdir(here)  # the name of a socket may have 107 bytes
        try:
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as found:
                found.bind("bad.wav")
        finally:
            os.chdir(before)
            os.close(here)

    def folder(box: Box) -> None:
        (box.input / "bad.wav").mkdir(parents=True)

    def dangling(box: Box) -> None:
        (box.input / "bad.wav").symlink_to("nowhere.wav")

    def itself(box: Box) -> None:
        (box.input / "bad.wav").symlink_to("bad.wav")

    def device(target: str) -> Make:
        return lambda box: (box.input / "bad.wav").symlink_to(target)

    def unreadable(box: Box) -> None:
        written(box.input / "bad.wav", of_codec("wav")).chmod(0)

    makers = {
        "fifo": fifo,
        "socket": bound,
        "dangling-link": dangling,
        "link-to-itself": itself,
        "dev-zero": device("/dev/zero"),
        "dev-null": device("/dev/null"),
        "dev-random": device("/dev/urandom"),
        "proc-mem": device("/proc/self/mem"),
        "unreadable": unreadable,
        "folder": folder,
    }
    for name, make in makers.items():
        needs = "permissions" if name == "unreadable" else ""
        quick = name in ("fifo", "dev-zero", "folder")

        def among(box: Box, make: Make = make) -> None:
            box.good()
            make(box)

        yield Case(
            f"embed-{name}",
            "audio",
            "embed {teacher} {in} {out}",
            refused(keeps=("out",)),
            make=make,
            quick=quick,
            needs=needs,
            seconds=25,
        )
        yield Case(
            f"embed-file-{name}",
            "audio",
            "embed {teacher} {in}/bad.wav {out}",
            refused(keeps=("out",)),
            make=make,
            needs=needs,
            seconds=25,
        )
        yield Case(
            f"compress-{name}",
            "audio",
            "compress {teacher} {in} {out} {tiny}",
            refused(),
            make=make,
            needs=needs,
            quick=quick,
            seconds=25,
        )
        expected: Expected = Usable("parameters") if name == "folder" else skips("bad.wav")
        yield Case(
            f"compress-among-{name}",
            "audio",
            "compress {teacher} {in} {out} {tiny}",
            expected,
            "a folder called x.wav is a folder; anything else that is no regular file is skipped and named",
            among,
            needs=needs,
            seconds=40,
        )
        yield Case(
            f"export-{name}",
            "audio",
            "export {teacher} {out}.onnx --audio {in}",
            refused(),
            make=make,
            needs=needs,
            seconds=25,
        )


def heard(count: int) -> Usable:
    """A compression of so many utterances."""
    import json

    def check(box: Box, outcome: Outcome) -> str:
        facts = json.loads((box.out / "sslim.json").read_text())
        # Some of the audio may be held out of training, to measure the result on.
        held_out = (facts["result"].get("held_out") or {}).get("utterances", 0)
        found = facts["audio"]["utterances"] + held_out
        return "" if found == count else f"{found} utterances, not {count}"

    return Usable(check=check)


def _links() -> Iterator[Case]:
    def loop(box: Box) -> None:
        box.good()
        (box.input / "loop").symlink_to(".")

    def two(box: Box) -> None:
        box.good()
        (box.input / "one").symlink_to(".")
        (box.input / "two").symlink_to(".")

    def up(box: Box) -> None:
        box.good("deep/er")
        (box.input / "deep/er/up").symlink_to("../..")

    def linked(box: Box) -> None:
        box.good("store")
        (box.input / "corpus").mkdir()
        (box.input / "corpus" / "part").symlink_to("../store")

    for name, make in {"link-loop": loop, "two-link-loops": two, "link-up": up}.items():
        yield Case(
            f"compress-{name}",
            "audio",
            "compress {teacher} {in} {out} {tiny}",
            heard(4),
            "each file counts once",
            make,
            quick=name == "two-link-loops",
            seconds=30,
        )
        yield Case(
            f"embed-{name}",
            "audio",
            "embed {teacher} {in} {out}",
            embedded(4),
            "each file counts once",
            make,
            seconds=30,
        )
    yield Case(
        "compress-linked-folder",
        "audio",
        "compress {teacher} {in}/corpus {out} {tiny}",
        heard(4),
        "a corpus of links is usual: a good control",
        linked,
    )


def embedded(count: int) -> Usable:
    """Features of so many files."""

    def check(box: Box, outcome: Outcome) -> str:
        found = len(list(box.out.rglob("*.npz")))
        return "" if found == count else f"{found} files of features, not {count}"

    return Usable(check=check)


def _names() -> Iterator[Case]:
    names = {
        "latin-1": os.fsdecode(b"caf\xe9.wav"),
        "newline": "two\nlines.wav",
        "markup": "a[/red]b[bold].wav",
        "markup-link": "[link=https://x.example]a[/link].wav",
        "255-bytes": "n" * 251 + ".wav",
        "control": "\x1b[2J\x1b]0;title\x07.wav",
        "shell": "$(touch PWNED);`id`.wav",
        "minus": "--force.wav",
        "right-to-left": "\u202egnp.wav",
        "formula": "=1+1+cmd|' !A0.wav",
        "comma": 'a,"b.wav',
        "backticks": "`# Certified safe`.wav",
    }
    for name, file in names.items():
        good = of_codec("wav")

        def check(box: Box, outcome: Outcome, name: str = name) -> str:
            said = outcome.stdout + outcome.stderr
            return (
                "control characters reach the terminal"
                if name == "control" and "\x1b[2J" in said
                else ""
            )

        def make(box: Box, file: str = file, good: bytes = good) -> None:
            box.good(count=2)
            written(box.input / file, good)

        def bad(box: Box, file: str = file) -> None:
            box.good(count=2)
            written(box.input / file, b"no audio at all")

        quick = name == "latin-1"
        why = "the name of a file says nothing about its sound"
        yield Case(
            f"embed-name-{name}",
            "deploy",
            "embed {teacher} {in} {out}",
            Either(Refused("too long|name", ("out",)), embedded_and(3, check))
            if name == "255-bytes"
            else embedded_and(3, check),
            why,
            make,
            quick=quick,
        )
        yield Case(
            f"compress-name-{name}",
            "audio",
            "compress {teacher} {in} {out} {tiny}",
            Usable("parameters", check=check),
            why,
            make,
            quick=quick,
        )
        yield Case(
            f"embed-bad-name-{name}",
            "deploy",
            "embed {teacher} {in} {out}",
            refused("1 recording", keeps=("out",)),
            "the message must survive the name",
            bad,
            quick=name == "markup",
        )
        yield Case(
            f"compress-bad-name-{name}",
            "audio",
            "compress {teacher} {in} {out} {tiny}",
            Usable("parameters", check=check),
            "skipped, and the message must survive the name",
            bad,
        )


def embedded_and(count: int, check: object) -> Usable:
    """Features of so many files, and another check."""
    first = embedded(count).check

    def both(box: Box, outcome: Outcome) -> str:
        assert first is not None
        return first(box, outcome) or check(box, outcome)  # type: ignore[operator,no-any-return]

    return Usable(check=both)


def _sizes() -> Iterator[Case]:
    def sparse(seconds: int) -> Make:
        def make(box: Box) -> None:
            path = box.input / "long.wav"
            start = speech(0, 5.0)
            length = 2 * RATE * seconds
            path.write_bytes(wav(pcm(start), says=length))
            os.truncate(path, 44 + length)

        return make

    why = "a recording of hours is usual, and takes the memory of a crop"
    yield Case(
        "compress-8-hours",
        "audio",
        "compress {teacher} {in} {out} {tiny}",
        Usable("parameters"),
        why,
        sparse(8 * 3600),
        gibibytes=2.0,
        seconds=240,
        cpu_seconds=200,
    )
    yield Case(
        "embed-1-hour",
        "deploy",
        "embed {teacher} {in} {out}",
        Usable("1 recordings"),
        why,
        sparse(3600),
        gibibytes=2.0,
        seconds=240,
        cpu_seconds=200,
    )

    def bomb(box: Box) -> None:
        written(box.input / "x.flac", encoded(np.zeros((2**26, 1), np.int16), RATE, "FLAC"))

    yield Case(
        "compress-flac-bomb",
        "audio",
        "compress {teacher} {in} {out} {tiny}",
        refused("silent"),
        "an hour of silence packs into kilobytes",
        bomb,
        gibibytes=2.0,
        seconds=120,
    )
    yield Case(
        "embed-zip-bomb",
        "audio",
        "embed {teacher} {in}/x.wav {out}",
        refused(keeps=("out",)),
        make=put(zipped(), "x.wav"),
    )
    yield Case(
        "compress-zip-bomb",
        "audio",
        "compress {teacher} {in} {out} {tiny}",
        refused(),
        make=put(zipped(), "x.wav"),
    )


def _channels() -> Iterator[Case]:
    """255 channels of sound are odd and can be averaged; a program may also say that this is no speech."""
    for count in (255, 1024):
        make = put(channels(count), "many.wav")
        yield Case(
            f"embed-channels-{count}",
            "audio",
            "embed {teacher} {in}/many.wav {out}",
            Either(Refused(keeps=("out",)), frames(25)),
            "averaging means something; refusing with a reason does too",
            make,
        )
        yield Case(
            f"compress-channels-{count}",
            "audio",
            "compress {teacher} {in} {out} {tiny}",
            Either(usable=Usable("parameters")),
            make=make,
        )


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _bad()
    yield from _good()
    yield from _nodes()
    yield from _links()
    yield from _names()
    yield from _sizes()
    yield from _channels()


def example(name: str) -> tuple[str, bytes]:
    """Ending and content of one bad file, for other classes that hold files."""
    ending, content, _ = FILES[name]
    assert content is not None
    return ending, content


def path_of(box: Box, name: str) -> Path:
    """A bad file written into `in`."""
    ending, content = example(name)
    return written(box.input / f"{name}.{ending}", content)
