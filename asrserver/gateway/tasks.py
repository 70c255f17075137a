"""What a gateway does beside its requests: for ever, every so often, or once and for nobody who waits."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from asrserver.errors import AsrError, Unavailable
from asrserver.process.aio import cancelled
from asrserver.storage.errors import StorageError

log = logging.getLogger("asrserver.background")


class Background:
    """Tasks of the running loop that nobody awaits; none of them fails unseen."""

    def __init__(self) -> None:
        self.standing: list[asyncio.Task[None]] = []
        self._once: set[asyncio.Task[None]] = set()

    def forever(self, work: Coroutine[Any, Any, None]) -> None:
        """Work without which the process cannot go on: it ends with it."""

        async def run() -> None:
            try:
                await work
            except Exception:
                log.critical("a background task failed: this gateway cannot go on", exc_info=True)
                os._exit(1)  # its supervisor starts another; another gateway adopts the sessions

        self.standing.append(asyncio.get_running_loop().create_task(run()))

    def every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Work done now and so many seconds after each time that it was done, whatever became of it."""
        name = work.__name__.strip("_")

        async def run() -> None:
            while True:
                try:
                    await work()
                except (Unavailable, StorageError) as exc:
                    log.warning("%s: %s", name, exc)
                except Exception:
                    log.exception("%s failed", name)
                await asyncio.sleep(seconds)

        self.standing.append(asyncio.get_running_loop().create_task(run()))

    def once(self, work: Coroutine[Any, Any, Any]) -> None:
        """Work that is begun now and done in its own time."""

        async def run() -> None:
            try:
                await work
            except AsrError as exc:
                log.warning("%s", exc)
            except Exception:
                log.exception("a background job failed")

        task = asyncio.get_running_loop().create_task(run())
        self._once.add(task)
        task.add_done_callback(self._once.discard)

    async def close(self) -> None:
        """Cancel all of it, and wait until it has ended."""
        await cancelled((*self.standing, *self._once))
