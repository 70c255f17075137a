"""The feed: claims sessions, reads their audio, keeps their leases, and drops what another worker owns."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable

import redis

from asrserver.broker.broker import Broker
from asrserver.broker.lease import LeaseRenewer
from asrserver.broker.replies import Claim
from asrserver.errors import Unavailable
from asrserver.inference.event_log import Fenced
from asrserver.inference.recognise import Recogniser
from asrserver.inference.transcriber import Transcriber
from asrserver.process.aio import cancelled, until

log = logging.getLogger("asrserver.feed")

#: Seconds between reads while there are sessions: chunks come ten a second from each, and one read serves all.
POLL = 0.04

#: Seconds between reads of the live streams: so many for each of them, and the most. What a read brings of a stream is
#: dealt with in one go, and costs much the same whether it is one piece or three. With few streams nobody waits for
#: that; with many, a result is late by no more than WIDEST.
EACH = 0.004
WIDEST = 1.5

#: Live streams that are read together at least, where they are read in groups, one after another; and the most groups.
#: All at once held the loop for a quarter of a second, of a worker with 500, and whatever else was to be done waited.
GROUP = 48
GROUPS = 8

#: Seconds of audio of each live stream that are on their way and no backlog: what a read brings, some of its speech.
ON_ITS_WAY = 1.9

#: Seconds that a worker without sessions waits in Redis for one.
IDLE = 1.0

#: Sessions claimed at a time: few, so that workers that start together share what waits; but of as many as a worker has
#: already, one in so many. Each time takes two round trips, in which it reads nothing: 500 sessions that ended and
#: began again within five seconds were heard seconds late.
CLAIM = 4
CLAIM_SHARE = 8

#: Entries of a session read at a time: of one that sends pieces, and of one whose chunks are files or not yet known.
READ = 16
READ_LARGE = 1

#: Bytes from which a chunk is large.
LARGE = 1 << 16

#: Bytes of unread chunks of all sessions at which only those are read that have none waiting.
MAX_UNREAD = 64 * 2**20

#: Seconds between looks for sessions whose lease ran out.
STALE_EVERY = 1.0

#: Seconds between looks at how far behind it is: each is a look at every session.
WEIGH_EVERY = 0.25


class Feed:
    """A worker's sessions. `max_backlog` is the unrecognised audio, in seconds, at which it claims no more."""

    def __init__(self, broker: Broker, recogniser: Recogniser, *, url: str, lease: float, max_backlog: float) -> None:
        self.sessions: dict[str, Transcriber] = {}
        self.finished = 0
        self._broker = broker
        self.recogniser = recogniser
        self._lease = lease
        self._max_backlog = max_backlog
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self._stale_at = 0.0
        self._full = False  # behind by so much that it claims no more
        self._weighed_at = 0.0
        self._live_at = 0.0  # when live streams are read again
        self._turn = 0  # of the groups in which they are read
        self._numbers = itertools.count()
        self._next_ones: set[str] = set()  # live streams that are read at the next look: they have ended, or are behind
        self._news = asyncio.Event()
        self._stop_renewing = threading.Event()
        self._renewer = threading.Thread(
            target=self._renew,
            args=(LeaseRenewer(url, broker.name), asyncio.get_running_loop()),
            name="lease",
            daemon=True,
        )

    @property
    def backlog(self) -> float:
        """Seconds of audio read and not yet recognised, beyond what is on its way in any case."""
        sessions = self.sessions.values()
        streams = sum(session.live for session in sessions)
        return max(0.0, sum(session.backlog for session in sessions) - ON_ITS_WAY * streams)

    async def run(self) -> None:
        """Claim and read until stopped."""
        self._renewer.start()
        loop = asyncio.get_running_loop()
        pace = self.recogniser.engine.pace
        due: float | None = None  # when to look, if there are sessions; else it waits for one
        while not self._stopping:
            now = loop.time()
            if due is not None:
                pace.waited("read", max(0.0, now - due))
            stale = now >= self._stale_at
            try:
                more = await self._claim(stale)
                if stale and not more:  # a dead worker had hundreds
                    self._stale_at = loop.time() + STALE_EVERY
                await self._read(now)
            except Unavailable as exc:
                log.warning("no broker: %s", exc)
            due = await self._rest(now) if self.sessions else None

    def on_end(self, sid: str) -> None:
        """A session has ended: its client waits for the last word, and not for the next read of all streams."""
        session = self.sessions.get(sid)
        if session is not None and session.live:
            session.hurry()
            self._next_ones.add(sid)
            self._news.set()

    async def stop(self, timeout: float) -> None:
        """Claim and read nothing more, finish what is in hand, give every session up."""
        self._stopping = True
        await until(lambda: not any(session.busy for session in self.sessions.values()), timeout)
        self._stop_renewing.set()
        if self._renewer.is_alive():  # a renewal under way would make what is given up wait for a whole lease
            await asyncio.get_running_loop().run_in_executor(None, self._renewer.join, 5.0)
        await cancelled(self._tasks.values())
        released = await self._broker.release()
        log.info("gave up %d sessions", released)

    async def hand_back(self) -> None:
        """Behind, while another worker has room: give one session up to it, the one with most to do."""
        if self.backlog < self._max_backlog or len(self.sessions) < 2:
            return
        others = [w for w in await self._broker.heartbeats("worker") if w["name"] != self._broker.name]
        if not any(worker["backlog"] < self._max_backlog / 2 for worker in others):
            return
        if not self.sessions:
            return  # dropped while we asked: their leases were another's
        session = max(self.sessions.values(), key=lambda session: session.backlog)
        log.info("session=%s handed back: behind by %.0f s", session.sid, self.backlog)
        self._drop(session.sid)
        self._stale_at = asyncio.get_running_loop().time() + 5 * STALE_EVERY  # or it would be the first to take it
        await self._broker.release([session.claim.task])

    # -- in the loop ---------------------------------------------------------------------------------------------

    async def _claim(self, stale: bool) -> bool:
        """Claim all that wait, some at a time, while there is room; whether there may be more."""
        lease = self._lease if stale else None
        while True:
            if self._is_full():
                return False
            block = 0.0 if self.sessions else IDLE
            most = max(CLAIM, len(self.sessions) // CLAIM_SHARE)
            found = await self._broker.claim(lease, most, block)
            for claim in await asyncio.gather(*(self._broker.acquire(task, sid) for task, sid in found)):
                if claim is not None:
                    self._take(claim)
            if len(found) < most or self._stopping:
                return len(found) == most

    def _is_full(self) -> bool:
        now = asyncio.get_running_loop().time()
        if now >= self._weighed_at + WEIGH_EVERY:
            self._full, self._weighed_at = self.backlog >= self._max_backlog, now
        return self._full

    def _take(self, claim: Claim) -> None:
        self._drop(claim.sid)  # our own, if its lease ran out unnoticed: the new epoch counts
        try:
            session = Transcriber(claim, self.recogniser, self._broker)
        except Exception:  # not written by us: it must not stop every worker that claims it
            log.exception("session=%s cannot be understood", claim.sid)
            return
        session.number = next(self._numbers)
        self.sessions[claim.sid] = session
        self._tasks[claim.sid] = asyncio.get_running_loop().create_task(self._work(session))
        log.info("session=%s claimed epoch=%d events=%d", claim.sid, claim.epoch, len(claim.events))

    async def _work(self, session: Transcriber) -> None:
        try:
            await session.run()
            self.finished += 1
            log.info("session=%s finished", session.sid)
        except Fenced:
            log.warning("session=%s dropped: another worker owns it", session.sid)
        except Unavailable as exc:
            log.warning("session=%s dropped: %s", session.sid, exc)
        except Exception:
            log.exception("session=%s dropped: it will be claimed again", session.sid)
        if self.sessions.get(session.sid) is session:
            del self.sessions[session.sid], self._tasks[session.sid]

    async def _read(self, now: float) -> None:
        at_once, self._next_ones = self._next_ones, set()
        self._news.clear()
        group, groups = self._whose_turn(now)
        full = sum(session.unread for session in self.sessions.values()) > MAX_UNREAD
        small, large = dict[str, str](), dict[str, str]()
        for sid, session in self.sessions.items():
            due = session.number % groups == group or not session.live or sid in at_once
            if due and session.hungry and not (full and session.unread):
                (large if session.largest > LARGE else small)[sid] = session.cursor
        for cursors, count in ((small, READ), (large, READ_LARGE)):
            for sid, entries in (await self._broker.read_audio(cursors, count)).items():
                owned = self.sessions.get(sid)
                if owned is not None and owned.cursor == cursors[sid]:
                    owned.feed(entries)
                    if len(entries) == count and owned.live:
                        self._next_ones.add(sid)

    def _whose_turn(self, now: float) -> tuple[int, int]:
        """(group, groups): which of the groups of live streams is read now; none is where nobody's turn has come."""
        if now < self._live_at:
            return -1, 1
        streams = sum(session.live for session in self.sessions.values())
        every = self.recogniser.engine.pace.grain = grain(streams)
        groups = max(1, min(GROUPS, streams // GROUP))
        self._turn += 1
        self._live_at = now + every / groups
        return self._turn % groups, groups

    async def _rest(self, now: float) -> float:
        """Wait until it is time to look again, having looked now; when that was due."""
        loop = asyncio.get_running_loop()
        due = self._next(now)
        try:
            async with asyncio.timeout(max(POLL / 4, due - loop.time())):
                await self._news.wait()
                due = now + POLL
                await asyncio.sleep(due - loop.time())
        except TimeoutError:
            pass
        return due

    def _next(self, now: float) -> float:
        """When to look again, having looked now."""
        return self._live_at if all(session.live for session in self.sessions.values()) else now + POLL

    def _drop(self, sid: str) -> None:
        task = self._tasks.pop(sid, None)
        if task is not None:
            task.cancel()
            del self.sessions[sid]

    # -- in the lease thread -------------------------------------------------------------------------------------

    def _renew(self, renewer: LeaseRenewer, loop: asyncio.AbstractEventLoop) -> None:
        """Renew, from a thread: a native call may hold the worker for seconds, but never its leases."""
        while not self._stop_renewing.wait(self._lease / 5):
            held = {session.claim.task: session.sid for session in list(self.sessions.values())}
            try:
                lost = held.keys() - renewer.renew(list(held))
            except redis.RedisError as exc:
                log.warning("leases not renewed: %s", exc)
                continue
            for task in lost:
                call_soon(loop, self._lost, held[task], task)
        renewer.close()

    def _lost(self, sid: str, task: str) -> None:
        session = self.sessions.get(sid)
        if session is not None and session.claim.task == task and not session.over:
            log.warning("session=%s dropped: its lease is another's", sid)
            self._drop(sid)


def grain(streams: int) -> float:
    """Seconds from one read of each of so many live streams to the next."""
    return max(POLL, min(WIDEST, EACH * streams))


def call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: object) -> None:
    """From a thread, into the loop; nothing if the loop has ended."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *args)
