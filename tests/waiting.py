"""Functions that wait for a condition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

#: Pauses between two looks, in seconds: what is nearly there is seen at once, and a long wait costs little.
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.02


def wait_until(condition: Callable[..., Any], timeout: float = 20.0, what: str = "") -> Any:
    """Poll until the condition is true, and return its value; fail with `what` after `timeout` seconds."""
    deadline, pause = time.monotonic() + timeout, FIRST_PAUSE
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:.0f} s: {what or condition}")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    return value


async def until(condition: Callable[..., Any], timeout: float = 20.0, what: str = "") -> Any:
    """`wait_until` for coroutines."""
    deadline, pause = time.monotonic() + timeout, FIRST_PAUSE
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:.0f} s: {what or condition}")
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    return value
