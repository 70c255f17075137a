"""Event loops for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from tornado.ioloop import IOLoop


def running(aio: asyncio.AbstractEventLoop) -> Iterator[IOLoop]:
    """Yield Tornado's loop on `aio`, without make_current(); then cancel what is left on it, and close it."""
    asyncio.set_event_loop(aio)
    loop = IOLoop(asyncio_loop=aio, make_current=False)
    yield loop
    pending = asyncio.all_tasks(aio)
    for task in pending:
        task.cancel()
    if pending:
        aio.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
    aio.run_until_complete(aio.shutdown_default_executor())
    loop.close(all_fds=True)
    asyncio.set_event_loop(None)
