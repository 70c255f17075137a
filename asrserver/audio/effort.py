"""The CPU that decoding takes, which is bounded by the audio that comes of it: bytes can be made to cost any.

Demuxers count their steps, which says at once that nothing will come of some bytes. What counts here is everything that
costs time: an index that is read for each sample again, packets of a byte, decoders that packets make expensive.
"""

from __future__ import annotations

import time

from asrserver.audio.bounds import TooMuchWork

#: Most seconds of CPU that a stream or a file may take, beside so many for each second of audio in it. Decoding takes
#: 0.002 to 0.02 for each; the index of a file of three hours a tenth of a second at once.
MOST, MOST_PER_SECOND = 1.0, 0.1

#: Steps, of about 20 µs, after which the time is looked at.
STEPS = 64

#: Steps at one go before which its time does not count: asking for it takes a microsecond, and messages of live streams
#: have a few packets each.
FREE_STEPS = 16

#: Seconds of CPU after which others may have their turn, whether there is audio or not.
TURN = 0.02


class Effort:
    """Counts the CPU of the thread that decodes.

    Attributes:
        spent: Seconds of CPU so far.
    """

    def __init__(self) -> None:
        self.spent = 0.0
        self._steps = 0
        self._free = FREE_STEPS  # that are left
        self._since: float | None = None  # none of the time counts yet
        self._turn = 0.0

    def begin(self) -> None:
        """Go on, after what the thread did for others."""
        self._since, self._free = None, FREE_STEPS

    def pause(self) -> None:
        """Count what was done; the thread will do something else."""
        if self._since is not None:
            self.spent += time.thread_time() - self._since
            self._since = None

    def step(self, weight: int = 1) -> bool:
        """Count a step, or so many; True if the time should be looked at, by `is_turn_over`."""
        self._steps += weight
        if self._since is None:
            self._free -= weight
            if self._free <= 0:
                self._since = self._turn = time.thread_time()
        return self._steps >= STEPS

    def is_turn_over(self, heard: float) -> bool:
        """Look at the time; True if others should have their turn.

        Args:
            heard: Seconds of audio so far.

        Raises:
            TooMuchWork: It took too long for so much.
        """
        self._steps = 0
        now = time.thread_time()
        if self._since is None:
            self._turn = now
        else:
            self.spent += now - self._since
        self._since = now
        if self.spent > MOST + MOST_PER_SECOND * heard:
            raise TooMuchWork("decoding takes too long for the audio that comes of it")
        return now - self._turn > TURN
