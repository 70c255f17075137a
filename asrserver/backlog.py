"""Audio that was taken and not yet answered: how much, and since when. An operator's first question under load."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

#: Bytes a second of compressed audio, until the session's own rate is known: 64 kbit/s.
COMPRESSED = 8000.0

_MAGIC = (b"\x1aE\xdf\xa3", b"OggS", b"fLaC", b"ID3")


@dataclass(slots=True)
class _Flow:
    """One session's unanswered chunks: index → (when it was taken, its bytes)."""

    rate: float  # bytes a second
    chunks: dict[int, tuple[float, int]] = field(default_factory=dict)
    waiting: int = 0  # bytes
    answered: int = 0  # bytes


class Backlog:
    """The unanswered chunks of one gateway's sessions. Seconds are guessed from bytes, by what was answered so far."""

    def __init__(self) -> None:
        self._flows: dict[str, _Flow] = {}
        self._heard: dict[str, float] = {}

    def started(self, sid: str) -> None:
        """A session begins here: nothing of it was heard before."""
        self._heard[sid] = 0.0

    def taken(self, sid: str, index: int, data: bytes, pcm_rate: float) -> None:
        """A chunk came; `pcm_rate` is the bytes a second of the session's headerless audio."""
        flow = self._flows.get(sid)
        if flow is None:
            compressed = data.startswith(_MAGIC) or data[4:8] == b"ftyp"
            flow = self._flows[sid] = _Flow(COMPRESSED if compressed else pcm_rate)
        flow.chunks[index] = (time.monotonic(), len(data))
        flow.waiting += len(data)

    def answered(self, sid: str, index: int, total: float) -> float | None:
        """A chunk's answer came, with the session's seconds of audio by then; the seconds that the chunk waited."""
        flow = self._flows.get(sid)
        found = flow.chunks.pop(index, None) if flow is not None else None
        if flow is None or found is None:
            return None
        at, size = found
        flow.waiting -= size
        flow.answered += size
        if total > 0:
            flow.rate = max(1000.0, flow.answered / total)
        return time.monotonic() - at

    def heard(self, sid: str, total: float) -> float:
        """The seconds of audio that are new in a session of so many; of one that began elsewhere, from now on."""
        before = self._heard.get(sid)
        self._heard[sid] = total
        return 0.0 if before is None else max(0.0, total - before)

    def over(self, sid: str) -> None:
        self._flows.pop(sid, None)
        self._heard.pop(sid, None)

    @property
    def seconds(self) -> float:
        """Seconds of audio that wait."""
        return sum(flow.waiting / flow.rate for flow in self._flows.values())

    @property
    def oldest(self) -> float:
        """Seconds that the oldest chunk has waited."""
        firsts = [next(iter(flow.chunks.values()))[0] for flow in self._flows.values() if flow.chunks]
        return time.monotonic() - min(firsts) if firsts else 0.0
