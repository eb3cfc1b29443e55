"""The settings of a run: frozen dataclasses that a TOML file and `--set key=value` edit alike.

A run is described by one `RunConfig`. It comes from a recipe (`sslim.recipes`), may be edited by a
file (`load_config`) and by settings typed on the command line (`apply_settings`), and is saved
whole with the result. Whatever is wrong is reported at once and by name, before anything is loaded.

This module is pure Python and imports in milliseconds.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from sslim.errors import ConfigError, first_line
from sslim.layout import KINDS
from sslim.limits import LIMITS, shown
from sslim.target import BudgetSpec, budget_from_sparsity, parse_budget

__all__ = [
    "AudioConfig",
    "JointConfig",
    "RecoveryConfig",
    "RunConfig",
    "BudgetSpec",
    "parse_budget",
    "budget_from_sparsity",
    "load_config",
    "apply_settings",
    "to_dict",
    "to_flat_dict",
    "from_dict",
    "difference",
    "SAFE_TO_CHANGE",
    "SETTINGS",
    "PRECISIONS",
    "QUANTITIES",
    "UNITS",
]

PRECISIONS = ("auto", "float32", "bfloat16")
QUANTITIES = ("parameters", "macs")
UNITS = tuple(KINDS)
"""What may be removed: the kinds of `layout.KINDS`."""

LARGEST_FILE = 64 * 2**10
"""Bytes of a configuration file that is still read; one that sets everything has two thousand."""

SAFE_TO_CHANGE = frozenset(
    {
        "device",
        "workers",
        "log_every",
        "check_every",
        "checkpoint_every",
        "keep_checkpoints",
        "trackers",
    }
)
"""Settings that may differ when a run is resumed: none of them changes what is computed."""


@dataclass(frozen=True)
class AudioConfig:
    """Which utterances take part."""

    min_seconds: float = 2.0
    """Shorter utterances are skipped (counted, not an error)."""

    max_seconds: float = 15.6
    """Longer utterances are cropped, at a place that changes. DPHuBERT's bounds: 2 to 15.6 seconds."""

    held_out: float = 0.05
    """Share of the audio that is not trained on: the distance to the teacher is measured there, by speakers
    who were not heard where the source says who speaks. 0: all is trained on, and the distance, measured on
    training audio, flatters."""


@dataclass(frozen=True)
class JointConfig:
    """Stage 1: distillation and pruning together, the gates still undecided."""

    updates: int = 50_000
    """Optimiser steps."""

    learning_rate: float = 2e-4
    """Peak learning rate of the student's weights and of the projections."""

    warmup_fraction: float = 0.3
    """Share of the updates over which the learning rate rises to its peak; it then falls to 0."""

    gate_learning_rate: float = 0.02
    """Learning rate of the gates and of the two multipliers of the budget's constraint."""

    sparsity_warmup_fraction: float = 0.1
    """Share of the updates over which the target sparsity rises from 0 to what the budget asks."""

    shrink_chances: int = 20
    """How often in the stage it is asked whether units that are closed for good should be removed from
    the student at once, which makes the rest of the stage faster. 0: never."""

    shrink_multiple: int = 8
    """Sizes of a student that shrinks are rounded up to multiples of this; hardware likes 8 to 64."""


