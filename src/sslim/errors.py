"""Everything a user can get wrong, as one tree.

    SslimError
    ├── ConfigError        a setting is unknown, misspelt or out of range
    ├── AudioError         the audio source or one of its files cannot be used
    ├── TeacherError       the teacher cannot be found, read or understood
    ├── ConversionError    a foreign checkpoint does not match what its format promises
    ├── BudgetError        the budget cannot be met by any plan
    ├── ExportError        a model cannot be exported, or the file differs from the model it came from
    ├── OutputError        the output folder cannot be written, or holds something already
    └── TrainingError      training cannot go on (a loss that is not finite, no memory)

Each message is one line: what is wrong, what was got, what to do next. The command line prints it
and exits with code 2; nothing below the command line catches it.
"""

from __future__ import annotations


def first_line(error: BaseException, most: int = 300) -> str:
    """What another library says of an error, as one line of at most `most` characters.

    An OSError's own words without number and path; where an error says nothing, the name of its class.
    """
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0][:most].rstrip(".:") if lines else type(error).__name__


def visible(text: object) -> str:
    """Text that can be printed anywhere: what moves a cursor, hides or is no UTF-8 is shown as an escape."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


class SslimError(Exception):
    """Base of all errors that are the input's fault, not the program's.

    Args:
        problem: what is wrong and what was got, in one sentence without a final full stop.
        hint: what to do next, in one sentence without a final full stop.
    """

    exit_code = 2

    def __init__(self, problem: str, hint: str = "") -> None:
        self.problem = problem
        self.hint = hint
        super().__init__(problem, hint)

    def __str__(self) -> str:
        hint = self.hint[:1].upper() + self.hint[1:]
        sentences = [
            part if part.endswith("?") else part.rstrip(".") + "."
            for part in (self.problem, hint)
            if part
        ]
        return " ".join(" ".join(sentences).split())


class ConfigError(SslimError):
    """A setting is unknown, misspelt or out of range."""


class AudioError(SslimError):
    """The audio source, or one of its files, cannot be used."""


class TeacherError(SslimError):
    """The teacher cannot be found, read or understood."""


class ConversionError(SslimError):
    """A foreign checkpoint does not match what its format promises."""


class BudgetError(SslimError):
    """No plan can meet the budget."""


class ExportError(SslimError):
    """A model cannot be exported, or the exported file differs from the model it came from."""


class OutputError(SslimError):
    """The output folder cannot be written, or holds something already."""


class TrainingError(SslimError):
    """Training cannot go on."""
