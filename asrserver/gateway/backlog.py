"""The backlog of a gateway: how much accepted audio has no result yet, and since when.

It is an operator's first question under load. Where channels are recognised separately, a second counts once for each
of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from asrserver.audio import sniff, wav
from asrserver.audio.bounds import ImplausibleAudio
from asrserver.audio.chunking import COMPRESSED_BYTES_PER_SECOND

#: Bytes without a result, of a session and of all sessions of a key on a gateway, at which no more is read: a few
#: seconds of audio may have any number of them. Either may have one chunk more, and `max_chunk` is 48 MiB.
MAX_SESSION_BYTES = 64 << 20
MAX_KEY_BYTES = 256 << 20

#: Seconds of a live stream that are in transit and no backlog. Under load they are batched for up to a second and read
#: once in another, and a worker reports its progress every two.
TRANSIT_SECONDS = 4.0


@dataclass(slots=True)
class _Account:
    """The unanswered audio of one session.

    Attributes:
        rate: Bytes a second.
        live: Whether its chunks are pieces of a stream, which have no results of their own.
        owner: The id of its API key.
        chunks: Chunk index → (time.monotonic() at which it came, bytes, seconds that these seemed to be). Chunks that
            came together have the last index.
        waiting: Bytes without a result.
        answered: Bytes with a result.
        total: Seconds with a result.
        elsewhere: How many of these seconds another gateway had accepted.
        compressed: Whether the rate is a guess until there are results.
    """

    rate: float
    live: bool = False
    owner: str = ""
    chunks: dict[int, tuple[float, int, float]] = field(default_factory=dict)
    waiting: int = 0
    answered: int = 0
    total: float = 0.0
    elsewhere: float = 0.0
    compressed: bool = False


class Backlog:
    """The unanswered audio of a gateway's sessions.

    Seconds are estimated from bytes, by the rate that the results of the session have shown so far.

    Attributes:
        on_answer: Called with the id of a session when less of it waits.
        on_shorter: Called with the id of a session and seconds by which its audio was shorter than it seemed.
    """

    def __init__(self) -> None:
        self.on_answer: Callable[[str], None] = lambda sid: None
        self.on_shorter: Callable[[str, float], None] = lambda sid, seconds: None
        self._accounts: dict[str, _Account] = {}
        self._heard: dict[str, float] = {}
        self._bytes: dict[str, int] = {}  # by key

    def started(self, sid: str) -> None:
        """Count a session that starts here: none of its audio was recognised before."""
        self._heard[sid] = 0.0

    def taken(
        self,
        sid: str,
        index: int,
        head: bytes,
        size: int,
        pcm_rate: float,
        live: bool,
        owner: str = "",
        separate: bool = False,
    ) -> None:
        """Count chunks that came together.

        Args:
            sid: The id of the session.
            index: The index of the last chunk.
            head: The first chunk: its beginning tells a container from PCM.
            size: Bytes of all chunks.
            pcm_rate: Bytes a second of the session's headerless audio.
            live: Whether they are pieces of a stream.
            owner: The id of the session's API key; empty if there is none.
            separate: Whether its channels are recognised separately, and each costs as much as a recording.
        """
        account = self._accounts.get(sid)
        if account is None:
            rate = _rate(head, pcm_rate, separate)
            account = _Account(rate, live, owner, compressed=rate == COMPRESSED_BYTES_PER_SECOND)
            self._accounts[sid] = account
        account.chunks[index] = (time.monotonic(), size, size / account.rate)
        self._add(account, size)

    def _add(self, account: _Account, size: int) -> None:
        """Count bytes that wait; with a negative number, bytes that no longer do."""
        account.waiting += size
        total = self._bytes.pop(account.owner, 0) + size
        if total:
            self._bytes[account.owner] = total

    def restore(self, sid: str, total: float, pcm_rate: float, live: bool, owner: str = "") -> None:
        """Count a session that came from another gateway with `total` seconds answered; what waits of it is unknown."""
        account = self._accounts.setdefault(sid, _Account(pcm_rate, live, owner))
        account.total = account.elsewhere = total
        account.answered = 0

    def answered(self, sid: str, index: int, total: float) -> float | None:
        """Count the result of a chunk.

        Args:
            sid: The id of the session.
            index: The index of the chunk.
            total: Seconds of audio of the session with a result by now.

        Returns:
            Seconds that the chunk waited; None if it is unknown here.
        """
        account = self._accounts.get(sid)
        found = account.chunks.pop(index, None) if account is not None else None
        if account is None or found is None:
            return None
        at, size, seconds = found
        self._add(account, -size)
        account.answered += size
        surplus = seconds - max(0.0, total - account.total)
        account.total = total
        if total > account.elsewhere:
            account.rate = max(1000.0, account.answered / (total - account.elsewhere))
        elif account.compressed:  # a picture in the tags, an index: bytes without audio count as a second, however many
            account.rate = max(account.rate, float(account.answered))
        if account.compressed and surplus > 0:
            self.on_shorter(sid, surplus)
        self.on_answer(sid)
        return time.monotonic() - at

    def heard(self, sid: str, total: float) -> float:
        """Return how many of a session's `total` recognised seconds are new since the last call.

        Of a session that began on another gateway, those from now on count.
        """
        before = self._heard.get(sid)
        self._heard[sid] = total
        return 0.0 if before is None else max(0.0, total - before)

    def progressed(self, sid: str, taken: int, total: float) -> None:
        """Count the chunks up to the index `taken` as answered: pieces of a stream have no results of their own."""
        account = self._accounts.get(sid)
        for index in [index for index in account.chunks if index <= taken] if account is not None else ():
            self.answered(sid, index, total)

    def closed(self, sid: str) -> None:
        """No more audio of the session is taken."""
        self.on_answer(sid)

    def over(self, sid: str) -> None:
        """The session is over, or another gateway's."""
        account = self._accounts.pop(sid, None)
        if account is not None:
            self._add(account, -account.waiting)
        self._heard.pop(sid, None)
        self.on_answer(sid)

    def measure(self, sid: str, head: bytes, size: int, pcm_rate: float, separate: bool = False) -> tuple[float, float]:
        """Estimate seconds of audio: in the next `size` bytes of a session, which begin like `head`; and in the session
        so far, answered or not."""
        account = self._accounts.get(sid)
        if account is None:
            return size / _rate(head, pcm_rate, separate), 0.0
        return size / account.rate, account.total + account.waiting / account.rate

    def waiting(self, sid: str) -> float:
        """Return the seconds of a session's audio that wait."""
        account = self._accounts.get(sid)
        return account.waiting / account.rate if account is not None else 0.0

    def is_heavy(self, sid: str) -> bool:
        """Whether too many bytes of a session, or of all sessions of its key, wait to read more of it."""
        account = self._accounts.get(sid)
        if account is None:
            return False
        return account.waiting > MAX_SESSION_BYTES or self.is_full_for(account.owner)

    def is_full_for(self, owner: str) -> bool:
        """Whether too many bytes of all sessions of a key wait to read more of any."""
        return self._bytes.get(owner, 0) > MAX_KEY_BYTES

    @property
    def seconds(self) -> float:
        """Seconds of audio that wait, without what of live streams is in transit in any case."""
        return sum(self.by_owner().values())

    def by_owner(self) -> dict[str, float]:
        """Return the same for each API key that has any, by its id; empty for sessions without one."""
        waiting: dict[str, float] = {}
        for account in self._accounts.values():
            seconds = account.waiting / account.rate - TRANSIT_SECONDS * account.live
            if seconds > 0:
                waiting[account.owner] = waiting.get(account.owner, 0.0) + seconds
        return waiting

    @property
    def oldest(self) -> float:
        """Seconds that the oldest unanswered chunk has waited; 0 if there is none."""
        firsts = [next(iter(account.chunks.values()))[0] for account in self._accounts.values() if account.chunks]
        return time.monotonic() - min(firsts) if firsts else 0.0


def _rate(data: bytes, pcm_rate: float, separate: bool) -> float:
    """Estimate the bytes that cost as much as a second of one channel, of audio that begins with `data`."""
    try:
        format = wav.read_format(data)
    except ImplausibleAudio:  # the worker will say so
        return COMPRESSED_BYTES_PER_SECOND
    if format is not None and format.bytes_per_second:
        return format.bytes_per_second / (format.channels if separate else 1)
    return pcm_rate if sniff.container(data, first=False) is None else COMPRESSED_BYTES_PER_SECOND
