"""Where results go: places that are no place, that are somebody's, or that hold the input itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import soundfile

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

WORDS = {
    "compress": "compress {teacher} {speech} @ {tiny}",
    "convert": "convert {in}/x.pt @",
    "embed": "embed {teacher} {speech}/00.wav @",
    "export": "export {teacher} @",
    "export-int8": "export {teacher} @ --format onnx-int8",
    "export-dphubert": "export {teacher} @ --format dphubert",
    "report": "report {run} --out @",
    "inspect-json": "inspect {teacher} --json @",
    "inspect-png": "inspect {teacher} --png @",
    "demo": "demo @ --set stage1.updates=1 --set stage2.updates=1",
    "bench": "bench {teacher} --runtime torch --seconds 0.5 --repeats 1 --json @",
    "evaluate": "evaluate {teacher} --task ks --data {csv} {fast} --json @",
}
FOLDERS = ("compress", "convert", "embed", "demo")
ROOM = {
    "compress": "run",
    "convert": "backbone",
    "demo": "method",
    "report": "report",
    "inspect-json": "report",
    "inspect-png": "report",
    "evaluate": "evaluate",
}


def words_for(verb: str, place: str, more: str = "") -> str:
    """The command line of a verb whose result goes to a place."""
    return (WORDS[verb] + more).replace("@", place)


def with_checkpoint(make: Make) -> Make:
    """What `convert` reads, beside what a case makes."""

    def both(box: Box) -> None:
        from tests.hostile.checkpoints import fairseq, saved

        written(box.input / "x.pt", saved(fairseq()))
        make(box)

    return both


def _places() -> Iterator[Case]:
    def file(box: Box) -> None:
        written(box.input / "o", "mine")

    def dangling(box: Box) -> None:
        (box.input / "o").symlink_to("gone/deep")

    def itself(box: Box) -> None:
        (box.input / "o").symlink_to("o")

    places: dict[str, tuple[str, Make]] = {
        "in-file": ("{in}/o/deep", file),
        "dev-null-x": ("/dev/null/x", nothing),
        "proc": ("/proc/x", nothing),
        "link-to-itself": ("{in}/o", itself),
        "too-long": ("{in}/" + "n" * 300, nothing),
        "no-such-user": ("~nosuchuser/x", nothing),
        "root": ("/", nothing),
    }
    for verb in WORDS:
        for name, (place, make) in places.items():
            # Of a tilde only shells know; a folder called ~nosuchuser in the working folder is then meant.
            expected: Expected = (
                Either(usable=Usable(writes=("work",))) if name == "no-such-user" else refused()
            )
            quick = name == "dev-null-x" and verb in ("compress", "embed", "report", "convert")
            yield Case(
                f"{verb}-to-{name}",
                ROOM.get(verb, "deploy"),
                words_for(verb, place),
                expected,
                make=with_checkpoint(make) if verb == "convert" else make,
                quick=quick,
                seconds=90,
            )
        if verb in FOLDERS:
            prepared = with_checkpoint(file) if verb == "convert" else file
            yield Case(
                f"{verb}-to-file",
                ROOM.get(verb, "deploy"),
                words_for(verb, "{in}/o"),
                refused(),
                make=prepared,
                seconds=90,
            )
            if verb != "embed":
                yield Case(
                    f"{verb}-to-file-force",
                    ROOM.get(verb, "deploy"),
                    words_for(verb, "{in}/o", " --force"),
                    refused(),
                    "a file is not a folder of ours",
                    prepared,
                    verb == "convert",
                    seconds=90,
                )
            broken = with_checkpoint(dangling) if verb == "convert" else dangling
            yield Case(
                f"{verb}-to-dangling",
                ROOM.get(verb, "deploy"),
                words_for(verb, "{in}/o"),
                Either(usable=Usable(writes=("in/gone", "in/o"))),
                make=broken,
                seconds=90,
            )
            yield Case(
                f"{verb}-to-dot",
                ROOM.get(verb, "deploy"),
                words_for(verb, "."),
                refused(),
                "the working folder holds notes.txt",
                with_checkpoint(nothing) if verb == "convert" else nothing,
                seconds=90,
            )
            if verb != "embed":
                yield Case(
                    f"{verb}-to-dot-force",
                    ROOM.get(verb, "deploy"),
                    words_for(verb, ".", " --force"),
                    refused(),
                    "the working folder holds notes.txt",
                    with_checkpoint(nothing) if verb == "convert" else nothing,
                    verb == "compress",
                    seconds=90,
                )
        else:

            def folder(box: Box) -> None:
                (box.input / "o").mkdir()

            yield Case(
                f"{verb}-to-folder",
                ROOM.get(verb, "deploy"),
                words_for(verb, "{in}/o"),
                refused(),
                make=folder,
                seconds=90,
            )


def _theirs() -> Iterator[Case]:
    """Folders of other people that look a little like ours."""

    def project(box: Box) -> None:
        written(box.input / "p/run/train.sh", "#!/bin/sh\n")
        written(box.input / "p/thesis/draft.tex", "three years of work\n")

    def web(box: Box) -> None:
        written(box.input / "p/config.json", '{"name": "app"}')
        written(box.input / "p/src/app.js", "the app")

    def fake(box: Box) -> None:
        written(box.input / "p/sslim.json", "{}")
        written(box.input / "p/run/run.json", "{}")
        written(box.input / "p/thesis/draft.tex", "three years of work\n")

    def corpus(box: Box) -> None:
        written(box.input / "p/speech/corpus.wav", "recordings of years")

    def mixed(box: Box) -> None:
        shutil.copytree(box.shared / "run", box.input / "p")
        written(box.input / "p/thesis/draft.tex", "three years of work\n")

    def finished(box: Box) -> None:
        shutil.copytree(box.shared / "run", box.input / "p")

    def model(box: Box) -> None:
        shutil.copytree(box.shared / "teacher", box.input / "p")
        written(box.input / "p/notes.txt", "mine")

    makers = {
        "project": project,
        "web": web,
        "fake": fake,
        "corpus": corpus,
        "mixed": mixed,
        "model": model,
    }
    for name, make in makers.items():
        for verb in ("compress", "convert", "demo"):
            prepared = with_checkpoint(make) if verb == "convert" else make
            quick = (verb, name) in {
                ("compress", "project"),
                ("convert", "web"),
                ("demo", "corpus"),
                ("compress", "fake"),
            }
            expected: Expected = refused()
            if (verb, name) in {("compress", "mixed"), ("convert", "mixed"), ("convert", "model")}:
                # What is ours may be replaced, what is not must be there afterwards.
                expected = Either(usable=Usable(writes=("in/p",), check=kept))
            yield Case(
                f"{verb}-force-{name}",
                ROOM.get(verb, "deploy"),
                words_for(verb, "{in}/p", " --force"),
                expected,
                "--force replaces what sslim made, and nothing else",
                prepared,
                quick,
                seconds=90,
            )
    yield Case(
        "compress-force-finished",
        "run",
        words_for("compress", "{in}/p", " --force"),
        Usable("parameters", ("in/p",)),
        "a good control",
        finished,
    )
    yield Case(
        "compress-over-finished",
        "run",
        words_for("compress", "{in}/p"),
        refused("force|resume"),
        make=finished,
    )

    def decided(box: Box) -> None:
        finished(box)
        written(box.input / "p/rollout.toml", 'owner = "A"\n')
        written(box.input / "p/evidence/ks.json", '{"results": []}')

    def still(box: Box, outcome: object) -> str:
        there = (box.input / "p/rollout.toml").is_file()
        return "" if there else "rollout.toml, written by people, was removed"

    yield Case(
        "compress-force-decided",
        "run",
        words_for("compress", "{in}/p", " --force"),
        Either(usable=Usable("parameters", ("in/p",), still)),
        "people write rollout.toml",
        decided,
    )

    def letter(box: Box) -> None:
        written(box.input / "p", "a letter")

    for verb in ("export", "report", "export-dphubert"):
        force = " --force" if verb != "report" else ""
        yield Case(
            f"{verb}-over-letter",
            ROOM.get(verb, "deploy"),
            words_for(verb, "{in}/p", force),
            refused() if force else Either(usable=Usable(writes=("in/p",))),
            "--force replaces exports",
            letter,
            seconds=90,
        )


def kept(box: Box, outcome: object) -> str:
    """What was not ours is still there."""
    if not (box.input / "p").is_dir():
        return "the folder is gone"
    mine = [
        path for path in (box.input / "p").rglob("*") if path.name in ("draft.tex", "notes.txt")
    ]
    return "" if mine else "what was not ours was removed"


def _inside() -> Iterator[Case]:
    def audio(folder: str) -> Callable[[Box], Path]:
        def make(box: Box) -> Path:
            target = box.input / folder
            target.mkdir(parents=True, exist_ok=True)
            for number in range(4):
                soundfile.write(target / f"{number}.wav", speech(number), 16_000)
            return target

        return make

    def in_out(box: Box) -> None:
        shutil.copytree(box.shared / "run", box.input / "p")
        audio("p")(box)
        written(box.input / "l.txt", "".join(f"p/{n}.wav\n" for n in range(4)))
        written(box.input / "l.csv", "path\n" + "".join(f"p/{n}.wav\n" for n in range(4)))

    def teacher_in_out(box: Box) -> None:
        shutil.copytree(box.shared / "run", box.input / "p")
        shutil.copytree(box.shared / "teacher", box.input / "p" / "t")

    force = "{tiny} --force"
    yield Case(
        "compress-list-in-out",
        "run",
        f"compress {{teacher}} {{in}}/l.txt {{in}}/p {force}",
        refused(),
        "the audio of the list lies in OUT",
        in_out,
        True,
    )
    yield Case(
        "compress-csv-in-out",
        "run",
        f"compress {{teacher}} {{in}}/l.csv {{in}}/p {force}",
        refused(),
        "the audio of the list lies in OUT",
        in_out,
    )
    yield Case(
        "compress-audio-is-out",
        "run",
        f"compress {{teacher}} {{in}}/p {{in}}/p {force}",
        refused(),
        make=in_out,
    )
    yield Case(
        "compress-teacher-in-out",
        "run",
        f"compress {{in}}/p/t {{speech}} {{in}}/p {force}",
        refused(),
        make=teacher_in_out,
    )
    yield Case(
        "compress-teacher-is-out",
        "run",
        f"compress {{in}}/p {{speech}} {{in}}/p {force}",
        refused(),
        make=teacher_in_out,
    )

    def linked(box: Box) -> None:
        in_out(box)
        (box.input / "link").symlink_to("p")

    yield Case(
        "compress-link-to-input",
        "run",
        f"compress {{teacher}} {{in}}/l.txt {{in}}/link {force}",
        refused(),
        make=linked,
    )

    def outside(box: Box) -> None:
        audio("a")(box)

    yield Case(
        "compress-out-in-audio",
        "run",
        "compress {teacher} {in}/a {in}/a/out {tiny}",
        Either(Refused(), Usable("parameters", ("in/a/out",))),
        make=outside,
    )
    yield Case(
        "embed-out-in-audio",
        "deploy",
        "embed {teacher} {in}/a {in}/a/out",
        Either(Refused(), Usable("recordings", ("in/a/out",))),
        make=outside,
    )
    yield Case(
        "embed-out-is-audio",
        "deploy",
        "embed {teacher} {in}/a {in}/a",
        Either(Refused()),
        "nothing of the recordings may be lost",
        outside,
    )

    def own(box: Box) -> None:
        from tests.hostile.checkpoints import fairseq, saved

        shutil.copytree(box.shared / "teacher", box.input / "m")
        written(box.input / "m/x.pt", saved(fairseq()))

    yield Case(
        "convert-into-itself", "backbone", "convert {in}/m/x.pt {in}/m --force", refused(), make=own
    )
    yield Case(
        "convert-onto-itself",
        "backbone",
        "convert {in}/m/x.pt {in}/m/x.pt --force",
        refused(),
        make=own,
    )
    yield Case(
        "export-onto-model",
        "deploy",
        "export {in}/m {in}/m/model.safetensors --force",
        refused(),
        "a model's weights are no export",
        own,
    )
    yield Case(
        "export-onto-config",
        "deploy",
        "export {in}/m {in}/m/config.json --force --format dphubert",
        refused(),
        "a model's configuration is no export",
        own,
    )
    yield Case(
        "report-onto-config",
        "report",
        "report {in}/m --out {in}/m/config.json",
        Either(usable=Usable()),
        "a report must not replace the model",
        own,
    )

    def file_model(box: Box) -> None:
        from tests.hostile.checkpoints import fairseq, saved

        written(box.input / "x.pt", saved(fairseq()))

    yield Case(
        "export-onto-checkpoint",
        "deploy",
        "export {in}/x.pt {in}/x.pt --force --format dphubert",
        refused(),
        "the file is the model itself",
        file_model,
    )


def _full() -> Iterator[Case]:
    """A disk that is full, as a limit on the size of a file."""
    writes = ("out", "out.onnx.json", "in/gone")
    for verb, place in {
        "compress": "{out}",
        "embed": "{out}",
        "export": "{out}.onnx",
        "convert": "{out}",
        "report": "{out}.html",
        "export-dphubert": "{out}.pth",
    }.items():
        make = with_checkpoint(nothing) if verb == "convert" else nothing
        keeps = writes if verb in ("compress", "embed") else ()
        yield Case(
            f"{verb}-disk-full",
            ROOM.get(verb, "deploy"),
            words_for(verb, place),
            Either(Refused("disk|written|space|large", keeps), Usable("no report", ("out",))),
            "one line that names the disk",
            make,
            most_bytes={"report": 100_000, "embed": 1_000}.get(verb, 20_000),
            seconds=90,
        )


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _places()
    yield from _theirs()
    yield from _inside()
    yield from _full()
