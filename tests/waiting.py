"""Waits for conditions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest


def wait_until(condition: Callable[[], Any], timeout: float = 20.0, what: str = "") -> Any:
    """Poll until the condition is true, and return it; fails with its name after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:.0f} s: {what or condition}")
        time.sleep(0.02)
    return value


async def until(condition: Callable[[], Any], timeout: float = 20.0, what: str = "") -> Any:
    """`wait_until` for coroutines."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:.0f} s: {what or condition}")
        await asyncio.sleep(0.02)
    return value
