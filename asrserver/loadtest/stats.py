"""Counts and times that add up, over sessions, connections and processes, and do not grow with the test's length."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

#: Relative width of a histogram's bins: percentiles are right within two percent.
STEP = math.log(1.02)

#: Shortest time that is told from none, in seconds.
LEAST = 1e-4

#: Failed sessions of which what happened is kept.
EXAMPLES = 20

#: What is measured of a session, and what is said of it in the report.
TIMES = {
    "connect": "from the first byte to the WebSocket's upgrade",
    "start": "from `start` to its acknowledgement",
    "ack": "from sending a chunk to its acknowledgement, which may be that of a later one too (`ack_interval`)",
    "first_result": "from sending a session's first speech to the first text",
    "result": "stream: from the end of a segment's speech to its text; chunk: from sending an utterance to its text",
    "finalisation": "from `finish` to `final_result`",
    "late": "how late the tester sent a chunk that was due (its own fault, or the server did not take it)",
}

#: The ways to fail, and what each is.
FAILURES = {
    "wrong_text": "the text differs from the transcript in more words than allowed",
    "other_session": "the text, or a message, is another session's",
    "missing_result": "a chunk or a segment without a result: no chunk_result, or a gap in `seq`",
    "missing_audio": "`final_result` counts fewer chunks or seconds than were sent, or more",
    "missing_ack": "a chunk that was never acknowledged",
    "duplicate": "an acknowledgement or a result that came twice",
    "interrupted": "the session ended with another status than done",
    "error": "the server answered with an error",
    "timeout": "something owed did not come in time",
    "lost_connection": "the connection was lost, whether or not the session could be resumed",
    "no_connection": "there was no connection, for as long as there was patience",
    "protocol": "a message that cannot be understood",
    "tester": "the tester failed: a defect of its own, or a process of it died",
}


@dataclass
class Histogram:
    """Times in seconds, in bins that grow with them."""

    bins: Counter[int] = field(default_factory=Counter)
    total: float = 0.0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        self.bins[math.ceil(math.log(seconds / LEAST) / STEP) if seconds > LEAST else 0] += 1
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
        """Nearest rank; NaN of nothing."""
        left = max(1, math.ceil(share * self.count))
        for bin, count in sorted(self.bins.items()):
            left -= count
            if left <= 0:
                return min(LEAST * math.exp(bin * STEP), self.longest)
        return math.nan

    def __iadd__(self, other: Histogram) -> Histogram:
        self.bins.update(other.bins)
        self.total += other.total
        self.longest = max(self.longest, other.longest)
        return self

    def since(self, before: Histogram) -> Histogram:
        """What was added after `before`; the longest is that of all."""
        return Histogram(self.bins - before.bins, self.total - before.total, self.longest)

    def copy(self) -> Histogram:
        return Histogram(Counter(self.bins), self.total, self.longest)

    def summary(self) -> dict[str, Any]:
        """Count, mean, percentiles and longest, in seconds."""
        values = {f"p{share * 100:g}": self.percentile(share) for share in (0.5, 0.9, 0.95, 0.99)}
        return {"count": self.count, "mean": self.mean, **values, "max": self.longest}


@dataclass
class Stats:
    """What happened so far: `open` and `active` are connections and sessions now, all else only grows."""

    open: int = 0
    active: int = 0
    connected: int = 0  # connections that were had once
    sessions: int = 0  # that were judged
    right: int = 0
    words: int = 0
    word_errors: int = 0
    chunks: int = 0
    partials: int = 0
    audio_sent: float = 0.0  # seconds
    audio_done: float = 0.0  # of sessions that were right
    failures: Counter[str] = field(default_factory=Counter)  # sessions by way to fail; a session may fail in many
    errors: Counter[str] = field(default_factory=Counter)  # what the server called them
    refusals: Counter[str] = field(default_factory=Counter)  # what was tried again
    times: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in TIMES})
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return self.sessions - self.right

    def example(self, what: dict[str, Any]) -> None:
        if len(self.examples) < EXAMPLES:
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


#: What is added as it is: the fields that begin as a number.
_NUMBERS = tuple(each.name for each in fields(Stats) if each.default is not MISSING)


def total(parts: list[Stats]) -> Stats:
    """The sum."""
    result = Stats()
    for one in parts:
        result += one
    return result
