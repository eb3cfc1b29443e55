"""All cases, by class."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile import (
    audio,
    checkpoints,
    evaluation,
    exported,
    models,
    outputs,
    runs,
    settings,
    shards,
    sources,
)
from tests.hostile.case import Case

CLASSES = {
    "audio": audio.cases,
    "sources": sources.cases,
    "shards": shards.cases,
    "checkpoints": checkpoints.cases,
    "models": models.cases,
    "settings": settings.cases,
    "evaluation": evaluation.cases,
    "runs": runs.cases,
    "exported": exported.cases,
    "outputs": outputs.cases,
}
"""Name of a class of inputs -> its cases."""


def all_cases() -> Iterator[tuple[str, Case]]:
    """Class and case."""
    for kind, make in CLASSES.items():
        for case in make():
            yield kind, case
