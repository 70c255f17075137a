"""Bounded waits in an event loop: for a notification, for a condition, for the end of cancelled tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

#: Seconds between two checks of a condition that sends no notifications.
POLL_SECONDS = 0.02

#: Seconds after which tasks that are still running are cancelled again.
RECANCEL_SECONDS = 0.5


class Notifier:
    """Wakes its waiters when something has changed. A wait costs nothing until then.

    It is an asyncio.Condition without a lock, for conditions that only the event loop's own thread changes.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiters)

    def notify(self) -> None:
        """Wake all waiters."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout: float) -> bool:
        """Wait for the next notification, for at most `timeout` seconds; return whether there was one."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return True

    async def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until the condition is true, for at most `timeout` seconds.

        It is checked now and after each notification.

        Returns:
            Whether the condition is true.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0 or not await self.wait(left):
                return condition()
        return True


async def until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait until the condition is true, for at most `timeout` seconds, by polling it.

    This is for the drain at the end of a process, where one task waits for many objects that need not notify anybody.
    Anything that waits while the process works, or waits many times at once, uses a Notifier.

    Returns:
        Whether the condition is true.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


async def cancel_and_wait(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until all of them have ended, with whatever result.

    Cancellation is repeated: aiopg 1.4.0 may turn the cancellation of a running statement into another error, and a
    loop that continues after errors would then continue forever.
    """
    pending = ended = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=RECANCEL_SECONDS)
    await asyncio.gather(*ended, return_exceptions=True)  # retrieves the exceptions, or asyncio logs them
