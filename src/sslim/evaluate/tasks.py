"""SUPERB's ten tasks: what each one needs, measures and trains."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from sslim.errors import ConfigError
from sslim.evaluate.classification import fit_classifier
from sslim.evaluate.diarisation import fit_diariser
from sslim.evaluate.scorer import Fitter
from sslim.evaluate.spoken_terms import fit_term_detector
from sslim.evaluate.transcription import PHONES, SLOTS, WORDS, fit_transcriber
from sslim.evaluate.verification import fit_verifier


@dataclass(frozen=True)
class Task:
    """One task."""

    name: str
    title: str
    metric: str
    """The main metric."""
    higher_is_better: bool
    columns: tuple[str, ...]
    """What the CSV must have besides `path` and `split`."""
    fit: Fitter
    parts: tuple[str, ...] = ("train", "valid", "test")
    keeps_speakers_apart: bool = True
    """Whether a speaker in two parts is a leak (where speakers are the answer, it is the task)."""
    shared_role: str = ""
    """Clips whose `role` is this may be in several parts."""
    foldable: bool = True
    """Whether the items of several folds are one set; trials and queries are scored against each other."""
    items: str = "clip"
    """What is drawn with replacement: a clip, a trial, or the clips of a role."""
    packages: tuple[str, ...] = ()
    """What its metric needs beyond sslim's own requirements."""


_TASKS = (
    Task("ks", "keyword spotting", "accuracy", True, ("label",), fit_classifier),
    Task(
        "ic",
        "intent classification",
        "accuracy",
        True,
        ("action", "object", "location"),
        partial(fit_classifier, columns=("action", "object", "location")),
    ),
    Task("er", "emotion recognition", "accuracy", True, ("label",), fit_classifier),
    Task(
        "sid",
        "speaker identification",
        "accuracy",
        True,
        ("speaker",),
        partial(fit_classifier, columns=("speaker",)),
        keeps_speakers_apart=False,
    ),
    Task(
        "pr",
        "phoneme recognition",
        "phone error rate",
        False,
        ("phones",),
        partial(fit_transcriber, transcription=PHONES),
        packages=("jiwer",),
    ),
    Task(
        "asr",
        "speech recognition",
        "word error rate",
        False,
        ("text",),
        partial(fit_transcriber, transcription=WORDS),
        packages=("jiwer",),
    ),
    Task(
        "sf",
        "slot filling",
        "slot-type F1",
        True,
        ("text",),
        partial(fit_transcriber, transcription=SLOTS),
        packages=("jiwer",),
    ),
    Task(
        "asv",
        "speaker verification",
        "equal error rate",
        False,
        ("speaker",),
        fit_verifier,
        foldable=False,
        items="trial",
        packages=("sklearn",),
    ),
    Task(
        "sd",
        "speaker diarisation",
        "diarisation error rate",
        False,
        ("rttm",),
        fit_diariser,
        packages=("scipy", "pyannote.metrics"),
    ),
    Task(
        "qbe",
        "query by example",
        "MTWV",
        True,
        ("role", "label"),
        fit_term_detector,
        parts=("valid", "test"),
        shared_role="document",
        keeps_speakers_apart=False,
        foldable=False,
        items="query",
    ),
)
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _TASKS})


def get_task(name: str) -> Task:
    """A task by name.

    Raises:
        ConfigError: there is none of that name (the nearest is named), or its metric is not installed.
    """
    if name.lower() not in TASKS:
        near = difflib.get_close_matches(name.lower(), TASKS, n=1)
        suffix = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"there is no task '{name}'{suffix}", f"choose {', '.join(TASKS)}")
    task = TASKS[name.lower()]
    need_packages(f"the task {task.name}", *task.packages)
    return task


def need_packages(who: str, *packages: str) -> None:
    """Raises ConfigError where one of these is not installed."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"{who} needs {package}, which is not installed",
                "install it with pip install 'sslim[evaluate]'",
            ) from error
