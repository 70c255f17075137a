"""Large chunks go to Redis in parts, one after another, and no other session's commands wait for them.

A file of tens of megabytes in one command would hold Redis for a tenth of a second, and this gateway's pipeline for
longer. Each part is an entry of the audio stream; the last one is the chunk's own entry, and makes it whole: the script
accepts it only behind all others of the same attempt. A chunk that was not completed leaves parts that no reader uses.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from asrserver.broker import audio_scripts
from asrserver.broker.batching import Batch
from asrserver.broker.keys import audio_key, session_key
from asrserver.broker.pipeline import Pipeline

#: Maximum size of a part in bytes: a script with that much data holds Redis for about a millisecond.
PART_BYTES = 1 << 20


class LargeChunks:
    """Appends large chunks; what is to follow them in the same session waits here.

    Attributes:
        bytes: Bytes of parts that are not sent yet.
        gateway: The name of the gateway that sends.
    """

    def __init__(self, pipeline: Pipeline, gateway: str) -> None:
        """Send through the pipeline, as the gateway of this name."""
        self.bytes = 0
        self.gateway = gateway
        self._pipeline = pipeline
        self._waiting: dict[str, deque[Callable[[], None]]] = {}  # by session: what follows its large chunk

    def in_order(self, sid: str, send: Callable[[], None]) -> None:
        """Call `send`, which issues commands of a session: now, or behind its large chunk."""
        waiting = self._waiting.get(sid)
        if waiting is None:
            send()
        else:
            waiting.append(send)

    def submit(self, sid: str, *command: Any) -> asyncio.Future[Any]:
        """Issue a command of a session in its order; the future gets its reply or its exception."""
        if sid not in self._waiting:
            return self._pipeline.submit(*command)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def replied(found: asyncio.Future[Any]) -> None:
            if future.cancelled() or found.cancelled():
                found.cancelled() or found.exception()
            elif (error := found.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(found.result())

        self._waiting[sid].append(lambda: self._pipeline.submit(*command).add_done_callback(replied))
        return future

    def append(self, sid: str, batch: Batch, replied: Callable[[Any], None]) -> None:
        """Append a chunk in parts. None of the session's may be on its way.

        Args:
            sid: The id of the session.
            batch: The chunk, by itself.
            replied: Gets the reply of audio_scripts.APPEND to the whole, or the exception.
        """
        self._waiting[sid] = deque()
        self.bytes += len(batch.data[0])
        _Parts(self, sid, batch, replied).send(0)

    def issue(self, command: tuple[Any, ...], size: int, go_on: Callable[[Any], None]) -> None:
        """Issue the command for a part of this many bytes; `go_on` gets its reply."""
        self.bytes -= size
        self._pipeline.call(go_on, *command, size=size + 100)

    def follow(self, sid: str) -> None:
        """Issue what waited for the large chunk, up to the next one."""
        waiting = self._waiting.pop(sid)
        while waiting:
            waiting.popleft()()
            if sid in self._waiting:
                self._waiting[sid].extend(waiting)
                return


class _Parts:
    """A chunk on its way, part by part.

    It is no closure that refers to itself: that would keep the chunk in memory until the garbage collector runs.
    """

    def __init__(self, chunks: LargeChunks, sid: str, batch: Batch, replied: Callable[[Any], None]) -> None:
        self._chunks = chunks
        self._sid = sid
        self._data = memoryview(batch.data[0])
        self._replied = replied
        self._last = -(-len(self._data) // PART_BYTES) - 1
        before = "" if batch.before is None else str(batch.before)
        keys = (session_key(sid), audio_key(sid))
        self._arguments = (2, *keys, chunks.gateway, batch.index, before, f"{batch.received:.6f}")

    def send(self, number: int) -> None:
        """Send a part, and then those after it."""
        part = bytes(self._data[number * PART_BYTES : (number + 1) * PART_BYTES])
        script = audio_scripts.APPEND_PART if number < self._last else audio_scripts.APPEND_LAST_PART
        command = ("EVAL", script, *self._arguments, number, part)
        self._chunks.issue(command, len(part), partial(self._go_on, number))

    def _go_on(self, number: int, reply: Any) -> None:
        if reply == 1 and number < self._last:
            self.send(number + 1)
        else:
            self._chunks.bytes -= max(0, len(self._data) - (number + 1) * PART_BYTES)
            self._replied(reply)
            self._chunks.follow(self._sid)
