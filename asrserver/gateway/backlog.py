"""Audio that was taken and not yet answered: how much, and since when. An operator's first question under load."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

#: Bytes a second of compressed audio, until the session's own rate is known: 64 kbit/s.
COMPRESSED = 8000.0

#: Seconds of a live stream that are on their way and no backlog: under load they are gathered for one, read once in
#: another, and a worker says every two what it has taken.
ON_ITS_WAY = 4.0

_MAGIC = (b"\x1aE\xdf\xa3", b"OggS", b"fLaC", b"ID3")


@dataclass(slots=True)
class _Flow:
    """One session's unanswered chunks: index → (when it was taken, its bytes). Of those taken together, the last."""

    rate: float  # bytes a second
    live: bool = False  # what it gets are pieces of a stream, which are not answered one by one
    chunks: dict[int, tuple[float, int]] = field(default_factory=dict)
    waiting: int = 0  # bytes
    answered: int = 0  # bytes
    total: float = 0.0  # seconds that are answered
    elsewhere: float = 0.0  # of these, seconds that another gateway took


class Backlog:
    """The unanswered chunks of one gateway's sessions. Seconds are guessed from bytes, by what answers said so far."""

    def __init__(self) -> None:
        self.on_answer: Callable[[str], None] = lambda sid: None  # called when less of a session waits
        self._flows: dict[str, _Flow] = {}
        self._heard: dict[str, float] = {}

    def started(self, sid: str) -> None:
        """A session begins here: nothing of it was heard before."""
        self._heard[sid] = 0.0

    def taken(self, sid: str, index: int, head: bytes, size: int, pcm_rate: float, live: bool) -> None:
        """Chunks of so many bytes came, the last with this index; they begin like `head`.

        `pcm_rate` is the bytes a second of the session's headerless audio; `live`: they are pieces of a stream.
        """
        flow = self._flows.get(sid)
        if flow is None:
            flow = self._flows[sid] = _Flow(_rate(head, pcm_rate), live)
        flow.chunks[index] = (time.monotonic(), size)
        flow.waiting += size

    def restore(self, sid: str, total: float, pcm_rate: float, live: bool) -> None:
        """A session came from elsewhere, with so many seconds of audio answered; what waits of it is not known."""
        flow = self._flows.setdefault(sid, _Flow(pcm_rate, live))
        flow.total = flow.elsewhere = total
        flow.answered = 0

    def answered(self, sid: str, index: int, total: float) -> float | None:
        """A chunk's answer came, with the session's seconds of audio by then; the seconds that the chunk waited."""
        flow = self._flows.get(sid)
        found = flow.chunks.pop(index, None) if flow is not None else None
        if flow is None or found is None:
            return None
        at, size = found
        flow.waiting -= size
        flow.answered += size
        flow.total = total
        if total > flow.elsewhere:
            flow.rate = max(1000.0, flow.answered / (total - flow.elsewhere))
        self.on_answer(sid)
        return time.monotonic() - at

    def heard(self, sid: str, total: float) -> float:
        """The seconds of audio that are new in a session of so many; of one that began elsewhere, from now on."""
        before = self._heard.get(sid)
        self._heard[sid] = total
        return 0.0 if before is None else max(0.0, total - before)

    def progressed(self, sid: str, taken: int, total: float) -> None:
        """The chunks up to an index wait no longer: they are in a recording whose results are not theirs."""
        flow = self._flows.get(sid)
        for index in [index for index in flow.chunks if index <= taken] if flow is not None else ():
            self.answered(sid, index, total)

    def closed(self, sid: str) -> None:
        """No more audio of the session is taken."""
        self.on_answer(sid)

    def over(self, sid: str) -> None:
        """The session is over, or another gateway's."""
        self._flows.pop(sid, None)
        self._heard.pop(sid, None)
        self.on_answer(sid)

    def measure(self, sid: str, head: bytes, size: int, pcm_rate: float) -> tuple[float, float]:
        """Seconds of audio in a session's next bytes, which begin like `head`; and in the session so far, answered or
        not."""
        flow = self._flows.get(sid)
        if flow is None:
            return size / _rate(head, pcm_rate), 0.0
        return size / flow.rate, flow.total + flow.waiting / flow.rate

    def waiting(self, sid: str) -> float:
        """Seconds of a session's audio that wait."""
        flow = self._flows.get(sid)
        return flow.waiting / flow.rate if flow is not None else 0.0

    @property
    def seconds(self) -> float:
        """Seconds of audio that wait, beyond what of live streams is on its way in any case."""
        return sum(max(0.0, flow.waiting / flow.rate - ON_ITS_WAY * flow.live) for flow in self._flows.values())

    @property
    def oldest(self) -> float:
        """Seconds that the oldest chunk has waited."""
        firsts = [next(iter(flow.chunks.values()))[0] for flow in self._flows.values() if flow.chunks]
        return time.monotonic() - min(firsts) if firsts else 0.0


def _rate(data: bytes, pcm_rate: float) -> float:
    """Bytes a second of audio that begins like this."""
    if data[:4] == b"RIFF" and data[12:16] == b"fmt ":
        return max(1000.0, float(int.from_bytes(data[28:32], "little")))  # as the file says itself
    return COMPRESSED if data.startswith(_MAGIC) or data[4:8] == b"ftyp" else pcm_rate
