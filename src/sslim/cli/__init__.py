"""The command line: one file per verb, and one place where errors become a line and a code.

Nothing here imports torch: each verb imports the room it needs when it runs, so that `sslim --help`
and a mistyped setting are answered at once.

Exit codes: 0 done, 2 the input is at fault (a line on stderr says how), 130 interrupted, 1 a defect
of this program (with its traceback). How to go on after an interruption or on a full disk is said by a note
on the error where somebody below knows, such as "run the same command with --resume".
"""

from __future__ import annotations

import difflib
import errno
import functools
import io
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from sslim.cli.bench import bench
from sslim.cli.cache import cache
from sslim.cli.checklist import checklist
from sslim.cli.compress import compress
from sslim.cli.convert import convert
from sslim.cli.demo import demo
from sslim.cli.embed import embed
from sslim.cli.evaluate import evaluate
from sslim.cli.export import export
from sslim.cli.inspect import inspect
from sslim.cli.report import report
from sslim.cli.runs import runs
from sslim.cli.verify import verify
from sslim.errors import SslimError, visible
from sslim.version import __version__

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
DISK_FULL = ("No space left on device", "Disk quota exceeded", "File too large")

app = typer.Typer(
    name="sslim",
    help="Slims self-supervised speech models: a teacher, audio and a budget go in, "
    "a smaller model that transformers loads comes out.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


class _InterruptedError(Exception):
    """Ctrl-C or SIGTERM, with what the verb says about it; typer would keep only the exit code."""


def _told_apart(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, its Ctrl-C told apart from an EOFError, which typer takes for one."""

    @functools.wraps(verb)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            verb(*arguments, **options)
        except KeyboardInterrupt as error:
            raise _InterruptedError from error
        except EOFError as error:
            raise RuntimeError("a file ended too soon, and nothing has said which") from error

    return run


for verb in (
    compress,
    convert,
    inspect,
    verify,
    evaluate,
    export,
    bench,
    embed,
    report,
    checklist,
    runs,
    cache,
    demo,
):
    app.command()(_told_apart(verb))


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"sslim {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        arguments: what follows `sslim` (default: those of this process).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text
            stream.reconfigure(errors="backslashreplace")
    # As after Ctrl-C, what is half-written is cleared up; training saves before it stops for either.
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code, after any error was printed on stderr as one line."""
    try:
        code = app(args=list(arguments) or ["--help"], prog_name="sslim", standalone_mode=False)
    except SslimError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _fail(_usage_line(error), EXIT_BAD_INPUT)
    except (KeyboardInterrupt, _InterruptedError) as error:
        return _fail(f"interrupted. {_advice(error, arguments)}.", EXIT_INTERRUPTED)
    except Exception as error:
        if not _is_disk_full(error):
            raise
        location = (
            f" (at {error.filename})" if isinstance(error, OSError) and error.filename else ""
        )
        advice = _advice(error, arguments)
        return _fail(
            f"the disk is full{location}. Free some space, then {advice[:1].lower()}{advice[1:]}.",
            EXIT_BAD_INPUT,
        )
    if code == EXIT_INTERRUPTED:  # before the verb had begun
        return _fail("interrupted. Run the same command again.", code)
    return code if isinstance(code, int) else 0


def _advice(error: BaseException, arguments: Sequence[str]) -> str:
    """How to go on after an error: what was noted on it, else what every command can do."""
    for cause in _causes(error):
        notes = getattr(cause, "__notes__", [])
        if notes:
            return str(notes[-1])
    # `embed` goes on with whatever it has written.
    resumed = arguments[:1] == ["embed"] and "--resume" not in arguments
    return f"Run the same command {'with --resume' if resumed else 'again'}"


def _fail(line: str, code: int) -> int:
    print(f"error: {visible(' '.join(line.split()))}", file=sys.stderr, flush=True)
    return code


def _usage_line(error: typer.TyperException) -> str:
    """One line from a usage error, with the nearest option where one was mistyped."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "sslim"
    name = getattr(error, "option_name", "")
    line = error.format_message().strip()
    if line.startswith("No such option") and name and context is not None:
        known = [option for param in context.command.params for option in param.opts]
        near = difflib.get_close_matches(name, known, n=1)
        line = f"No such option {name}" + (f" (did you mean {near[0]}?)" if near else "")
    return f"{line.rstrip('.?') + ('?' if line.endswith('?') else '.')} See {command} --help."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind an error (torch and safetensors wrap that in their own)."""
    return any(
        (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
        or any(words in str(cause) for words in DISK_FULL)
        for cause in _causes(error)
    )
