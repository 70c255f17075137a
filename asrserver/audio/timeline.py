"""Gaps in a container's time stamps, which are filled with silence.

A muted recorder, or a connection that lost packets, leaves a gap. Without silence in its place, everything after it
would be early, and so would subtitles. Containers count time in milliseconds or worse, so small differences are no
gaps.
"""

from __future__ import annotations

#: Seconds by which a packet may be late without a gap.
TOLERANCE = 0.1

#: Longest gap in seconds. A longer one means that the clock was set.
MAX_GAP = 3600.0

#: Most seconds of gaps in a recording, beside GAPS_PER_AUDIO for each second of audio: a few bytes could claim hours.
MAX_GAPS = 3600.0
GAPS_PER_AUDIO = 10.0


class Timeline:
    """Compares the time stamps of packets with the audio in them.

    Attributes:
        now: Where the next packet is expected, in seconds of the container's clock; None: unknown.
    """

    def __init__(self, time: float | None = None) -> None:
        """Expect the next packet at `time`, in seconds; None: at any time."""
        self.now = time
        self._since = time  # where the audio begins that `_allowance` does not count yet
        self._allowance = MAX_GAPS

    def gap(self, time: float | None) -> float:
        """Return the seconds that are missing before a packet.

        Args:
            time: When the packet begins, in seconds; None: unknown.
        """
        if time is None:
            return 0.0
        if self.now is None or self._since is None:
            self.now = self._since = time
        late = time - self.now
        if -TOLERANCE <= late <= TOLERANCE:
            return 0.0
        self._allowance = min(MAX_GAPS, self._allowance + GAPS_PER_AUDIO * (self.now - self._since))
        self.now = self._since = time
        if not 0 < late <= MAX_GAP:
            return 0.0
        late = min(late, self._allowance)
        self._allowance -= late
        return late

    def advance(self, seconds: float) -> None:
        """Count the audio of a packet."""
        if self.now is not None:
            self.now += seconds
