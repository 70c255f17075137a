"""What one gateway puts up with: how many, how large, how fast, how long. Knows neither Tornado nor Redis.

Every method that refuses raises Refused, and changes nothing then.
"""

from __future__ import annotations

import time
from collections import Counter

from asrserver.auth import address_block
from asrserver.config import Settings
from asrserver.errors import Refused

#: Seconds after which to try again where nobody knows when there will be room.
SOON = 5.0

#: Longest, in seconds, that a chunk which comes too fast is waited with; one that had to wait longer is refused.
PATIENCE = 8.0


class RateMeter:
    """A session's audio against the clock: `factor` seconds of it a second, after a burst."""

    __slots__ = ("_burst", "_due", "_factor", "_sent", "_since", "heard")

    def __init__(self, factor: float, burst: float) -> None:
        self._factor = factor
        self._burst = burst
        self._since = self.heard = time.monotonic()
        self._sent = 0.0
        self._due = 0.0  # when what was sent is no more than might have been

    def record(self, seconds: float) -> None:
        """So much audio was sent now."""
        self._sent += seconds
        self.heard = time.monotonic()
        if self._factor:
            self._due = self._since + (self._sent - self._burst) / self._factor

    @property
    def debt(self) -> float:
        """Seconds until what was sent is no more than might have been; 0 if it is not."""
        left = self._due - time.monotonic()
        return left if left > 0.0 else 0.0

    @property
    def lead(self) -> float:
        """Seconds of audio that were sent faster than it is spoken."""
        return self._sent - (time.monotonic() - self._since)


class Limits:
    """The limits of the settings, and what of them is used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connections = 0
        self._addresses: Counter[str] = Counter()

    def connect(self, address: str) -> None:
        """Count a connection from an address, until `disconnect`."""
        settings, place = self._settings, address_block(address)
        if settings.max_connections and self._connections >= settings.max_connections:
            raise Refused(503, "too_many_connections", "this server has all its connections", retry_after=SOON)
        if settings.max_address_connections and self._addresses[place] >= settings.max_address_connections:
            message = f"{place} has its {settings.max_address_connections} connections"
            raise Refused(429, "too_many_connections", message, retry_after=SOON)
        self._connections += 1
        self._addresses[place] += 1

    def disconnect(self, address: str) -> None:
        """The connection is no more."""
        place = address_block(address)
        self._connections -= 1
        self._addresses[place] -= 1
        if not self._addresses[place]:
            del self._addresses[place]

    def start(self, siblings: int, sessions: int, backlog: float) -> None:
        """May one more session start: beside `siblings` on its connection and `sessions` on this gateway, while
        `backlog` seconds of audio wait in the whole system?"""
        settings = self._settings
        if settings.max_connection_sessions and siblings >= settings.max_connection_sessions:
            message = f"the connection has its {settings.max_connection_sessions} sessions: finish one"
            raise Refused(429, "too_many_sessions", message, retry_after=SOON)
        if settings.max_sessions and sessions >= settings.max_sessions:
            raise Refused(503, "too_many_sessions", "this server has all its sessions", retry_after=SOON)
        if settings.max_queue and backlog >= settings.max_queue:
            raise Refused(503, "overloaded", f"{backlog:.0f} s of audio wait to be recognised", retry_after=SOON)

    def chunk(self, size: int, length: float, meter: RateMeter) -> None:
        """May a session of `length` seconds so far take a chunk of so many bytes now?"""
        settings = self._settings
        if size > settings.max_chunk:
            raise Refused(413, "chunk_too_large", f"a chunk of {size} bytes is over the limit of {settings.max_chunk}")
        if settings.max_session and length >= settings.max_session:
            message = f"the session has its {settings.max_session:.0f} s of audio and is ended"
            raise Refused(413, "session_too_long", message)
        if meter.debt > PATIENCE:
            message = f"audio may come {settings.max_speed:g} times faster than it is spoken"
            raise Refused(429, "too_fast", message, retry_after=round(meter.debt, 1))
