"""When frames are sent: as they would have been spoken.

A process sends thousands of frames a second. A timer for each, and a task that it wakes, cost more than the frame
itself, and the server under test shares the machine: so one timer serves all connections.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from heapq import heappop, heappush

from asrserver.client import ClientSession
from asrserver.loadtest.judge import Judgement
from asrserver.loadtest.speech import FRAME_SECONDS
from asrserver.loadtest.tally import Tally

#: Seconds between two looks at what is due: a frame is sent so late at most, for want of a timer of its own. It is far
#: less than what networks do to frames, and the report counts it.
TICK = 0.005


class Clock:
    """Has each pace send what is due, while there are any."""

    def __init__(self) -> None:
        self._paces: set[Pace] = set()
        self._next: list[tuple[float, int, Pace]] = []  # a heap of when each is due; of those removed too, until then
        self._numbers = itertools.count()
        self._ticking = False

    def add(self, pace: Pace) -> None:
        self._paces.add(pace)
        heappush(self._next, (pace.due, next(self._numbers), pace))
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(TICK, self._tick)

    def remove(self, pace: Pace) -> None:
        self._paces.discard(pace)

    def _tick(self) -> None:
        now = time.monotonic()
        while self._next and self._next[0][0] <= now:
            _, number, pace = heappop(self._next)
            if pace in self._paces:
                pace.go()
            if pace in self._paces:
                heappush(self._next, (pace.due, number, pace))
        self._ticking = bool(self._next)
        if self._ticking:
            asyncio.get_running_loop().call_later(TICK, self._tick)


class Pace:
    """The frames of one session, from `begin` on (time.monotonic()): each when its last sample would have been spoken.

    Where the server takes no more, it waits, and is late with what follows until it has caught up.
    """

    def __init__(
        self,
        clock: Clock,
        session: ClientSession,
        frames: Iterator[bytes],
        begin: float,
        judgement: Judgement,
        tally: Tally,
    ) -> None:
        self.due = begin + FRAME_SECONDS
        self._clock = clock
        self._session = session
        self._frames = frames
        self._frame = next(frames, None)
        self._judgement = judgement
        self._tally = tally
        self._late = tally.times["late"]
        self._stopped: asyncio.Future[None]  # while it runs

    async def run(self) -> None:
        """To the end of the frames. Raises ServerError, ConnectionLost."""
        while self._frame is not None:
            self._stopped = asyncio.get_running_loop().create_future()
            self._clock.add(self)
            try:
                await self._stopped
            finally:
                self._clock.remove(self)
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
        self._judgement.sent(index, FRAME_SECONDS)
        self._tally.audio_sent += FRAME_SECONDS
        self.due += FRAME_SECONDS
        self._frame = next(self._frames, None)

    def _stop(self, error: Exception | None = None) -> None:
        self._clock.remove(self)
        if self._stopped.done():  # cancelled in this moment
            return
        if error is None:
            self._stopped.set_result(None)
        else:
            self._stopped.set_exception(error)
