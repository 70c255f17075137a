"""A virtual user: one connection of a load test and its consecutive sessions, on the Python client."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator

from asrserver.client import Client, ClientSession, ConnectionLost, ConnectionObserver, HandshakeRefused, ServerError
from asrserver.loadtest.pacing import Clock, FramePacer
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.speech import FRAME_SECONDS, Part, Scripts, quiet_frames
from asrserver.loadtest.stats import Stats
from asrserver.loadtest.verifier import Event, SessionVerifier

#: Finished sessions of a connection that are remembered, so that a late message of one is not blamed on another's.
REMEMBERED = 32

#: Seconds that a connection listens after its last session: any message then is a duplicate.
LINGER = 0.25

#: Seconds that one attempt to connect may take.
CONNECT_TIMEOUT = 10.0

#: Backoff after failed sessions in seconds, first and maximum; each pause is a random part of it (full jitter).
FIRST_BACKOFF = 1.0
MAX_BACKOFF = 15.0


class ConnectionUnusable(Exception):
    """Raised when a connection cannot be used any more: the next session needs a new one."""


class Observer(ConnectionObserver):
    """Receives every message of one connection and passes it to the verifier of its session."""

    def __init__(self, stats: Stats, seen: Callable[[], None]) -> None:
        self._stats = stats
        self._seen = seen
        self._sessions: dict[str, SessionVerifier] = {}
        self._order: deque[str] = deque()

    def open(self, verifier: SessionVerifier) -> None:
        """Pass messages of this session to this verifier from now on."""
        self._sessions[verifier.id] = verifier
        self._order.append(verifier.id)
        if len(self._order) > REMEMBERED:
            del self._sessions[self._order.popleft()]

    @property
    def _current(self) -> SessionVerifier | None:
        return self._sessions[self._order[-1]] if self._order else None

    def connected(self, seconds: float) -> None:
        self._stats.times["connect"].add(seconds)
        self._seen()

    def refused(self, reason: Exception, pause: float) -> None:
        kind = f"HTTP {reason.status}" if isinstance(reason, HandshakeRefused) else type(reason).__name__
        self._stats.refusals[kind] += 1

    def lost(self, code: int | None) -> None:
        current = self._current
        if current is not None and not current.judged:
            current.lost = True
            current.problem("lost_connection", f"close code {code}")
        else:
            self._stats.failures["lost_connection"] += 1  # between two sessions

    def received(self, event: Event) -> None:
        sid = event.get("session_id")
        owner = self._current if sid is None else self._sessions.get(str(sid))
        if owner is not None:
            owner.received(event)
        elif self._current is not None:
            self._current.problem("other_session", f"a message of type {event.get('type')} for another session's id")


class VirtualUser:
    """Connection `number` of the plan. After `deadline` (time.monotonic()) it finishes its sentence and ends."""

    def __init__(self, number: int, plan: Plan, scripts: Scripts, stats: Stats, begin: float, clock: Clock) -> None:
        self.deadline = begin + plan.duration
        self._begin = begin + plan.starts(number)
        self._number = number
        self._plan = plan
        self._scripts = scripts
        self._stats = stats
        self._clock = clock
        self._quiet = quiet_frames()
        self._sessions = 0
        self._connected = False
        self._failures = 0  # consecutive

    async def run(self) -> None:
        """Run sessions until the deadline, or until all of them are done."""
        await asyncio.sleep(self._begin - time.monotonic())
        while self._more():
            try:
                await self._connect()
            except ConnectionUnusable:
                longest = min(MAX_BACKOFF, FIRST_BACKOFF * 2**self._failures)
                self._failures += 1
                await asyncio.sleep(min(random.uniform(0, longest), max(0.0, self.deadline - time.monotonic())))

    def _more(self) -> bool:
        if self._plan.sessions and self._sessions >= self._plan.sessions:
            return False
        return not self._sessions or time.monotonic() < self.deadline

    async def _connect(self) -> None:
        """One connection and its sessions; raises ConnectionUnusable."""
        observer = Observer(self._stats, self._have)
        urls = [self._plan.urls[(self._number + turn) % len(self._plan.urls)] for turn in range(len(self._plan.urls))]
        try:
            client = await Client.connect(
                urls,
                CONNECT_TIMEOUT,
                self._plan.key,
                reconnect_timeout=self._plan.timeout,
                retry=True,
                observer=observer,
            )
        except Exception as exc:
            verifier = self._verifier()
            verifier.problem("no_connection", str(exc) or type(exc).__name__)
            verifier.judge()
            raise ConnectionUnusable from exc
        self._stats.open += 1
        try:
            while self._more():
                await self._session(client, observer)
            await asyncio.sleep(LINGER)
        finally:
            self._stats.open -= 1
            try:
                await client.close()
            except Exception as exc:  # of its reader, which an invalid message has ended: the session reports it
                raise ConnectionUnusable from exc

    def _have(self) -> None:
        if not self._connected:
            self._connected = True
            self._stats.connected += 1

    def _verifier(self) -> SessionVerifier:
        self._sessions += 1
        return SessionVerifier(str(uuid.uuid4()), self._number, self._sessions - 1, self._scripts, self._stats)

    async def _session(self, client: Client, observer: Observer) -> None:
        """One session; raises Broken when it failed in a way that leaves nothing to go on with."""
        verifier = self._verifier()
        observer.open(verifier)
        script = self._scripts.script(self._number, self._sessions - 1)
        self._stats.active += 1
        try:
            began = time.monotonic()
            async with asyncio.timeout(self._plan.timeout):
                session = await client.start(verifier.id, **self._plan.options())
            self._stats.times["start"].add(time.monotonic() - began)
            await self._talk(session, script, verifier)
        except TimeoutError as exc:
            verifier.problem("timeout", f"no message for {self._plan.timeout:.0f} s")
            raise ConnectionUnusable from exc
        except ServerError as exc:
            if not verifier.problems:  # an error that the observer did not see
                verifier.problem("error", str(exc))
                self._stats.errors[str(exc.event.get("code"))] += 1
            raise ConnectionUnusable from exc
        except (ConnectionLost, OSError) as exc:
            verifier.problem("lost_connection", str(exc))
            raise ConnectionUnusable from exc
        except Exception as exc:
            # An invalid message ends the client's reader, and its sessions with it.
            verifier.problem("protocol", f"{type(exc).__name__}: {exc}")
            raise ConnectionUnusable from exc
        else:
            self._failures = 0
        finally:
            self._stats.active -= 1
            verifier.judge()

    async def _talk(self, session: ClientSession, script: Iterator[Part], verifier: SessionVerifier) -> None:
        """Send the script, finish, and wait for the final result."""
        loop = asyncio.get_running_loop()
        watch: asyncio.TimerHandle

        def look() -> None:
            nonlocal watch
            left = verifier.heard + self._plan.timeout - time.monotonic()
            if verifier.owed and left <= 0:
                session.fail(TimeoutError())
            else:
                watch = loop.call_later(max(1.0, left), look)

        watch = loop.call_later(self._plan.timeout, look)
        try:
            await (self._stream if self._plan.protocol_mode == "stream" else self._utter)(session, script, verifier)
            verifier.finishing = verifier.heard = time.monotonic()
            await session.finish()
        finally:
            watch.cancel()

    async def _stream(self, session: ClientSession, script: Iterator[Part], verifier: SessionVerifier) -> None:
        """Send frames of 100 ms, in real time or as fast as possible."""
        frames = self._frames(script, verifier)
        begin = time.monotonic()
        verifier.begins(begin)
        if self._plan.realtime:
            await FramePacer(self._clock, session, frames, begin, verifier, self._stats).run()
            return
        for frame in frames:
            verifier.sent(await session.send(frame), FRAME_SECONDS)
            self._stats.audio_sent += FRAME_SECONDS

    def _frames(self, script: Iterator[Part], verifier: SessionVerifier) -> Iterator[bytes]:
        """The frames of a session. A sender takes the next at once: the end must be known with the last frame sent."""
        quiet = itertools.cycle(self._quiet)
        for count, part in enumerate(script, 1):
            yield from itertools.islice(quiet, part.quiet)
            verifier.says(part.sentence)
            yield from part.sentence.frames
            if self._enough(count):
                return

    async def _utter(self, session: ClientSession, script: Iterator[Part], verifier: SessionVerifier) -> None:
        """Send one WAV per sentence, in real time or as fast as possible."""
        due = time.monotonic()
        for count, part in enumerate(script, 1):
            due += part.quiet * FRAME_SECONDS + part.sentence.seconds
            if self._plan.realtime:
                await self._until(due)
            verifier.says(part.sentence)
            verifier.sent(await session.send(part.sentence.wav), part.sentence.seconds)
            self._stats.audio_sent += part.sentence.seconds
            if self._enough(count):
                return

    async def _until(self, due: float) -> None:
        """Wait until a time, and measure how much later it became."""
        wait = due - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        self._stats.times["late"].add(max(0.0, time.monotonic() - due))

    def _enough(self, count: int) -> bool:
        """Whether a session that has sent `count` sentences should end: not before its text is unique."""
        return time.monotonic() >= self.deadline and count >= self._scripts.distinct
