"""A proxy of bytes: it delays, refuses, and cuts connections anywhere, also in the middle of a frame."""

from __future__ import annotations

import asyncio
import contextlib
import random

#: Bytes read at a time.
BLOCK = 1 << 16


class Link:
    """One connection through the proxy.

    Attributes:
        left: Bytes that it still carries before it is cut, in each direction together; None: any number.
    """

    def __init__(self, writers: list[asyncio.StreamWriter]) -> None:
        self.left: int | None = None
        self._writers = writers

    def cut(self) -> None:
        """Reset both sides at once."""
        for writer in self._writers:
            writer.transport.abort()


class Proxy:
    """Listens on a port of the loopback address, and connects each client to the target.

    Attributes:
        port: Where it listens.
        delay: Seconds by which each read is delayed, at most.
        refusing: New connections are closed at once.
        links: The open connections.
    """

    def __init__(self, target: str | int) -> None:
        """Forward to a Unix socket, or to a port of the loopback address."""
        self.port = 0
        self.delay = 0.0
        self.refusing = False
        self.links: set[Link] = set()
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Cut all connections."""
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset all connections."""
        for link in list(self.links):
            link.cut()

    def cut_soon(self, share: float, dice: random.Random) -> int:
        """Cut a share of the connections after some bytes more, wherever that is in a frame; return how many."""
        chosen = [link for link in self.links if dice.random() < share]
        for link in chosen:
            link.left = dice.randrange(1, 20_000)
        return len(chosen)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._forward(reader, writer)
        except (OSError, asyncio.CancelledError):  # cancelled by `close` alone: asyncio would log it
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            return
        if isinstance(self._target, int):
            theirs, target = await asyncio.open_connection("127.0.0.1", self._target)
        else:
            theirs, target = await asyncio.open_unix_connection(self._target)
        link = Link([writer, target])
        self.links.add(link)
        try:
            ways = [asyncio.ensure_future(self._pump(link, *way)) for way in ((reader, target), (theirs, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self.links.discard(link)
            target.transport.abort() if link.left == 0 else target.close()
            if link.left != 0:
                writer.close()
                with contextlib.suppress(OSError, TimeoutError):
                    await asyncio.wait_for(writer.wait_closed(), 1)

    async def _pump(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(BLOCK):
            if self.delay:
                await asyncio.sleep(random.uniform(0, self.delay))
            if link.left is not None:
                data = data[: link.left]
                link.left -= len(data)
            writer.write(data)
            await writer.drain()
            if link.left == 0:
                return
