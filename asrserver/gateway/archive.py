"""Recordings of sessions, for `--save-audio`: written beside the recognition, which never waits for them.

Chunks go to a thread through a queue of bounded size. A disk that is full, or slower than the audio, costs recordings
and nothing else: a recording is given up as a whole, with a log line and a metric. What one gateway wrote of a session
is a part: the session may move, or the gateway die. The gateway that ends the session assembles all parts by the
indexes of their chunks, so that no chunk is in the recording twice. All gateways must share the directory, and the
keys, if there are any.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from asrserver.broker.gateway_side import GatewayBroker
from asrserver.config import Settings
from asrserver.encryption import load_keys
from asrserver.errors import DecryptionError, MissingKey, Unavailable
from asrserver.gateway import archive_files
from asrserver.gateway.archive_parts import PartWriter
from asrserver.protocol.options import Options
from asrserver.storage.storage import Storage
from asrserver.telemetry import metrics

log = logging.getLogger("asrserver.recordings")

#: Bytes that may wait for the disk; beyond that recordings are given up.
MAX_WAITING_BYTES = 32 * 2**20

#: Seconds without a write after which the parts of a session that is not open were left by a dead gateway.
ABANDONED_SECONDS = 60.0

#: Seconds after which parts are removed that cannot be assembled although all keys are there, or whose session is not
#: stored.
HOPELESS_SECONDS = 86400.0

#: Seconds that the disk may take for a request.
DISK_TIMEOUT = 30.0

#: Seconds that the last writes may take when the gateway stops.
CLOSE_TIMEOUT = 5.0

#: Sessions that are assembled, and recordings that are removed, in one round of housekeeping at most.
TIDY_BATCH = 200


class Recordings:
    """Records the sessions of one gateway; where the settings name no directory, every method does nothing."""

    def __init__(self, settings: Settings, name: str, broker: GatewayBroker, storage: Storage) -> None:
        self._directory = Path(settings.save_audio).absolute() if settings.save_audio else None
        self._settings = settings
        self._keys = load_keys(settings.save_audio_keys)
        self._name = name
        self._broker = broker
        self._storage = storage
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # Each counter has one writer, so neither needs a lock: the event loop, and the thread.
        self._queued_bytes = 0
        self._written_bytes = 0
        self._files: dict[str, PartWriter] = {}  # written by the thread: session id → its part
        self._openings = itertools.count()  # of parts: each has a file, and a key, of its own
        self._lost: set[str] = set()  # ids of sessions of this gateway whose recording was given up
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="recordings")
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        if self._directory is not None:
            (self._directory / "incoming").mkdir(parents=True, exist_ok=True, mode=0o700)
            self._thread.start()

    def reread_keys(self) -> bool:
        """Load the operator's keys again if their file has changed; returns whether it had. Blocks.

        Raises:
            SettingError: They cannot be used; those that were loaded before stay.
        """
        return self._keys is not None and self._keys.reread()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for the disk."""
        return self._queued_bytes - self._written_bytes

    def record(self, sid: str, index: int, pieces: list[bytes], options: Options) -> None:
        """Record consecutive chunks that Redis has; the first has this index."""
        if self._directory is not None:
            for number, data in enumerate(pieces, index):
                self._record_chunk(sid, number, data, options)

    def _record_chunk(self, sid: str, index: int, data: bytes, options: Options) -> None:
        if sid in self._lost:
            return
        if self.waiting_bytes + len(data) > MAX_WAITING_BYTES:
            self._lose(sid, "slow")
            self._queue.put(lambda: self._drop(sid))
            return
        self._queued_bytes += len(data)
        self._queue.put(lambda: self._write(sid, index, data, options))

    def release(self, sid: str, over: bool) -> None:
        """Close the part of a session that this gateway no longer holds.

        Args:
            sid: The id of the session.
            over: Whether the session is over, so that `assemble` will be called here; else another gateway has it.
        """
        if self._directory is not None:
            self._queue.put(lambda: self._close(sid))
            if not over:
                self._lost.discard(sid)

    async def assemble(self, sid: str, chunks: int | None = None) -> bool:
        """Make the recording of a session that is over and stored.

        If that is not possible now, because a part is still being written or PostgreSQL is away, `tidy` does it later.

        Args:
            sid: The id of the session.
            chunks: The number of its chunks; if the parts have fewer, nothing is made yet.

        Returns:
            Whether all keys are there that its parts need; the parts stay until they are.

        Raises:
            StorageError: PostgreSQL cannot be asked.
            Unavailable: The disk does not answer.
        """
        if self._directory is None:
            return True
        await self._wait_for_writes()
        if sid in self._lost:
            self._lost.discard(sid)
            await self._in_pool(archive_files.remove, sid)
            return True
        try:
            made = await self._in_pool(archive_files.assemble, sid, self._settings.save_audio_as, chunks, self._keys)
        except (OSError, ValueError, DecryptionError) as exc:
            log.error("session=%s the recording cannot be assembled yet: %s", sid, exc)
            return not isinstance(exc, MissingKey)
        if made is None:
            return True
        if await self._storage.set_audio(sid, made.path, made.size):
            await self._in_pool(archive_files.remove, sid, True)
            log.info("session=%s recorded chunks=%d bytes=%d file=%s", sid, made.chunks, made.size, made.path)
        elif await self._storage.known(sid):  # it was deleted meanwhile
            await self._in_pool(archive_files.remove, sid)
        return True

    async def delete(self, sid: str) -> None:
        """Remove the recording of the session and its parts; of an open session, also what is written until its end."""
        if self._directory is not None:
            if sid in self._files:
                self._lost.add(sid)
            self._queue.put(lambda: self._drop(sid))
            await self._wait_for_writes()
            await self._in_pool(archive_files.remove, sid)

    async def open(self, sid: str) -> archive_files.Opened | None:
        """Open the session's recording; None if there is none. It must be closed in a thread.

        Raises:
            DecryptionError: It is encrypted, and cannot be read.
        """
        try:
            return await self._in_pool(self._open_recording, sid) if self._directory is not None else None
        except FileNotFoundError:  # it was removed just now
            return None

    def _open_recording(self, directory: Path, sid: str) -> archive_files.Opened | None:
        path = archive_files.find(directory, sid)
        return None if path is None else archive_files.open_recording(path, self._keys)

    async def tidy(self) -> None:
        """Assemble what dead gateways left, and remove recordings beyond the age and number that the settings allow."""
        if self._directory is None:
            return
        left = await self._in_pool(archive_files.abandoned, ABANDONED_SECONDS, TIDY_BATCH)
        for sid in set(left) - await self._broker.open_sessions(left) - self._files.keys():
            if await self.assemble(sid) and left[sid] > HOPELESS_SECONDS:
                await self._in_pool(archive_files.remove, sid, True)
        settings = self._settings
        expired = await self._storage.expired_audio(settings.audio_keep_days, settings.audio_keep_per_user, TIDY_BATCH)
        for sid in expired:
            await self._in_pool(archive_files.remove, sid)
        if expired:
            await self._storage.forget_audio(expired)
            log.info("removed %d recordings: beyond --audio-keep-days or --audio-keep-per-user", len(expired))

    def close(self) -> None:
        """Write all chunks that wait. Blocks for CLOSE_TIMEOUT seconds at most."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(CLOSE_TIMEOUT)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _wait_for_writes(self) -> None:
        """Wait until the thread has done what was queued before."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        self._queue.put(tell)
        try:
            async with asyncio.timeout(DISK_TIMEOUT):
                await done.wait()
        except TimeoutError:
            raise Unavailable("recordings_unavailable", "the disk of the recordings does not answer") from None

    async def _in_pool(self, work: Callable[..., Any], *args: Any) -> Any:
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
            except Exception:  # must not end the thread: the next item is of another recording
                log.exception("a recording failed")
        for sid in list(self._files):
            self._close(sid)

    def _write(self, sid: str, index: int, data: bytes, options: Options) -> None:
        self._written_bytes += len(data)
        if sid in self._lost:
            return
        try:
            if sid not in self._files:
                self._files[sid] = self._begin(sid, options)
            self._files[sid].write(index, data)
        except OSError as exc:
            full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            self._lose(sid, "full" if full else "broken")
            log.error("session=%s recording: %s", sid, exc.strerror)
            self._drop(sid)

    def _begin(self, sid: str, options: Options) -> PartWriter:
        assert self._directory is not None
        path = archive_files.part_path(self._directory, sid, f"{self._name} {next(self._openings)}")
        header = {
            "sid": sid,
            "mode": options.mode,
            "format": options.format,
            "rate": options.sample_rate,
            "channels": options.channels,
        }
        return PartWriter(path, archive_files.name_of(sid), header, self._keys.first if self._keys else None)

    def _close(self, sid: str) -> None:
        if (part := self._files.pop(sid, None)) is not None:
            part.close()

    def _drop(self, sid: str) -> None:
        if (part := self._files.pop(sid, None)) is not None:
            part.drop()
