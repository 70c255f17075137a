"""Counts and histograms that add up over sessions, connections and processes, of bounded size."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

#: Relative width of a histogram's bins (log): percentiles are exact within two percent.
BIN_WIDTH = math.log(1.02)

#: Upper edge of the first bin in seconds.
FIRST_BIN = 1e-4

#: Failed sessions that are kept as examples.
MAX_EXAMPLES = 20

#: The times that are measured, with their descriptions for the report.
TIMES = {
    "connect": "from the first byte to the WebSocket upgrade",
    "start": "from `start` to its acknowledgement",
    "ack": "from sending a chunk to its acknowledgement, which may be a cumulative one (`ack_interval`)",
    "first_result": "from sending the first speech of a session to its first text",
    "result": "stream: from the end of speech to the text of the segment; chunk: from sending an utterance to its text",
    "finalisation": "from `finish` to `final_result`",
    "late": "delay of a chunk behind its schedule, by the tester or by back-pressure of the server",
}

#: The kinds of failure, with their descriptions for the report.
FAILURES = {
    "wrong_text": "the text has more word errors than allowed",
    "other_session": "the text or a message belongs to another session",
    "missing_result": "a chunk or a segment without a result: no chunk_result, or a gap in `seq`",
    "missing_audio": "`final_result` counts other chunks or seconds than were sent",
    "missing_ack": "a chunk was never acknowledged",
    "duplicate": "an acknowledgement or a result came twice",
    "interrupted": "the session ended with another status than done",
    "error": "the server answered with an error",
    "timeout": "a pending answer did not come in time",
    "lost_connection": "the connection was lost, whether or not the session could be resumed",
    "no_connection": "no connection could be established within the timeout",
    "protocol": "a message is not valid",
    "tester": "the tester itself failed, or one of its processes died",
}


@dataclass
class Histogram:
    """A histogram of times in seconds, with logarithmic bins."""

    bins: Counter[int] = field(default_factory=Counter)
    total: float = 0.0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        self.bins[math.ceil(math.log(seconds / FIRST_BIN) / BIN_WIDTH) if seconds > FIRST_BIN else 0] += 1
        self.total += seconds
        if seconds > self.longest:
            self.longest = seconds

    @property
    def count(self) -> int:
        return self.bins.total()

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan

    def percentile(self, share: float) -> float:
        """The percentile by nearest rank, in seconds; NaN without values. `share` is between 0 and 1."""
        left = max(1, math.ceil(share * self.count))
        for bin, count in sorted(self.bins.items()):
            left -= count
            if left <= 0:
                return min(FIRST_BIN * math.exp(bin * BIN_WIDTH), self.longest)
        return math.nan

    def __iadd__(self, other: Histogram) -> Histogram:
        self.bins.update(other.bins)
        self.total += other.total
        self.longest = max(self.longest, other.longest)
        return self

    def since(self, before: Histogram) -> Histogram:
        """The values added after the copy `before`; the maximum is that of all values."""
        return Histogram(self.bins - before.bins, self.total - before.total, self.longest)

    def copy(self) -> Histogram:
        return Histogram(Counter(self.bins), self.total, self.longest)

    def summary(self) -> dict[str, Any]:
        """Count, mean, percentiles and longest, in seconds."""
        values = {f"p{share * 100:g}": self.percentile(share) for share in (0.5, 0.9, 0.95, 0.99)}
        return {"count": self.count, "mean": self.mean, **values, "max": self.longest}


@dataclass
class Stats:
    """Cumulative statistics; `open` connections and `active` sessions are present counts."""

    open: int = 0
    active: int = 0
    connected: int = 0  # connections that were ever established
    sessions: int = 0  # checked
    right: int = 0
    words: int = 0
    word_errors: int = 0
    chunks: int = 0
    partials: int = 0
    audio_sent: float = 0.0  # seconds
    audio_done: float = 0.0  # seconds, of correct sessions
    failures: Counter[str] = field(default_factory=Counter)  # sessions by kind of failure; one may fail in several ways
    errors: Counter[str] = field(default_factory=Counter)  # by code
    refusals: Counter[str] = field(default_factory=Counter)  # refused attempts that were retried, by code
    times: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in TIMES})
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return self.sessions - self.right

    def example(self, what: dict[str, Any]) -> None:
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(what)

    def __iadd__(self, other: Stats) -> Stats:
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("failures", "errors", "refusals"):
            getattr(self, name).update(getattr(other, name))
        for name, times in other.times.items():
            self.times[name] += times
        for what in other.examples:
            self.example(what)
        return self


#: The fields that add up as numbers.
_NUMBERS = tuple(each.name for each in fields(Stats) if each.default is not MISSING)


def total(parts: list[Stats]) -> Stats:
    """The sum."""
    result = Stats()
    for one in parts:
        result += one
    return result
