"""TensorBoard, Weights & Biases and others, through accelerate's trackers, for those who ask.

`metrics.jsonl` is always written and is what sslim itself reads; a tracker gets the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, filter_trackers

from sslim.errors import ConfigError


class Trackers:
    """The trackers of a run; none is the usual number.

    Args:
        names: as accelerate calls them: `tensorboard`, `wandb`, `mlflow`, ...
        folder: where trackers that write files write them.
        settings: what the run is, as flat name -> value.

    Raises:
        ConfigError: a tracker is unknown or not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        self.trackers: list[GeneralTracker] = []
        kinds = [_known(name) for name in names]
        if not names:
            return
        PartialState()  # accelerate's trackers ask it whether this process may write
        for kind in kinds:
            where = {"logging_dir": folder} if kind.requires_logging_directory else {}
            self.trackers.append(kind("sslim", **where))
            self.trackers[-1].start()
            plain = (str, int, float)
            self.trackers[-1].store_init_configuration(
                {
                    key: value if isinstance(value, plain) else str(value)
                    for key, value in settings.items()
                }
            )

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for tracker in self.trackers:
            tracker.finish()

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Sends figures to all trackers."""
        for tracker in self.trackers:
            tracker.log(dict(figures), step=step)


def check_trackers(names: Sequence[str]) -> None:
    """Finds out whether there are such trackers, without making or writing anything.

    Raises:
        ConfigError: a tracker is unknown or not installed.
    """
    for name in names:
        _known(name)


def _known(name: str) -> type[GeneralTracker]:
    try:
        usable = filter_trackers([name], logging_dir=".")
    except ValueError as error:
        raise ConfigError(
            f"there is no tracker {name!r}",
            f"choose among {', '.join(sorted(str(key) for key in LOGGER_TYPE_TO_CLASS))}",
        ) from error
    if not usable:
        raise ConfigError(f"the tracker {name} is not installed", f"Install it: pip install {name}")
    kind: type[GeneralTracker] = LOGGER_TYPE_TO_CLASS[str(usable[0])]
    return kind