@dataclass(frozen=True)
class RecoveryConfig:
    """Stage 2: distillation of the model that is now physically small."""

    updates: int = 25_000
    """Optimiser steps; 0 leaves the stage out."""

    learning_rate: float = 1e-4
    """Peak learning rate."""

    warmup_fraction: float = 0.2
    """Share of the updates over which the learning rate rises to its peak; it then falls to 0."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run; the defaults are the paper's.

    Construction checks nothing, so that a half-made configuration can be edited; `validate` does,
    and `load_config`, `apply_settings` and `from_dict` call it.
    """

    seed: int = 0
    """Seed of the gates' noise, the order of the audio and the crops."""

    seconds_per_update: float = 640.0
    """Audio heard per optimiser step, in seconds, over all devices."""

    seconds_per_batch: float = 0.0
    """Audio that passes through the models at once, in seconds; an update is made of several such
    batches. 0: chosen to fit the device's memory."""

    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps`."""

    precision: str = "auto"
    """`auto` (bfloat16 where the device is fast at it), `float32` or `bfloat16`."""

    workers: int = 1
    """Processes that decode audio beside the training; 0 decodes in the training process."""

    log_every: int = 10
    """Updates between two lines of the log."""

    check_every: int = 0
    """Updates between two looks at the figures, which make a GPU wait: only then is a loss that is not finite
    noticed, or a request to stop. 0: chosen by the device (every update on a CPU, on a GPU as often as the
    log is written, at least every tenth)."""

    checkpoint_every: int = 500
    """Updates between two states that `--resume` can go on from."""

    keep_checkpoints: int = 2
    """How many such states are kept; older ones are removed."""

    target_cache_gib: float = 0.0
    """Disk space for the teacher's states, in GiB, while the run lasts. 0: none, they are computed each
    time. With it every epoch hears the same crops, which suits audio that is heard many times. An hour of
    audio takes 1.03 GiB for four layers of width 768."""

    trackers: tuple[str, ...] = ()
    """Where figures go besides the log: `tensorboard`, `wandb` or another that accelerate knows."""

    clip_norm: float = 10.0
    """Gradients are scaled down to this norm where they exceed it."""

    budget: str = "25%"
    """What may remain: a share of the teacher (`25%`) or a count (`24M`, `0.3G`, `23600000`)."""

    budget_quantity: str = "parameters"
    """What the budget counts: `parameters`, or `macs` (multiply-accumulates; as a count, those of an
    utterance of 10 s)."""

    units: tuple[str, ...] = ("conv", "head", "ffn")
    """What may be removed: any of `layout.KINDS`, such as `conv` (channels of the convolutional front-end),
    `head` and `ffn` (intermediate units)."""

    layers: tuple[int, ...] | Literal["all"] = ()
    """Hidden states that are distilled, 0 being the output of the feature projection, in rising
    order. Empty: 0 and every third of the depth (0, 4, 8, 12 of 12 layers). `all`: 0 and every layer."""

    objectives: tuple[str, ...] = ("layers",)
    """What the student is taught, each with the weight of its loss (`layers:1,gram:5`; a name alone weighs
    1): `layers` (the paper's), `gram`, `clusters`, `masked`, `unmasked`, `output`, `last_layer`. What
    each is: docs/method.md."""

    audio: AudioConfig = field(default_factory=AudioConfig)
    """Which utterances take part."""

    stage1: JointConfig = field(default_factory=JointConfig)
    """Joint distillation and pruning."""

    stage2: RecoveryConfig = field(default_factory=RecoveryConfig)
    """Distillation of the pruned model."""

    def validate(self) -> None:
        """Check every field.

        Raises:
            ConfigError: names all the fields that are wrong, in one line.
        """
        problems: list[str] = []
        for name, value in to_flat_dict(self).items():
            hint = _TYPES[name]
            try:
                _as_type(value, hint)
            except _NotOfThisTypeError:
                problems.append(_wrong_type(name, value, hint))
        if not problems:  # ranges can only be compared where the types are right
            problems = [problem for problem in _range_problems(self) if problem]
        _raise_all(problems)


# --- reading and editing ----------------------------------------------------


def load_config(path: str | Path, base: RunConfig | None = None) -> RunConfig:
    """Edit a configuration by a TOML file.

    Args:
        path: a file with the names of `RunConfig` as keys and `[audio]`, `[stage1]`, `[stage2]`.
        base: what the file edits (default: `RunConfig()`).

    Raises:
        ConfigError: the file cannot be read, is not TOML, or holds settings that are wrong.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)  # a device such as /dev/zero has no end
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"the configuration file '{path}' cannot be read: {reason}", "Check the path"
        ) from error
    if len(data) > LARGEST_FILE:
        raise ConfigError(
            f"the configuration file '{path}' is larger than {LARGEST_FILE // 2**10} KiB",
            "Check the path: a file of settings is far smaller",
        )
    try:
        values = tomllib.loads(data.decode("utf-8-sig"))
    # Bytes that are no UTF-8 and integers of thousands of digits are ValueErrors too.
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"the configuration file '{path}' is not valid TOML: {first_line(error)}",
            "Correct that line",
        ) from error
    return from_dict(values, base)


def apply_settings(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """Edit a configuration by settings such as `stage1.updates=2000` or `units=conv,head`.

    Raises:
        ConfigError: names every setting that is unknown (with the nearest match), of the wrong type
            or out of range.
    """
    problems: list[str] = []
    edited: Any = config
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals or not name:
            problems.append(f"{shown(setting)} is not of the form key=value")
        elif name not in _TYPES:
            problems.append(_unknown(name))
        else:
            try:
                value = _from_text(text, _TYPES[name])
            except _NotOfThisTypeError:
                problems.append(_wrong_type(name, text, _TYPES[name]))
            else:
                edited = _replace_at(edited, name.split("."), value)
    assert isinstance(edited, RunConfig)
    return _checked(edited, problems)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested dictionaries of plain values; tuples become lists."""
    result = _section_to_dict(config)
    assert isinstance(result, dict)
    return result


def to_flat_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as one dictionary with dotted names, such as `stage1.updates`."""
    return dict(_walk(config))


def from_dict(values: Mapping[str, Any], base: RunConfig | None = None) -> RunConfig:
    """Edit a configuration by nested dictionaries; the inverse of `to_dict`.

    Args:
        values: what to change, with the names of the fields as keys.
        base: what is edited (default: `RunConfig()`).

    Raises:
        ConfigError: names every setting that is unknown (with the nearest match), of the wrong type
            or out of range.
    """
    problems: list[str] = []
    edited = _edit(base if base is not None else RunConfig(), values, "", problems)
    return _checked(edited, problems)


def difference(before: RunConfig, after: RunConfig) -> dict[str, tuple[Any, Any]]:
    """What differs between two configurations: dotted name to (value before, value after).

    Those not in `SAFE_TO_CHANGE` would make a resumed run another run.
    """
    old, new = to_flat_dict(before), to_flat_dict(after)
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


# --- beneath ----------------------------------------------------------------

Section = TypeVar("Section")


class _NotOfThisTypeError(Exception):
    """A value is not of the type of its field; the caller knows the field's name and reports it."""


def _type_names(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _type_names(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


_LAYERS = tuple[int, ...] | Literal["all"]
_TYPES: dict[str, Any] = dict(_type_names(RunConfig))
"""Dotted name of each setting to its type."""

SETTINGS: tuple[str, ...] = tuple(_TYPES)
"""The dotted names of all settings, in the order of their definition."""


def _walk(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            yield from _walk(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def _section_to_dict(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _section_to_dict(getattr(value, item.name)) for item in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _edit(section: Section, values: Mapping[str, Any], prefix: str, problems: list[str]) -> Section:
    changes: dict[str, Any] = {}
    known = {item.name for item in fields(section)}  # type: ignore[arg-type]
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            problems.append(_unknown(name))
            continue
        current = getattr(section, key)
        if is_dataclass(current):
            if isinstance(value, Mapping):
                changes[key] = _edit(current, value, f"{name}.", problems)
            else:
                problems.append(f"{name} is a section with settings of its own, got {shown(value)}")
            continue
        try:
            changes[key] = _as_type(value, _TYPES[name])
        except _NotOfThisTypeError:
            problems.append(_wrong_type(name, value, _TYPES[name]))
    return replace(section, **changes)  # type: ignore[type-var]


def _replace_at(section: Any, path: Sequence[str], value: Any) -> Any:
    head, *rest = path
    if rest:
        value = _replace_at(getattr(section, head), rest, value)
    return replace(section, **{head: value})


def _as_type(value: Any, hint: Any) -> Any:
    """`value` as `hint`, without loss: 2 becomes 2.0, but 2.5 is no int and True is no number."""
    if hint == _LAYERS:
        return value if value == "all" else _as_type(value, tuple[int, ...])
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise _NotOfThisTypeError
        return tuple(_as_type(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool):  # a bool is an int to Python, not to a reader
        raise _NotOfThisTypeError
    if hint is float and isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            raise _NotOfThisTypeError from None
        if not math.isfinite(number):
            raise _NotOfThisTypeError
        return number
    if isinstance(value, hint):
        return value
    raise _NotOfThisTypeError


def _from_text(text: str, hint: Any) -> Any:
    if hint == _LAYERS:
        return text if text == "all" else _from_text(text, tuple[int, ...])
    if get_origin(hint) is tuple:
        inside = text.removeprefix("[").removesuffix("]")
        items = (item.strip().strip("'\"") for item in inside.split(","))
        return tuple(_from_text(item, get_args(hint)[0]) for item in items if item)
    if hint is str:
        return text
    if (
        not text.isascii()
    ):  # Python would take digits of any script, and some of them look like others
        raise _NotOfThisTypeError
    try:
        return _as_type(hint(text), hint)
    except ValueError:
        raise _NotOfThisTypeError from None


_TYPE_WORDS = {int: "a whole number", float: "a number", str: "text"}


def _wrong_type(name: str, value: Any, hint: Any) -> str:
    if hint == _LAYERS:
        words = "a list, each entry a whole number, or all"
    elif get_origin(hint) is tuple:
        words = f"a list, each entry {_TYPE_WORDS[get_args(hint)[0]]}"
    else:
        words = _TYPE_WORDS[hint]
    return f"{name} must be {words}, got {shown(value)}"


def _unknown(name: str) -> str:
    leaves: dict[str, list[str]] = {}
    for known in SETTINGS:
        leaves.setdefault(known.rpartition(".")[2], []).append(known)
    matches = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.7)
    if not matches:  # the right word in the wrong section, or in none
        near = difflib.get_close_matches(name.rpartition(".")[2], leaves, n=1, cutoff=0.7)
        matches = leaves[near[0]] if near else []
    suffix = f" (did you mean {' or '.join(matches)}?)" if matches else ""
    return f"{name if len(name) <= 80 else name[:70] + '...'} is unknown{suffix}"


def _checked(config: RunConfig, problems: list[str]) -> RunConfig:
    """`config` if nothing is wrong with it; else all problems, those found before first."""
    try:
        config.validate()
    except ConfigError as error:
        if not problems:
            raise
        problems.append(error.problem)
    _raise_all(problems)
    return config


def _raise_all(problems: list[str]) -> None:
    if problems:
        hint = "" if len(problems) == 1 else "Correct them all"
        raise ConfigError("; ".join(problems), hint)


def _range_problems(config: RunConfig) -> Iterator[str]:
    flat = to_flat_dict(config)
    alone = []
    for name, limits in LIMITS.items():
        values = flat[name] if isinstance(flat[name], tuple) else (flat[name],)
        found = (limits.problem(name, value) for value in values if value != "all")
        alone += [problem for problem in found if problem][:1]
    yield from alone

    def one_of(name: str, allowed: Sequence[str]) -> Iterator[str]:
        values = flat[name] if isinstance(flat[name], tuple) else (flat[name],)
        for value in values[:10]:
            if value not in allowed:
                near = difflib.get_close_matches(str(value), allowed, n=1)
                suffix = f" (did you mean {near[0]}?)" if near else ""
                yield f"{name} knows {', '.join(allowed)}, got {shown(value)}{suffix}"

    yield from one_of("precision", PRECISIONS)
    yield from one_of("budget_quantity", QUANTITIES)
    yield from one_of("units", UNITS)
    if not config.units:
        yield f"units is empty, so nothing could be removed: name some of {', '.join(UNITS)}"
    if len(set(config.units)) != len(config.units):
        yield f"units names one kind twice, got {','.join(config.units)}"
    if re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", config.device) is None:
        yield f"device knows auto, cpu, cuda, cuda:1, mps, got {shown(config.device)}"
    if not alone:  # how settings stand to each other matters once each is possible
        yield from _relation_problems(config)
    try:
        BudgetSpec.parse(config.budget)
    except ConfigError as error:
        yield f"budget: {error.problem} ({error.hint})"


def _relation_problems(config: RunConfig) -> Iterator[str]:
    if config.seconds_per_batch > config.seconds_per_update:
        yield (
            f"seconds_per_batch must not exceed seconds_per_update ({config.seconds_per_update}), "
            f"got {config.seconds_per_batch}"
        )
    if config.audio.max_seconds <= config.audio.min_seconds:
        yield (
            f"audio.max_seconds must be above audio.min_seconds ({config.audio.min_seconds}), "
            f"got {config.audio.max_seconds}"
        )
    if config.layers != "all" and list(config.layers) != sorted(set(config.layers)):
        yield f"layers must rise from 0 or above, got {shown(','.join(map(str, config.layers)))}"
