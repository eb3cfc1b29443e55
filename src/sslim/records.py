"""JSON files of ours: frozen dataclasses that say in the file what they are and in which form.

Every file that a verb writes is a `Record`: its `kind` says what it is, its `version` in which form. Reading
is strict: a value of another type, one that is no finite number, or out of the bounds of its field is an
error that names the place. Keys that a record does not know are passed over; fields with a default may be
missing.
A file that says no kind is taken for one of version 0.1 or before, which had none; a file of a newer version
is refused.

Pure Python. Which records there are, the rooms say that own them: `git grep "(Record)"`.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sized
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from sslim.errors import OutputError, SslimError, visible
from sslim.files import read_json, write_json

LARGEST = 2.0**64
"""No number of ours is larger."""
SHOWN = 60
"""Characters of a wrong value that a message shows."""

T = TypeVar("T")


class RecordError(ValueError):
    """A file is not the record that it should be.

    Args:
        problem: where and why.
        hint: what to do.
    """

    def __init__(self, problem: str, hint: str = "restore or remove it") -> None:
        super().__init__(problem)
        self.hint = hint


class NewerRecordError(RecordError):
    """A file is of a version that only a newer sslim knows."""


@dataclass(frozen=True)
class Bounds:
    """In `Annotated`: what a number may be, how many entries a list or an object may have, or how many
    characters a text, blanks around it not counted."""

    least: float = -LARGEST
    most: float = LARGEST


Count = Annotated[int, Bounds(0)]
Positive = Annotated[int, Bounds(1)]
Name = Annotated[str, Bounds(1)]
"""Text that is not blank."""
Interval = tuple[float, float]
"""Low and high."""


@dataclass(frozen=True)
class Record:
    """A file of ours. A subclass names its `KIND`, and what it is in words for messages (`TITLE`)."""

    KIND: ClassVar[str]
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "a record"
    READS: ClassVar[tuple[str, ...]] = ()
    """Other kinds whose files hold these fields as well."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: kind, version, and all fields; null for a number that is not finite."""
        return {"kind": self.KIND, "version": self.VERSION, **to_json(self)}

    def write(self, path: Path) -> None:
        """Writes the file whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        write_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Self:
        """The record in an object from JSON.

        Raises:
            RecordError: it is of another kind or a newer version, or not what the kind promises.
        """
        kind = facts.get("kind")
        if kind is not None:
            if kind not in (cls.KIND, *cls.READS):
                raise RecordError(f"its kind is {shown(kind)}, not {cls.KIND!r}")
            version = facts.get("version")
            if type(version) is not int or version < 1:
                raise RecordError(f"version is {shown(version)}, not a whole number from 1")
            if version > cls.VERSION:
                raise NewerRecordError(
                    f"it is of version {version}, and this sslim knows versions up to {cls.VERSION}",
                    "update sslim",
                )
        return from_json(cls, facts)

    @classmethod
    def read(cls, path: Path, error: type[SslimError] = OutputError) -> Self:
        """The record in a file.

        Raises:
            error: the file cannot be read, or `from_dict` refuses what it holds.
        """
        facts = read_json(path, cls.TITLE, error)
        try:
            return cls.from_dict(facts)
        except RecordError as problem:
            raise error(
                f"{path} cannot be read as {cls.TITLE}: {problem}", problem.hint
            ) from problem


def to_json(value: Any) -> Any:
    """A dataclass, or what one may hold, as JSON has it: null for a number that is not finite."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(cls: type[T], facts: Any, at: str = "") -> T:
    """A dataclass from an object of JSON.

    Args:
        cls: the dataclass.
        facts: the object.
        at: where it stands, for messages, such as `result.`.

    Raises:
        RecordError: a field without a default is missing, or a value is not what its field takes.
    """
    if not isinstance(facts, Mapping):
        raise RecordError(f"{at.rstrip('.') or 'it'} is {shown(facts)}, not an object")
    values = {}
    for name, (hint, needed) in _fields_of(cls).items():
        if name in facts:
            values[name] = _value(hint, facts[name], f"{at}{name}")
        elif needed:
            raise RecordError(f"{at}{name} is missing")
    return cls(**values)


