"""Recordings of sessions, where `--save-audio` asks for them: written beside the work, never in its way.

Chunks go to a thread through a queue of bounded size. A disk that is full, or slower than the audio, costs recordings
and nothing else: one is given up whole, with a line in the log and a count. What a gateway wrote of a session that it
no longer has, because the session moved or the gateway died, is a part that whoever ends the session puts together with
the others, by the chunks' indexes: so nothing is in it twice. All gateways must share the directory.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import orjson

from asrserver.broker.broker import Broker
from asrserver.config import Settings
from asrserver.errors import Unavailable
from asrserver.gateway import archive_files
from asrserver.gateway.session import Options
from asrserver.storage.storage import Storage
from asrserver.telemetry import metrics

log = logging.getLogger("asrserver.recordings")

#: Bytes that wait for the disk; then recordings are given up.
MAX_WAITING = 32 * 2**20

#: Seconds without a write after which the parts of a session that is not open are somebody's who died.
ABANDONED = 60.0

#: Seconds after which what cannot be put together, or belongs to no session that is stored, is removed.
HOPELESS = 86400.0

#: Seconds that the disk may take for what a request asks.
PATIENCE = 30.0

#: Seconds that the last writes get at a stop.
LAST_WRITES = 5.0

#: Sessions put together, and recordings removed, in one round of housekeeping.
ROUND = 200


class Recordings:
    """The recordings of one gateway's sessions; without a directory, nothing."""

    def __init__(self, settings: Settings, name: str, broker: Broker, storage: Storage) -> None:
        self._directory = Path(settings.save_audio).absolute() if settings.save_audio else None
        self._settings = settings
        self._name = name
        self._broker = broker
        self._storage = storage
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._waiting = 0
        self._files: dict[str, int] = {}  # the thread's: session → file descriptor of its part
        self._lost: set[str] = set()  # sessions of this gateway whose recording is given up
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="recordings")
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        if self._directory is not None:
            (self._directory / "incoming").mkdir(parents=True, exist_ok=True, mode=0o700)
            self._thread.start()

    def chunks(self, sid: str, index: int, pieces: list[bytes], options: Options) -> None:
        """Record chunks that Redis has, from this index on."""
        if self._directory is not None:
            for number, data in enumerate(pieces, index):
                self._chunk(sid, number, data, options)

    def _chunk(self, sid: str, index: int, data: bytes, options: Options) -> None:
        if sid in self._lost:
            return
        if self._waiting + len(data) > MAX_WAITING:
            self._lose(sid, "slow")
            self._queue.put(lambda: self._drop(sid))
            return
        self._waiting += len(data)
        self._queue.put(lambda: self._write(sid, index, data, options))

    def leave(self, sid: str, over: bool) -> None:
        """The session is over and `keep` will be asked for; or it is another gateway's, or nobody's."""
        if self._directory is not None:
            self._queue.put(lambda: self._close(sid))
            if not over:
                self._lost.discard(sid)

    async def keep(self, sid: str, chunks: int | None = None) -> None:
        """Make the recording of a session that is over and stored; it had so many chunks. Raises StorageError.

        What does not come about now, because a part is still being written or PostgreSQL is away, `tidy` does.
        """
        if self._directory is None:
            return
        await self._written()
        if sid in self._lost:
            self._lost.discard(sid)
            await self._blocking(archive_files.remove, sid)
            return
        try:
            made = await self._blocking(archive_files.assemble, sid, self._settings.save_audio_as, chunks)
        except (OSError, ValueError) as exc:
            log.error("session=%s recording cannot be put together yet: %s", sid, exc)
            return
        if made is None:
            return
        if await self._storage.set_audio(sid, made.path, made.size):
            await self._blocking(archive_files.remove, sid, True)
            log.info("session=%s recorded chunks=%d bytes=%d file=%s", sid, made.chunks, made.size, made.path)
        elif await self._storage.known(sid):  # it was deleted meanwhile
            await self._blocking(archive_files.remove, sid)

    async def delete(self, sid: str) -> None:
        """Remove what there is of the session's recording; what is still written of it goes at its end."""
        if self._directory is not None:
            if sid in self._files:
                self._lost.add(sid)
            self._queue.put(lambda: self._drop(sid))
            await self._written()
            await self._blocking(archive_files.remove, sid)

    async def find(self, sid: str) -> Path | None:
        """The session's recording."""
        found: Path | None = await self._blocking(archive_files.find, sid) if self._directory is not None else None
        return found

    async def tidy(self) -> None:
        """Put together what was left by the dead, and remove what is older or more than the settings say."""
        if self._directory is None:
            return
        left = await self._blocking(archive_files.left, ABANDONED, ROUND)
        for sid in set(left) - await self._broker.open_sessions(left) - self._files.keys():
            await self.keep(sid)
            if left[sid] > HOPELESS:
                await self._blocking(archive_files.remove, sid, True)
        settings = self._settings
        expired = await self._storage.expired_audio(settings.audio_keep_days, settings.audio_keep_per_user, ROUND)
        for sid in expired:
            await self._blocking(archive_files.remove, sid)
        if expired:
            await self._storage.forget_audio(expired)
            log.info("%d recordings removed: older or more than is kept", len(expired))

    def close(self) -> None:
        """Write what waits, for LAST_WRITES seconds at most. Blocks."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(LAST_WRITES)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _written(self) -> None:
        """Wait until what was asked of the thread before is done."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        self._queue.put(tell)
        try:
            async with asyncio.timeout(PATIENCE):
                await done.wait()
        except TimeoutError:
            raise Unavailable("recordings_unavailable", "the disk of recordings does not answer") from None

    async def _blocking(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, self._directory, *args)

    def _lose(self, sid: str, reason: str) -> None:
        if sid not in self._lost:
            self._lost.add(sid)
            metrics.recordings_lost.labels(reason).inc()
            log.error("session=%s recording given up: the disk is %s", sid, reason)

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception:  # of a loop that has ended, say: the next recording is another's
                log.exception("a recording failed")
        for sid in list(self._files):
            self._close(sid)

    def _write(self, sid: str, index: int, data: bytes, options: Options) -> None:
        self._waiting -= len(data)
        if sid in self._lost:
            return
        try:
            if sid not in self._files:
                self._files[sid] = self._open(sid, options)
            record = archive_files.RECORD.pack(index, len(data)) + data
            written = os.write(self._files[sid], record)
            if written < len(record):
                os.write(self._files[sid], record[written:])  # says why
        except OSError as exc:
            full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            self._lose(sid, "full" if full else "broken")
            log.error("session=%s recording: %s", sid, exc.strerror)
            self._drop(sid)

    def _open(self, sid: str, options: Options) -> int:
        assert self._directory is not None
        path = archive_files.part_path(self._directory, sid, self._name)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if os.fstat(file).st_size == 0:
            header = {
                "sid": sid,
                "mode": options.mode,
                "format": options.format,
                "rate": options.sample_rate,
                "channels": options.channels,
            }
            os.write(file, orjson.dumps(header) + b"\n")
        return file

    def _close(self, sid: str) -> None:
        file = self._files.pop(sid, None)
        if file is not None:
            os.close(file)

    def _drop(self, sid: str) -> None:
        assert self._directory is not None
        self._close(sid)
        archive_files.part_path(self._directory, sid, self._name).unlink(missing_ok=True)
