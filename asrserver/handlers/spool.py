"""The bytes of an upload on their way from the network to the session: few are kept in memory, many on disk.

The fields of a form may follow the file, so the file may have to be kept as a whole. And it is read as fast as it
comes, although it is recognised slowly: that its client has disconnected is noticed only behind the bytes that it sent.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncIterator

from asrserver.audio.sniff import HEAD_BYTES
from asrserver.errors import Unavailable
from asrserver.gateway.held_bytes import HeldBytes
from asrserver.process.aio import Notifier

#: Bytes of an upload that are kept in memory, if there is room; a larger one goes to a temporary file.
MEMORY_BYTES = 1 << 19

#: Seconds between checks of a reader that waits for bytes.
WAIT_SECONDS = 5.0


class Spool:
    """One upload: `write` what comes, `end` it, and read it with `pieces`, meanwhile or later, as often as needed.

    Args:
        held: Counts what is in memory.
        uploads: Counts all of it.

    Attributes:
        owner: The id of the client's API key, or empty; to be set before the first byte.
        size: Bytes so far.
        head: The first bytes, by which a file is recognised.
        ended: Whether all of it is there.
    """

    def __init__(self, held: HeldBytes, uploads: HeldBytes) -> None:
        self.owner = ""
        self.size = 0
        self.head = b""
        self.ended = False
        self._counted = 0  # bytes among those of all uploads
        self._held = held
        self._uploads = uploads
        self._memory = bytearray()
        self._file: TemporaryFile | None = None
        self._written = Notifier()
        self._closed = False

    async def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            Unavailable: The disk, or what is bounded of it, takes no more.
        """
        if self._closed:
            return
        if self._uploads.is_full_for(self.owner, len(data)):
            raise Unavailable("overloaded", "uploads take as much room as they may (upload_space)", 30.0)
        self._uploads.add(self.owner, len(data))
        self._counted += len(data)
        if len(self.head) < HEAD_BYTES:
            self.head = (self.head + data)[:HEAD_BYTES]
        try:
            if self._file is None and self._has_memory(len(data)):
                self._held.add(self.owner, len(data))
                self._memory += data
            else:
                await self._write(data)
        except OSError as exc:
            message = f"there is no room for the upload in {tempfile.gettempdir()}: {exc.strerror}"
            raise Unavailable("overloaded", message, 30.0) from None
        self.size += len(data)
        self._written.notify()

    def end(self) -> None:
        """Say that all of it is there."""
        self.ended = True
        self._written.notify()

    async def pieces(self, size: int) -> AsyncIterator[bytes]:
        """Yield all bytes from the first on, `size` at a time, as they come."""
        at = 0
        while not self.ended or at < self.size:
            if self.size - at < size and not self.ended:
                await self._written.wait(WAIT_SECONDS)
                continue
            count = min(size, self.size - at)
            if self._file is None:
                data = bytes(self._memory[at : at + count])
            else:
                loop = asyncio.get_running_loop()
                data = await loop.run_in_executor(None, self._file.read, count, at)
            if not data:  # it was closed
                return
            at += len(data)
            yield data

    def close(self) -> None:
        """Free the memory and the disk; nothing is read any more, and what is still written is dropped."""
        self._closed = True
        self._uploads.add(self.owner, -self._counted)
        self._counted = 0
        self._free_memory()
        if self._file is not None:
            # In a thread: it waits for one that reads or writes, and freeing gigabytes of a disk takes time.
            asyncio.get_running_loop().run_in_executor(None, self._file.close)

    def _has_memory(self, size: int) -> bool:
        """Whether this many more bytes may be kept in memory."""
        return self.size + size <= MEMORY_BYTES and not self._held.is_full_for(self.owner, size)

    def _free_memory(self) -> None:
        self._held.add(self.owner, -len(self._memory))
        self._memory = bytearray()

    async def _write(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        if self._file is None:
            file = await loop.run_in_executor(None, TemporaryFile, bytes(self._memory))
            if self._closed:
                loop.run_in_executor(None, file.close)
                return
            # In the event loop, where `pieces` reads the one or the other.
            self._file = file
            self._free_memory()
        if not self._closed:
            await loop.run_in_executor(None, self._file.write, data)


class TemporaryFile:
    """A file without a name, for threads. Its calls exclude each other, so that none is left with the number of a
    descriptor that was closed, and is another upload's by now.

    Args:
        data: What it begins with.
    """

    def __init__(self, data: bytes) -> None:
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile(prefix="asrserver-upload-", buffering=0)  # noqa: SIM115
        try:
            self.write(data)
        except OSError:
            self._file.close()
            raise

    def write(self, data: bytes) -> None:
        """Append bytes; after `close` they are dropped."""
        with self._lock:
            view = memoryview(data)
            while view and not self._file.closed:
                view = view[self._file.write(view) :]

    def read(self, size: int, at: int) -> bytes:
        """Read at most `size` bytes from the position `at` on; nothing after `close`."""
        with self._lock:
            return b"" if self._file.closed else os.pread(self._file.fileno(), size, at)

    def close(self) -> None:
        with self._lock:
            self._file.close()
