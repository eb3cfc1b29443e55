"""The command line: what it passes on; every mistake is one line and the right exit code."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import sslim
from sslim import cli
from sslim.errors import OutputError
from sslim.files import write_json

FreshPython = Callable[..., "subprocess.CompletedProcess[str]"]


class Recorder:
    """Stands for the function behind a verb: records how it is called, then returns or raises."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.outcome: Any = SimpleNamespace(summary_line=lambda: "the result in one line")

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls.append((arguments, options))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Recorder]]:
    """`behind(module, function)` puts a recorder where a verb looks for its function."""

    def replace(module: str, function: str) -> Recorder:
        stand_in, recorder = ModuleType(module), Recorder()
        setattr(stand_in, function, recorder)
        parts = module.split(".")
        for depth in range(2, len(parts)):  # parents need not exist, nor be imported
            parent = ModuleType(".".join(parts[:depth]))
            parent.__path__ = []
            monkeypatch.setitem(sys.modules, parent.__name__, parent)
        monkeypatch.setitem(sys.modules, module, stand_in)
        return recorder

    return replace


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one line on stderr of a command that must fail."""
    assert cli.run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


# --- what the verbs pass on ---------------------------------------------------


def test_compress_passes_everything_on(behind: Any, capsys: Any, tmp_path: Path) -> None:
    compress = behind("sslim.story", "compress")
    file = tmp_path / "run.toml"
    file.write_text("seed = 3\n")
    words = (
        f"compress teacher/ audio out --params 25% --recipe demo --config {file} --set seed=1 "
        "--set stage1.updates=5 --force --device cpu --where split=train --where name=a=b --revision v1"
    )
    assert cli.run(words.split()) == 0
    (arguments, options) = compress.calls[0]
    assert arguments == ("teacher/", Path("audio"), Path("out"))
    assert options == {
        "recipe": "demo",
        "config": file,
        "settings": ["seed=1", "stage1.updates=5"],
        "params": "25%",
        "sparsity": None,
        "resume": False,
        "force": True,
        "device": "cpu",
        "where": {"split": "train", "name": "a=b"},
        "revision": "v1",
        "progress": True,
    }
    assert capsys.readouterr().out == "the result in one line\n"


def test_compress_has_defaults(behind: Any) -> None:
    compress = behind("sslim.story", "compress")
    assert cli.run(["compress", "t", "a", "o", "--sparsity", "0.75", "--resume"]) == 0
    options = compress.calls[0][1]
    assert (options["recipe"], options["device"]) == ("paper", "auto")
    assert (options["sparsity"], options["params"], options["resume"]) == (0.75, None, True)
    assert (list(options["settings"]), options["where"]) == ([], {})


def test_convert_passes_everything_on(behind: Any, capsys: Any) -> None:
    convert = behind("sslim.backbone.convert", "convert")
    assert cli.run(["convert", "a.pt", "out", "--force"]) == 0
    assert cli.run(["convert", "a/b", "out", "--revision", "v1"]) == 0
    assert convert.calls == [
        (("a.pt", Path("out")), {"force": True, "revision": None}),
        (("a/b", Path("out")), {"force": False, "revision": "v1"}),
    ]
    assert capsys.readouterr().out == "the result in one line\n" * 2


def test_inspect_shows_and_writes(behind: Any, capsys: Any, tmp_path: Path) -> None:
    inspect_model = behind("sslim.report.inspect", "inspect_model")
    drawn: list[Path] = []
    inspect_model.outcome = SimpleNamespace(
        facts=lambda: SimpleNamespace(write=lambda path: write_json(path, {"parameters": 5})),
        render=lambda console: console.print("a table"),
        save_png=drawn.append,
    )
    file, picture = tmp_path / "model.json", tmp_path / "model.png"
    assert cli.run(["inspect", "model", "--json", str(file), "--png", str(picture)]) == 0
    assert inspect_model.calls == [(("model",), {"revision": None})]
    assert capsys.readouterr().out == "a table\n"
    assert json.loads(file.read_text()) == {"parameters": 5}
    assert drawn == [picture]
    missing = tmp_path / "none" / "model.json"
    assert cli.run(["inspect", "model", "--json", str(missing)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_demo_passes_everything_on(behind: Any) -> None:
    run_demo = behind("sslim.demo.run", "run_demo")
    assert cli.run(["demo"]) == 0
    assert cli.run(["demo", "here", "--set", "stage1.updates=2", "--force"]) == 0
    assert run_demo.calls == [
        ((Path("demo-output"),), {"settings": (), "force": False}),
        ((Path("here"),), {"settings": ["stage1.updates=2"], "force": True}),
    ]


# --- what is wrong ------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("compres", "Did you mean 'compress'?"),
        ("compress", "Missing argument"),
        ("compress t a", "OUT"),
        ("compress t a o extra", "extra"),
        ("compress t a o --parms 25%", "did you mean --params?"),
        ("compress t a o --params", "--params"),
        ("compress t a o --sparsity much", "--sparsity"),
        ("compress t a o --sparsity 75", "between 0 and 1"),
        ("compress t a o --params 25% --sparsity 0.75", "Give one of them"),
        ("compress t a o --params 0.25", "25%"),
        ("compress t a o --recipe papr", "did you mean paper?"),
        ("compress t a o --set stage1.update=1", "did you mean stage1.updates?"),
        ("compress t a o --config none.toml", "none.toml"),
        ("compress t a o --where split", "column=value"),
        ("compress t a o --where a=1 --where a=2", "twice"),
        ("compress t a o --device tpu", "device"),
        ("compress t a o --resume --force", "Give one of them"),
        ("demo --set sed=1", "did you mean seed?"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(
    words: str, expected: str, behind: Any, capsys: Any
) -> None:
    verbs = [behind("sslim.story", "compress"), behind("sslim.demo.run", "run_demo")]
    assert expected in failure(words.split(), capsys)
    assert not any(verb.calls for verb in verbs)


def test_our_errors_become_their_line(behind: Any, capsys: Any) -> None:
    compress = behind("sslim.story", "compress")
    compress.outcome = OutputError("'o' exists", "Give\n--force to replace it")
    line = failure(["compress", "t", "a", "o"], capsys)
    assert line == "error: 'o' exists. Give --force to replace it.\n"


def full_disk_as_torch_wraps_it() -> Exception:
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as cause:
        wrapped = RuntimeError("file write failed")
        wrapped.__cause__ = cause
        return wrapped


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        full_disk_as_torch_wraps_it(),
    ],
)
def test_a_full_disk_is_named(error: Exception, behind: Any, capsys: Any) -> None:
    compress = behind("sslim.story", "compress")
    compress.outcome = error
    line = failure(["compress", "t", "a", "o"], capsys)
    assert "the disk is full" in line
    assert "run the same command again." in line  # no run had begun that could be gone on with
    error.add_note("Run the same command with --resume")  # as a run that has begun does
    line = failure(["compress", "t", "a", "o"], capsys)
    assert "the disk is full" in line
    assert "run the same command with --resume." in line


@pytest.mark.parametrize("error", [ValueError("a defect"), PermissionError(errno.EACCES, "no")])
def test_a_defect_keeps_its_traceback(error: Exception, behind: Any) -> None:
    compress = behind("sslim.story", "compress")
    compress.outcome = error
    with pytest.raises(type(error)):
        cli.run(["compress", "t", "a", "o"])


def test_an_interrupted_run_exits_with_130(behind: Any, capsys: Any) -> None:
    compress = behind("sslim.story", "compress")
    compress.outcome = KeyboardInterrupt()
    assert "interrupted" in failure(["compress", "t", "a", "o"], capsys, code=130)


def test_main_exits_with_the_code(capsys: Any) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(["compres"])
    assert raised.value.code == 2
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"sslim {sslim.__version__}\n"


# --- what is imported when ----------------------------------------------------

HEAVY = ("torch", "transformers", "accelerate", "lhotse", "soundfile", "numpy")
REPORT = f"""
import sys, time
before = time.process_time()
try:
    from sslim.cli import main
    main(sys.argv[1:])
finally:
    seconds = time.process_time() - before
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    print("HEAVY", heavy, file=sys.stderr)
    print("SECONDS", seconds, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "--version",
        "compress --help",
        "convert --help",
        "inspect --help",
        "demo --help",
        "compress t a o --set stage1.update=1",
    ],
)
def test_help_and_mistakes_import_nothing_heavy(words: str, fresh_python: FreshPython) -> None:
    result = fresh_python("-c", REPORT, *words.split())
    assert "HEAVY []" in result.stderr, result.stderr
    seconds = float(result.stderr.partition("SECONDS ")[2])
    assert seconds < 1.0  # processor time, so that a busy machine does not decide


def test_the_module_runs_as_the_command_does(fresh_python: FreshPython) -> None:
    result = fresh_python("-m", "sslim", "compress")
    assert result.returncode == 2
    assert result.stderr.startswith("error: Missing argument")
    assert "Usage: sslim" in fresh_python("-m", "sslim").stdout