def sensible(cls: type[T], facts: Mapping[str, Any]) -> T:
    """A dataclass whose fields all have defaults, from what makes sense in an object of JSON."""
    values = {}
    for name, (hint, _) in _fields_of(cls).items():
        try:
            if name in facts:
                values[name] = _value(hint, facts[name], name)
        except RecordError:
            continue
    return cls(**values)


def _fields_of(cls: Any) -> dict[str, tuple[Any, bool]]:
    """As `_described`, for whatever class: mypy takes those of dataclasses for no key of a cache."""
    return _described(cls)


@cache
def _described(cls: Any) -> dict[str, tuple[Any, bool]]:
    """Name of each field -> its type, and whether it has no default."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        item.name: (
            hints[item.name],
            item.default is MISSING and item.default_factory is MISSING,
        )
        for item in fields(cls)
    }


def _value(hint: Any, value: Any, at: str) -> Any:
    """A value of JSON as a field's type has it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = _value(arguments[0], value, at)
        for bounds in arguments[1:]:
            _check(bounds, found, at)
        return found
    if origin in (Union, types.UnionType):  # only with None: the others could not be told apart
        [inner] = [one for one in arguments if one is not type(None)]
        return None if value is None else _value(inner, value, at)
    if origin is tuple:
        return _entries(arguments, value, at)
    if origin in (dict, Mapping):
        return _mapping(arguments, value, at)
    if is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value, f"{at}.")
    if hint is Any:
        return value
    return _plain(hint, value, at)


def _plain(hint: Any, value: Any, at: str) -> Any:
    if hint is bool or hint is str:
        if not isinstance(value, hint):
            raise _wrong(at, value, "a text" if hint is str else "true or false")
        return value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(at, value, "a whole number")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(at, value, "a number")
    if not -LARGEST <= value <= LARGEST:  # NaN is not, either
        raise _wrong(at, value, f"between {-LARGEST:.3g} and {LARGEST:.3g}")
    return hint(value)


def _check(bounds: Bounds, value: Any, at: str) -> None:
    if isinstance(value, str):
        if not bounds.least <= len(value.strip()) <= bounds.most:
            raise _wrong(at, value, f"a text of {bounds.least:g} characters or more")
    elif isinstance(value, Sized):
        if not bounds.least <= len(value) <= bounds.most:
            raise RecordError(f"{at} has {len(value):,} entries")
    elif value is not None and not bounds.least <= value <= bounds.most:
        raise _wrong(at, value, f"between {bounds.least:g} and {bounds.most:g}")


def _entries(hints: tuple[Any, ...], value: Any, at: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(at, value, "a list")
    if hints[1:] == (Ellipsis,):
        hints = (hints[0],) * len(value)
    if len(value) != len(hints):
        raise RecordError(f"{at} has {len(value)} entries, not {len(hints)}")
    return tuple(
        _value(hint, one, f"{at}[{place}]")
        for place, (hint, one) in enumerate(zip(hints, value, strict=True))
    )


def _mapping(hints: tuple[Any, ...], value: Any, at: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(at, value, "an object")
    found = {}
    for key, one in value.items():
        name = key
        if hints[0] is int and isinstance(key, str):
            if not (key.isdecimal() and key.isascii() and len(key) < 10):
                raise RecordError(f"{at} has {shown(key)}, which is no number")
            name = int(key)
        found[name] = _value(hints[1], one, f"{at}.{visible(str(key))[:SHOWN]}")
    return found


def _wrong(at: str, value: Any, wanted: str) -> RecordError:
    return RecordError(f"{at} is {shown(value)}, not {wanted}")


def shown(value: Any) -> str:
    """A value for a message of one line, whatever a file holds."""
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    text = visible(repr(value))
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."
