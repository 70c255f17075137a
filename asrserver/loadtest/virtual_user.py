"""One connection of a load test and its sessions, one after another, on the Python client."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator

from asrserver.client import Client, ClientSession, ConnectionLost, ServerError, Watch
from asrserver.loadtest.pacing import Clock, FramePacer
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.speech import FRAME_SECONDS, Part, Scripts, quiet_frames
from asrserver.loadtest.stats import Stats
from asrserver.loadtest.verifier import Event, SessionVerifier

#: Finished sessions of a connection whose names are remembered: what else comes in one is not another's.
REMEMBERED = 32

#: Seconds that a connection listens after its last session: what comes then comes too often.
LINGER = 0.25

#: Seconds without a connection that a try to make it may take.
CONNECT = 10.0

#: Longest pauses after sessions that failed, the first and the last, in seconds; each is a random part of it.
FIRST_PAUSE = 1.0
LAST_PAUSE = 15.0


class Broken(Exception):
    """Raised when a connection is of no use any more: the next session needs another."""


class Observer(Watch):
    """Hears everything on one connection, and has each session's verifier take what is its own."""

    def __init__(self, stats: Stats, seen: Callable[[], None]) -> None:
        self._tally = stats
        self._seen = seen
        self._sessions: dict[str, SessionVerifier] = {}
        self._order: deque[str] = deque()

    def open(self, verifier: SessionVerifier) -> None:
        """What comes in this session's name is for this verifier."""
        self._sessions[verifier.id] = verifier
        self._order.append(verifier.id)
        if len(self._order) > REMEMBERED:
            del self._sessions[self._order.popleft()]

    @property
    def _current(self) -> SessionVerifier | None:
        return self._sessions[self._order[-1]] if self._order else None

    def connected(self, seconds: float) -> None:
        self._tally.times["connect"].add(seconds)
        self._seen()

    def refused(self, reason: Exception, pause: float) -> None:
        self._tally.refusals[f"HTTP {code}" if (code := getattr(reason, "code", 0)) else type(reason).__name__] += 1

    def lost(self, code: int | None) -> None:
        current = self._current
        if current is not None and not current.judged:
            current.lost = True
            current.problem("lost_connection", f"close code {code}")
        else:
            self._tally.failures["lost_connection"] += 1  # between two sessions

    def received(self, event: Event) -> None:
        sid = event.get("session_id")
        owner = self._current if sid is None else self._sessions.get(str(sid))
        if owner is not None:
            owner.received(event)
        elif self._current is not None:
            self._current.problem("other_session", f"a message of type {event.get('type')} for another session's id")


