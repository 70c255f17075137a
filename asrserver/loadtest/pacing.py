"""When frames are sent: as they would have been spoken.

A process sends thousands of frames a second. A timer for each, and a task that it wakes, cost more than the frame
itself, and the server under test shares the machine: so one timer serves all connections.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator

from asrserver.client import ClientSession
from asrserver.loadtest.speech import FRAME_SECONDS
from asrserver.loadtest.stats import Stats
from asrserver.loadtest.verifier import SessionVerifier

#: Seconds between two looks at what is due: a frame is sent so late, or twice, for want of a timer of its own. It is
#: far less than what networks do to frames, and the report counts it.
TICK = 0.005


class Clock:
    """Has each pace send what is due, for as long as it goes on."""

    def __init__(self) -> None:
        self._due = defaultdict[int, list[FramePacer]](
            list
        )  # by the tick at which they are; those that have stopped too
        self._at = 0  # the last tick that was dealt with

    def add(self, pace: FramePacer) -> None:
        """From now on, until its `going` is no more."""
        if not self._due:
            self._at = int(time.monotonic() / TICK)
            asyncio.get_running_loop().call_later(TICK, self._tick)
        self._put(pace)

    def _put(self, pace: FramePacer) -> None:
        self._due[max(self._at, int(pace.due / TICK)) + 1].append(pace)

    def _tick(self) -> None:
        now = int(time.monotonic() / TICK)
        while self._at < now:
            self._at += 1
            for pace in self._due.pop(self._at, ()):
                if pace.going:
                    pace.go()
                if pace.going:
                    self._put(pace)
        if self._due:
            asyncio.get_running_loop().call_later(TICK, self._tick)


class FramePacer:
    """The frames of one session, from `begin` on (time.monotonic()): each when its last sample would have been spoken.

    Where the server takes no more, it waits, and is late with what follows until it has caught up.
    """

    def __init__(
        self,
        clock: Clock,
        session: ClientSession,
        frames: Iterator[bytes],
        begin: float,
        verifier: SessionVerifier,
        stats: Stats,
    ) -> None:
        self.due = begin + FRAME_SECONDS
        self.going = False
        self._clock = clock
        self._session = session
        self._frames = frames
        self._frame = next(frames, None)
        self._verifier = verifier
        self._stats = stats
        self._late = stats.times["late"]
        self._stopped: asyncio.Future[None]  # while it runs

    async def run(self) -> None:
        """To the end of the frames. Raises ServerError, ConnectionLost."""
        while self._frame is not None:
            self._stopped = asyncio.get_running_loop().create_future()
            self.going = True
            self._clock.add(self)
            try:
                await self._stopped
            finally:
                self.going = False
            if self._frame is not None:
                self._sent(await self._session.send(self._frame))

    def go(self) -> None:
        """Send what is due, and stop at the end, or where there is no room."""
        now = time.monotonic()
        try:
            while self._frame is not None and self.due <= now:
                self._late.add(now - self.due)
                index = self._session.send_nowait(self._frame)
                if index is None:
                    self._stop()
                    return
                self._sent(index)
        except Exception as exc:
            self._stop(exc)
            return
        if self._frame is None:
            self._stop()

    def _sent(self, index: int) -> None:
        self._verifier.sent(index, FRAME_SECONDS)
        self._stats.audio_sent += FRAME_SECONDS
        self.due += FRAME_SECONDS
        self._frame = next(self._frames, None)

    def _stop(self, error: Exception | None = None) -> None:
        self.going = False
        if self._stopped.done():  # cancelled in this moment
            return
        if error is None:
            self._stopped.set_result(None)
        else:
            self._stopped.set_exception(error)
