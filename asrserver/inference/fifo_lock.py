"""The lock of a device that the engines of one worker share: one of them computes at a time."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class FifoLock:
    """A lock that is handed over in the order in which its threads came.

    With a threading.Lock, an engine with many windows would take the lock again before any other engine is woken.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()  # until whoever holds the lock hands it over

    def __exit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False