class VirtualUser:
    """Connection `number` of the plan. `deadline` ends it (time.monotonic()): the sentence being said is its last."""

    def __init__(self, number: int, plan: Plan, scripts: Scripts, stats: Stats, begin: float, clock: Clock) -> None:
        self.deadline = begin + plan.duration
        self._begin = begin + plan.starts(number)
        self._number = number
        self._plan = plan
        self._scripts = scripts
        self._tally = stats
        self._clock = clock
        self._quiet = quiet_frames()
        self._sessions = 0
        self._connected = False
        self._failures = 0  # one after another

    async def run(self) -> None:
        """Until the deadline, or all of its sessions are done."""
        await asyncio.sleep(self._begin - time.monotonic())
        while self._more():
            try:
                await self._connect()
            except Broken:
                longest = min(LAST_PAUSE, FIRST_PAUSE * 2**self._failures)
                self._failures += 1
                await asyncio.sleep(min(random.uniform(0, longest), max(0.0, self.deadline - time.monotonic())))

    def _more(self) -> bool:
        if self._plan.sessions and self._sessions >= self._plan.sessions:
            return False
        return not self._sessions or time.monotonic() < self.deadline

    async def _connect(self) -> None:
        """One connection and its sessions; raises Broken."""
        observer = Observer(self._tally, self._have)
        urls = [self._plan.urls[(self._number + turn) % len(self._plan.urls)] for turn in range(len(self._plan.urls))]
        try:
            client = await Client.connect(
                urls, CONNECT, self._plan.key, patience=self._plan.timeout, insist=True, watch=observer
            )
        except Exception as exc:
            verifier = self._verifier()
            verifier.problem("no_connection", str(exc) or type(exc).__name__)
            verifier.judge()
            raise Broken from exc
        self._tally.open += 1
        try:
            while self._more():
                await self._session(client, observer)
            await asyncio.sleep(LINGER)
        finally:
            self._tally.open -= 1
            try:
                await client.close()
            except Exception as exc:  # of its reader, which a message that is none has ended: the session knows
                raise Broken from exc

    def _have(self) -> None:
        if not self._connected:
            self._connected = True
            self._tally.connected += 1

    def _verifier(self) -> SessionVerifier:
        self._sessions += 1
        return SessionVerifier(str(uuid.uuid4()), self._number, self._sessions - 1, self._scripts, self._tally)

    async def _session(self, client: Client, observer: Observer) -> None:
        """One session; raises Broken when it failed in a way that leaves nothing to go on with."""
        verifier = self._verifier()
        observer.open(verifier)
        script = self._scripts.script(self._number, self._sessions - 1)
        self._tally.active += 1
        try:
            began = time.monotonic()
            async with asyncio.timeout(self._plan.timeout):
                session = await client.start(verifier.id, **self._plan.options())
            self._tally.times["start"].add(time.monotonic() - began)
            await self._talk(session, script, verifier)
        except TimeoutError as exc:
            verifier.problem("timeout", f"nothing came for {self._plan.timeout:.0f} s")
            raise Broken from exc
        except ServerError as exc:
            if not verifier.problems:  # not of a kind that the observer saw
                verifier.problem("error", str(exc))
                self._tally.errors[str(exc.event.get("code"))] += 1
            raise Broken from exc
        except (ConnectionLost, OSError) as exc:
            verifier.problem("lost_connection", str(exc))
            raise Broken from exc
        except Exception as exc:
            # The client's reader ends with what a message that is none raised, and its sessions with it.
            verifier.problem("protocol", f"{type(exc).__name__}: {exc}")
            raise Broken from exc
        else:
            self._failures = 0
        finally:
            self._tally.active -= 1
            verifier.judge()

    async def _talk(self, session: ClientSession, script: Iterator[Part], verifier: SessionVerifier) -> None:
        """Say the script, end, and wait for the last word."""
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
        """Frames of 100 ms, when they would have been spoken or all at once."""
        frames = self._frames(script, verifier)
        begin = time.monotonic()
        verifier.begins(begin)
        if self._plan.realtime:
            await FramePacer(self._clock, session, frames, begin, verifier, self._tally).run()
            return
        for frame in frames:
            verifier.sent(await session.send(frame), FRAME_SECONDS)
            self._tally.audio_sent += FRAME_SECONDS

    def _frames(self, script: Iterator[Part], verifier: SessionVerifier) -> Iterator[bytes]:
        """Whoever has sent one takes the next at once: the recording ends with a frame, and not when another is due."""
        quiet = itertools.cycle(self._quiet)
        for count, part in enumerate(script, 1):
            yield from itertools.islice(quiet, part.quiet)
            verifier.says(part.sentence)
            yield from part.sentence.frames
            if self._enough(count):
                return

    async def _utter(self, session: ClientSession, script: Iterator[Part], verifier: SessionVerifier) -> None:
        """A WAV a sentence, when it would have been spoken or all at once."""
        due = time.monotonic()
        for count, part in enumerate(script, 1):
            due += part.quiet * FRAME_SECONDS + part.sentence.seconds
            if self._plan.realtime:
                await self._until(due)
            verifier.says(part.sentence)
            verifier.sent(await session.send(part.sentence.wav), part.sentence.seconds)
            self._tally.audio_sent += part.sentence.seconds
            if self._enough(count):
                return

    async def _until(self, due: float) -> None:
        """Wait until then; what comes later than that is the tester's or the server's fault, and measured."""
        wait = due - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        self._tally.times["late"].add(max(0.0, time.monotonic() - due))

    def _enough(self, count: int) -> bool:
        """Whether a session that has said so many sentences should end: not before it can be told from others."""
        return time.monotonic() >= self.deadline and count >= self._scripts.distinct
