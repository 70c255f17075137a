"""Sends frames in real time.

A process sends thousands of frames per second. A timer and a task wake-up for each would cost more than the frame, on
a machine that the server under test may share: so one timer serves all connections.
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

#: Resolution of the timer in seconds: a frame may be sent that much late. Networks delay frames by far more, and the
#: report counts it.
TIMER_RESOLUTION = 0.005


class Clock:
    """The timer of all pacers: calls each when its next frame is due, until it stops."""

    def __init__(self) -> None:
        self._due = defaultdict[int, list[FramePacer]](list)  # by tick; may contain pacers that have stopped
        self._at = 0  # the last tick that was handled

    def add(self, pacer: FramePacer) -> None:
        """Call the pacer from now on, until its `going` is false."""
        if not self._due:
            self._at = int(time.monotonic() / TIMER_RESOLUTION)
            asyncio.get_running_loop().call_later(TIMER_RESOLUTION, self._tick)
        self._put(pacer)

    def _put(self, pacer: FramePacer) -> None:
        self._due[max(self._at, int(pacer.due / TIMER_RESOLUTION)) + 1].append(pacer)

    def _tick(self) -> None:
        now = int(time.monotonic() / TIMER_RESOLUTION)
        while self._at < now:
            self._at += 1
            for pacer in self._due.pop(self._at, ()):
                if pacer.going:
                    pacer.send_due()
                if pacer.going:
                    self._put(pacer)
        if self._due:
            asyncio.get_running_loop().call_later(TIMER_RESOLUTION, self._tick)


class FramePacer:
    """Sends the frames of one session in real time, each when its last sample would have been spoken.

    When the server applies back-pressure, it waits, and sends the following frames late until it has caught up.

    Args:
        clock: The timer.
        session: The session to send to.
        frames: The frames of FRAME_SECONDS each.
        begin: The time (time.monotonic()) of the first sample.
        verifier: Records what is sent.
        stats: Counts audio and delays.
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
        self._stopped: asyncio.Future[None]  # only while `run` waits

    async def run(self) -> None:
        """Send all frames.

        Raises:
            ServerError: The server ended the session.
            ConnectionLost: The connection is lost for good.
        """
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

    def send_due(self) -> None:
        """Send the frames that are due; stop after the last one, or when the client has no room for more."""
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
        if self._stopped.done():  # cancelled meanwhile
            return
        if error is None:
            self._stopped.set_result(None)
        else:
            self._stopped.set_exception(error)
