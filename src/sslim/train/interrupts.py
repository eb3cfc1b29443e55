"""Ctrl-C and SIGTERM: finish the update, save, then stop. A second one stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM)

Item = TypeVar("Item")


class GracefulStop:
    """Within it, a first signal only sets `asked`; outside the main thread it does nothing."""

    def __init__(self) -> None:
        self.asked = False
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def between(self, items: Iterable[Item], *, alone: bool = True) -> Iterator[Item]:
        """The items, up to a signal that comes while one is waited for.

        Nothing is under way then that had to be finished, and what is waited for (audio on a disk that does
        not answer) may never come. One of several processes that are not `alone` goes on: they stop together.
        """
        iterator = iter(items)
        while True:
            try:
                self._waiting = alone
                if self.asked and alone:
                    return
                item = next(iterator)
            except StopIteration:
                return
            except KeyboardInterrupt:
                if not alone:
                    raise
                self.asked = True
                return
            finally:
                self._waiting = False
            yield item

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.asked or self._waiting:
            raise KeyboardInterrupt
        self.asked = True
