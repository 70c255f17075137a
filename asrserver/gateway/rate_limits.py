"""The limits of one gateway: how many, how large, how fast, how long. It knows neither Tornado nor Redis.

Every method that may refuse raises Refused, and then changes nothing.
"""

from __future__ import annotations

import time
from collections import Counter

from asrserver.auth.addresses import address_block
from asrserver.config import Settings
from asrserver.errors import Refused

#: Seconds after which a client should try again where it is unknown when there will be room.
RETRY_AFTER = 5.0

#: Longest delay in seconds of a chunk that comes too fast; one that would have to wait longer is refused.
MAX_DELAY_SECONDS = 8.0


class RateMeter:
    """Measures the audio of a session against the clock: a token bucket.

    After a burst of `burst` seconds of audio, `factor` seconds of audio are allowed in each second; a factor of 0 means
    no limit.

    Attributes:
        heard: The time (time.monotonic()) of the last audio.
    """

    __slots__ = ("_burst", "_due", "_factor", "_sent", "_since", "heard")

    def __init__(self, factor: float, burst: float) -> None:
        self._factor = factor
        self._burst = burst
        self._since = self.heard = time.monotonic()
        self._sent = 0.0
        self._due = 0.0  # the time at which all that was sent is allowed

    def record(self, seconds: float) -> None:
        """Count this many seconds of audio, sent now."""
        self.heard = time.monotonic()
        self._add(seconds)

    def refund(self, seconds: float) -> None:
        """Take back this many seconds: what was sent was shorter than it seemed."""
        self._add(-min(seconds, self._sent))

    def _add(self, seconds: float) -> None:
        self._sent += seconds
        if self._factor:
            self._due = self._since + (self._sent - self._burst) / self._factor

    @property
    def debt(self) -> float:
        """Seconds until all that was sent is allowed; 0 if it is."""
        left = self._due - time.monotonic()
        return left if left > 0.0 else 0.0

    @property
    def lead(self) -> float:
        """Seconds of audio by which the session is ahead of the clock."""
        return self._sent - (time.monotonic() - self._since)


class Limits:
    """The limits that the settings give to one gateway, and how much of them is used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.connections = 0
        self._addresses: Counter[str] = Counter()

    def connect(self, address: str) -> None:
        """Count a connection from an IP address until `disconnect`; raises Refused."""
        settings, block = self._settings, address_block(address)
        if settings.max_connections and self.connections >= settings.max_connections:
            message = f"connection limit reached (max_connections={settings.max_connections})"
            raise Refused(503, "too_many_connections", message, retry_after=RETRY_AFTER)
        if settings.max_address_connections and self._addresses[block] >= settings.max_address_connections:
            message = f"too many connections from {block} (max_address_connections={settings.max_address_connections})"
            raise Refused(429, "too_many_connections", message, retry_after=RETRY_AFTER)
        self.connections += 1
        self._addresses[block] += 1

    def disconnect(self, address: str) -> None:
        """Stop counting a connection."""
        block = address_block(address)
        self.connections -= 1
        self._addresses[block] -= 1
        if not self._addresses[block]:
            del self._addresses[block]

    def start(self, siblings: int, sessions: int) -> None:
        """Check whether one more session may start.

        Args:
            siblings: Sessions on its connection.
            sessions: Sessions of this gateway.

        Raises:
            Refused: A limit is reached.
        """
        settings = self._settings
        if settings.max_connection_sessions and siblings >= settings.max_connection_sessions:
            message = (
                f"session limit of this connection reached (max_connection_sessions={settings.max_connection_sessions})"
            )
            raise Refused(429, "too_many_sessions", message, retry_after=RETRY_AFTER)
        if settings.max_sessions and sessions >= settings.max_sessions:
            message = f"session limit reached (max_sessions={settings.max_sessions})"
            raise Refused(503, "too_many_sessions", message, retry_after=RETRY_AFTER)

    def chunk(self, size: int, length: float, meter: RateMeter) -> None:
        """Check whether a session may send one more chunk now.

        Args:
            size: Bytes of the chunk.
            length: Seconds of audio of the session so far.
            meter: The rate of the session.

        Raises:
            Refused: A limit is reached.
        """
        settings = self._settings
        if size > settings.max_chunk:
            message = f"a chunk of {size} bytes is too large (max_chunk={settings.max_chunk})"
            raise Refused(413, "chunk_too_large", message)
        if settings.max_session and length >= settings.max_session:
            message = f"session exceeded the maximum of {settings.max_session:.0f} s of audio and was ended"
            raise Refused(413, "session_too_long", message)
        if meter.debt > MAX_DELAY_SECONDS:
            message = f"audio was sent more than {settings.max_speed:g} times as fast as it is spoken (max_speed)"
            raise Refused(429, "too_fast", message, retry_after=round(meter.debt, 1))
