"""The session consumer: claims sessions, reads their audio, renews their leases, drops those it no longer owns."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from asrserver.broker.lease import LeaseRenewer
from asrserver.broker.replies import Claim, Task
from asrserver.broker.worker_side import MAX_STRIKES, WorkerBroker
from asrserver.errors import AsrError, Unavailable
from asrserver.inference.checkpoint import BEGINNING
from asrserver.inference.draining import Drain
from asrserver.inference.engines import Engines
from asrserver.inference.event_log import Fenced
from asrserver.inference.poison import PoisonTracker
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.transcriber import Transcriber
from asrserver.process.aio import cancel_and_wait, until
from asrserver.protocol.options import PARTIAL_INTERVAL
from asrserver.shares import Share, keys_at_share
from asrserver.telemetry import traces

log = logging.getLogger("asrserver.consumer")

#: Seconds between reads while there are sessions: each sends about ten chunks a second, and one read serves all.
POLL_SECONDS = 0.04

#: Seconds between two reads of the same live stream: this much for each live stream, within POLL_SECONDS and
#: MAX_READ_INTERVAL. All that one read brings of a stream is processed in one go, which costs about the same for three
#: pieces as for one. With few streams nobody waits for that; with many, a result is late by at most MAX_READ_INTERVAL.
READ_SECONDS_PER_STREAM = 0.004
MAX_READ_INTERVAL = 1.5

#: Live streams are read in up to MAX_GROUPS groups of at least MIN_GROUP_SIZE, one group after another. Reading all at
#: once blocked the event loop of a worker with 500 streams for a quarter of a second, and everything else waited.
MIN_GROUP_SIZE = 48
MAX_GROUPS = 8

#: Seconds of audio of each live stream that do not count as backlog: what a read brings, and speech in progress.
IN_TRANSIT_SECONDS = 1.9

#: Seconds that a worker without sessions blocks in Redis, waiting for a new one. Meanwhile it does not look for those
#: that a dead worker has left.
IDLE_BLOCK_SECONDS = 0.25

#: Seconds between checks, in a worker that is about to stop, whether another one could take its sessions.
SUCCESSOR_CHECK_SECONDS = 0.2

#: Sessions claimed at a time: few, so that workers that start together share what waits; but at least one per
#: CLAIM_SHARE of the sessions that the worker has. A claim takes two round trips, during which the worker reads
#: nothing: 500 sessions that ended and began again within five seconds were processed seconds late.
MIN_CLAIM = 4
CLAIM_SHARE = 8

#: Entries of a session read at a time: small pieces; and chunks that are large, or may be: an entry has up to a
#: megabyte (broker/large_chunks.py).
READ_ENTRIES = 16
READ_LARGE_ENTRIES = 4

#: Size in bytes above which a chunk is large.
LARGE_CHUNK_BYTES = 1 << 16

#: Unprocessed bytes of all sessions above which only sessions without any are read.
MAX_UNREAD_BYTES = 64 * 2**20

#: Seconds between searches for sessions whose lease has expired.
STALE_CHECK_SECONDS = 1.0

#: Seconds between measurements of the backlog, each of which visits every session.
BACKLOG_CHECK_SECONDS = 0.25


class SessionConsumer:
    """The sessions that a worker owns, and the loop that claims and reads them.

    Attributes:
        sessions: The sessions owned now, by id.
        finished: Sessions finished so far.
        drain: Hands the sessions over to other workers while an operator wants that.
        siblings: All consumers of this worker: one for each Redis. Their sessions share its time.
        leaving: The worker is about to stop.
    """

    def __init__(
        self,
        broker: WorkerBroker,
        recogniser: Recogniser,
        engines: Engines,
        *,
        url: str,
        lease: float,
        max_backlog: float,
        patience: float,
    ) -> None:
        """Own no sessions yet. Must be called in the event loop.

        Args:
            broker: Redis.
            recogniser: Recognises the sessions' audio, with the first model. Its scheduler of partials is told how
                often live streams are read, and how late.
            engines: Those of all models.
            url: Redis URL, for the lease thread's own connection.
            lease: Seconds after which a session that is not renewed may be claimed by others.
            max_backlog: Seconds of unrecognised audio at which no more sessions are claimed.
            patience: Seconds for which a drain leaves sessions here that have audio in hand.
        """
        self.sessions: dict[str, Transcriber] = {}
        self.finished = 0
        self.leaving = False
        self.drain = Drain(broker, self.sessions, self._drop, patience)
        self.siblings: Sequence[SessionConsumer] = (self,)
        self._broker = broker
        self._recogniser = recogniser
        self._engines = engines
        self._partials = recogniser.partials
        self._lease = lease
        self._max_backlog = max_backlog
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self._stale_at = 0.0
        self._full: Collection[str] = ()  # API keys whose backlog allows no more claims
        self._backlog_checked_at = 0.0
        self._streams_due = 0.0  # when the next group of live streams is read
        self._turn = 0  # counts the groups read
        self._numbers = itertools.count()
        self._read_next: set[str] = set()  # live streams to read without waiting for their group: ended, or behind
        self._wake = asyncio.Event()
        self._stop_renewing = threading.Event()
        self._renewer = threading.Thread(
            target=self._renew,
            args=(LeaseRenewer(url, broker.name), asyncio.get_running_loop()),
            name="lease",
            daemon=True,
        )

    @property
    def backlog(self) -> float:
        """Seconds of audio read and not yet recognised by this worker, beyond what is always in transit."""
        return _backlog(self._of_worker())

    @property
    def streams(self) -> int:
        """Sessions of this worker with an open live stream."""
        return sum(session.is_streaming for session in self._of_worker())

    def _of_worker(self) -> Iterator[Transcriber]:
        for consumer in self.siblings:
            yield from consumer.sessions.values()

    @property
    def partial_interval(self) -> float:
        """Seconds between two partial results of a segment now, where its client asks for no other time."""
        return self._partials.interval(PARTIAL_INTERVAL)

    async def run(self) -> None:
        """Claim and read until stopped."""
        self._renewer.start()
        loop = asyncio.get_running_loop()
        due: float | None = None  # when to read next; None: no sessions, so the next claim blocks
        while not self._stopping:
            now = loop.time()
            if due is not None:
                self._partials.delayed("read", max(0.0, now - due))
            stale = now >= self._stale_at
            try:
                await self.drain.step()
                more = not self.drain.asked and await self._claim(stale)
                if stale and not more:  # a dead worker may have had hundreds
                    self._stale_at = loop.time() + STALE_CHECK_SECONDS
                await self._read(now)
            except Unavailable as exc:
                log.warning("Redis is unavailable: %s", exc)
            due = await self._wait_until_due(now) if self.sessions else None
            if due is None and self.drain.asked:  # no claim has blocked
                await asyncio.sleep(IDLE_BLOCK_SECONDS)

    def on_end(self, sid: str) -> None:
        """Read and recognise the rest of a session now: its client has finished it, and waits."""
        session = self.sessions.get(sid)
        if session is not None and session.is_streaming:
            session.expedite()
            self.on_flush(sid)

    def on_flush(self, sid: str) -> None:
        """Read a session now: its client waits for what was said so far."""
        if sid in self.sessions:
            self._read_next.add(sid)
            self._wake.set()

    def on_release(self) -> None:
        """Claim the sessions of a worker that has gone now: their clients wait."""
        self._stale_at = 0.0
        self._wake.set()

    async def leave(self, timeout: float) -> None:
        """Hand all sessions over to other workers, as long as one could take them.

        Args:
            timeout: Most seconds for it.
        """
        self.leaving = True
        self.drain.ask(True)
        try:
            async with asyncio.timeout(timeout):
                while self.sessions:
                    if not await self._has_successor():
                        return
                    await asyncio.sleep(SUCCESSOR_CHECK_SECONDS)
        except (TimeoutError, Unavailable) as exc:
            log.warning("%d sessions not handed over: %s", len(self.sessions), str(exc) or "no time left")

    async def stop(self, timeout: float) -> None:
        """Claim and read nothing more, finish what has been read, and release all sessions.

        Args:
            timeout: Most seconds for finishing.
        """
        self._stopping = True
        await until(lambda: not any(session.is_busy for session in self.sessions.values()), timeout)
        self._stop_renewing.set()
        if self._renewer.is_alive():  # or a renewal under way holds a released session for a lease
            await asyncio.get_running_loop().run_in_executor(None, self._renewer.join, 5.0)
        await cancel_and_wait(self._tasks.values())
        released = await self._broker.release()
        log.info("released %d sessions", released)

    async def hand_back(self) -> None:
        """If this worker is behind and another has room, release the session with the largest backlog."""
        if self.drain.asked or self.backlog < self._max_backlog or len(self.sessions) < 2:
            return
        offered = _offered(other for other in await self._others() if other["backlog"] < self._max_backlog / 2)
        # There may be none: all were dropped meanwhile, and other workers own them.
        sessions = [session for session in self.sessions.values() if session.model in offered]
        if not sessions:
            return
        session = max(sessions, key=lambda session: session.backlog)
        log.info("session=%s handed back: backlog=%.0f s", session.sid, self.backlog)
        self._drop(session.sid)
        # Later than usual, or this worker would be the first to claim it again.
        self._stale_at = asyncio.get_running_loop().time() + 5 * STALE_CHECK_SECONDS
        await self._broker.release([session.claim.task])

    async def _has_successor(self) -> bool:
        """Whether another worker offers the model of one of the sessions."""
        offered = _offered(await self._others())
        return any(session.model in offered for session in self.sessions.values())

    async def _others(self) -> list[dict[str, Any]]:
        """The heartbeats of the other workers that claim sessions."""
        found = await self._broker.status.heartbeats("worker")
        return [worker for worker in found if worker["name"] != self._broker.name and not worker.get("drained")]

    # -- in the loop ---------------------------------------------------------------------------------------------

    async def _claim(self, stale: bool) -> bool:
        """Claim waiting sessions, a few at a time, while there is room.

        A worker whose backlog is full goes on to claim the sessions of API keys that have less than their share of it.

        Args:
            stale: Also take over sessions whose lease has expired.

        Returns:
            Whether there may be more.
        """
        lease = self._lease if stale else None
        while True:
            self._find_full_keys()
            block = 0.0 if self.sessions else IDLE_BLOCK_SECONDS
            count = max(MIN_CLAIM, len(self.sessions) // CLAIM_SHARE)
            found = await self._broker.claim(lease, count, block, self._full)
            for claim in await asyncio.gather(*(self._broker.acquire(task, sid) for task, sid in found)):
                if claim is not None:
                    await self._take(claim)
            if len(found) < count or self._full or self._stopping:
                return len(found) >= count

    def _find_full_keys(self) -> None:
        """Find the keys whose backlog allows no more claims, every BACKLOG_CHECK_SECONDS."""
        now = asyncio.get_running_loop().time()
        if now < self._backlog_checked_at + BACKLOG_CHECK_SECONDS:
            return
        self._backlog_checked_at = now
        self._full = ()
        if self.backlog >= self._max_backlog:
            held = defaultdict[Share, list[Transcriber]](list)
            for session in self._of_worker():
                held[session.share].append(session)
            self._full = keys_at_share({share: _backlog(mine) for share, mine in held.items()}, self._max_backlog)

    async def _take(self, claim: Claim) -> None:
        self._drop(claim.sid)  # it may be our own, if its lease expired unnoticed: then the new epoch counts
        try:
            session = Transcriber(claim, self._recogniser, self._broker)
        except (ValueError, KeyError, TypeError) as exc:  # it must not stop every worker that claims it
            await self._broker.give_up(claim.task, claim.sid, f"{type(exc).__name__}: {exc}")
            return
        session.number = next(self._numbers)
        self.sessions[claim.sid] = session
        self._recogniser.shares.enter(claim.sid, session.share)
        self._tasks[claim.sid] = asyncio.get_running_loop().create_task(
            self._work(session), name=f"session-{claim.sid}"
        )
        log.info("session=%s claimed epoch=%d events=%d", claim.sid, claim.epoch, len(claim.events))

    async def _work(self, session: Transcriber) -> None:
        try:
            await self._recognise(session)
            self.finished += 1
            log.info("session=%s finished", session.sid)
        except Fenced:
            level = logging.INFO if self.drain.has_handed(session.sid) else logging.WARNING
            log.log(level, "session=%s dropped: owned by another worker", session.sid)
        except Unavailable as exc:
            log.warning("session=%s dropped: %s", session.sid, exc)
        except Exception:
            log.exception("session=%s dropped: unexpected error; it will be claimed again", session.sid)
        if self.sessions.get(session.sid) is session:
            del self.sessions[session.sid], self._tasks[session.sid]
            self._recogniser.shares.leave(session.sid)
            traces.forget(session.sid)

    async def _recognise(self, session: Transcriber) -> None:
        """Recognise a session with the model that it names, or end it with an error."""
        async with AsyncExitStack() as stack:
            try:
                if PoisonTracker(session.claim.fields).is_poison(BEGINNING):
                    message = f"the model {session.model!r} stopped {MAX_STRIKES} workers while it was loaded"
                    raise AsrError("model_unavailable", message)
                engine = await stack.enter_async_context(self._engines.use(session.model, session.sid))
            except AsrError as exc:
                await session.fail(exc)
                return
            session.recognise_with(self._recogniser.using(engine))
            await session.run()

    async def _read(self, now: float) -> None:
        """Read the sessions whose turn it is."""
        read_now, self._read_next = self._read_next, set()
        self._wake.clear()
        group, groups = self._next_group(now)
        full = sum(session.inbox.unread for session in self._of_worker()) > MAX_UNREAD_BYTES
        small, large = dict[str, str](), dict[str, str]()
        for sid, session in self.sessions.items():
            due = session.number % groups == group or not session.is_streaming or sid in read_now
            if due and session.wants_audio and not (full and session.inbox.unread):
                (large if session.inbox.largest_chunk > LARGE_CHUNK_BYTES else small)[sid] = session.inbox.cursor
        for cursors, count in ((small, READ_ENTRIES), (large, READ_LARGE_ENTRIES)):
            for sid, entries in (await self._broker.read_audio(cursors, count)).items():
                owned = self.sessions.get(sid)
                if owned is not None and owned.inbox.cursor == cursors[sid]:
                    if owned.trace is not None:
                        owned.trace.read(entries[-1].index)
                    owned.inbox.put(entries)
                    if len(entries) == count and owned.is_streaming:
                        self._read_next.add(sid)

    def _next_group(self, now: float) -> tuple[int, int]:
        """(group, groups): the group of live streams to read now, or -1 if none is due, and how many groups there are.

        A stream belongs to the group of its session's number modulo the number of groups.
        """
        if now < self._streams_due:
            return -1, 1
        streams = self.streams
        interval = read_interval(streams)
        self._partials.read_every(interval)
        groups = max(1, min(MAX_GROUPS, streams // MIN_GROUP_SIZE))
        self._turn += 1
        self._streams_due = now + interval / groups
        return self._turn % groups, groups

    async def _wait_until_due(self, now: float) -> float:
        """Wait until the next read is due, or sooner for a session that ended. Returns when it was due."""
        loop = asyncio.get_running_loop()
        due = self._next_due(now)
        try:
            async with asyncio.timeout(max(POLL_SECONDS / 4, due - loop.time())):
                await self._wake.wait()
                due = now + POLL_SECONDS
                await asyncio.sleep(due - loop.time())
        except TimeoutError:
            pass
        return due

    def _next_due(self, now: float) -> float:
        """When to read again after a read at `now`."""
        if all(session.is_streaming for session in self.sessions.values()):
            return self._streams_due
        return now + POLL_SECONDS

    def _drop(self, sid: str) -> None:
        self.drain.forget(sid)
        task = self._tasks.pop(sid, None)
        if task is not None:
            task.cancel()
            del self.sessions[sid]
            self._recogniser.shares.leave(sid)
            traces.forget(sid)

    # -- in the lease thread -------------------------------------------------------------------------------------

    def _renew(self, renewer: LeaseRenewer, loop: asyncio.AbstractEventLoop) -> None:
        """Renew the leases, in a thread: a native call that blocks the event loop for seconds must not cost a lease."""
        while not self._stop_renewing.wait(self._lease / 5):
            sessions = list(self.sessions.values())
            held = {session.claim.task: session.sid for session in sessions if not self.drain.has_handed(session.sid)}
            try:
                lost = held.keys() - renewer.renew(list(held))
            except Unavailable as exc:
                log.warning("leases not renewed: %s", exc)
                continue
            for task in lost:
                call_soon(loop, self._lost, held[task], task)
        renewer.close()

    def _lost(self, sid: str, task: Task) -> None:
        session = self.sessions.get(sid)
        if self.drain.has_handed(sid):
            return
        if session is not None and session.claim.task == task and not session.over:
            log.warning("session=%s dropped: another worker has its lease", sid)
            self._drop(sid)


def _backlog(sessions: Iterable[Transcriber]) -> float:
    """Seconds of these sessions' audio that were read and not yet recognised, beyond what is always in transit."""
    seconds = sum(session.backlog - IN_TRANSIT_SECONDS * session.is_streaming for session in sessions)
    return max(0.0, seconds)


def _offered(workers: Iterable[Mapping[str, Any]]) -> set[str | None]:
    """The models that workers offer by their heartbeats; None for sessions that name none."""
    offered: set[str | None] = set()
    for worker in workers:
        offered |= {None, *(model["name"] for model in worker.get("models", ()))}
    return offered


def read_interval(streams: int) -> float:
    """Seconds between two reads of the same live stream, in a worker with this many."""
    return max(POLL_SECONDS, min(MAX_READ_INTERVAL, READ_SECONDS_PER_STREAM * streams))


def call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: object) -> None:
    """Call a function in the event loop from another thread; does nothing if the loop is closed."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *args)
