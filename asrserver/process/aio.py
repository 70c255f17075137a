"""Waiting: for a condition, within a bound; for the end of what is cancelled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

#: Seconds between looks.
LOOK = 0.02

#: Seconds after which what is still running is cancelled again.
AGAIN = 0.5


async def until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait until the condition is true, at most `timeout` seconds; whether it is."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(LOOK)
    return True


async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until all of them have ended, whatever they end with.

    Again and again: of a statement under way, aiopg 1.4.0 may make some other error of a cancellation, and a loop that
    goes on after errors then goes on for ever.
    """
    pending = ended = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN)
    await asyncio.gather(*ended, return_exceptions=True)  # or asyncio complains of errors that nobody asked for
