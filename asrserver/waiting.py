"""Waiting, never without a bound."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

#: Seconds between looks.
LOOK = 0.02


async def until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait until the condition is true, at most `timeout` seconds; whether it is."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(LOOK)
    return True
