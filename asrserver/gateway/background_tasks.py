"""Background tasks of a gateway, which no request waits for: critical ones, periodic ones, and one-off jobs."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from asrserver.errors import AsrError, Unavailable
from asrserver.process.aio import cancel_and_wait
from asrserver.storage.errors import StorageError

log = logging.getLogger("asrserver.tasks")


class BackgroundTasks:
    """Runs named tasks in the current event loop and logs every failure.

    It is no asyncio.TaskGroup: there, one task that fails cancels all others, and a cancellation reaches each task only
    once. Here a failed job must not touch the standing tasks, and `close` cancels repeatedly (see `cancel_and_wait`).

    Attributes:
        standing: The critical and periodic tasks by name.
    """

    def __init__(self) -> None:
        self.standing: dict[str, asyncio.Task[None]] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._closed = False

    def critical(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run work without which the process cannot go on: if it fails, the process exits with status 1."""

        async def run() -> None:
            try:
                await work
            except Exception:
                log.critical("the task %s failed: this gateway cannot go on", name, exc_info=True)
                os._exit(1)  # its supervisor starts another; another gateway adopts the sessions

        self.standing[name] = asyncio.create_task(run(), name=name)

    def periodic(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Call `work` now, and again `seconds` after each call has ended, whether it failed or not.

        The task has the name of the function, without leading underscores.
        """
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

        self.standing[name] = asyncio.create_task(run(), name=name)

    def spawn(self, work: Coroutine[Any, Any, Any] | asyncio.Future[Any], name: str) -> None:
        """Run a job now; nobody waits for its result. After `close` it is left undone, as it is when a process dies."""
        if self._closed:
            if isinstance(work, asyncio.Future):
                work.cancel()
            else:
                work.close()
            log.info("%s: left undone, this gateway is closing", name)
            return

        async def run() -> None:
            try:
                await work
            except AsrError as exc:
                log.warning("%s: %s", name, exc)
            except Exception:
                log.exception("%s failed", name)

        task = asyncio.create_task(run(), name=name)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def close(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        self._closed = True
        await cancel_and_wait((*self.standing.values(), *self._jobs))
