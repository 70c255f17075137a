"""One session as its gateway sees it: its state, the order of its chunks and of its results.

Knows neither Tornado nor Redis: what it returns are events in the order in which the client gets them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asrserver.errors import AsrError, BadRequest
from asrserver.protocol.events import Final, Partial, Received, Result, Resumed, SessionEvent
from asrserver.protocol.options import Options

if TYPE_CHECKING:
    from asrserver.gateway.rate_limits import RateMeter

#: Redis stream ids are 64-bit; this is far below, and still more chunks than anyone sends.
MAX_INDEX = 2**48

#: Chunks refused in one session whose indexes are remembered.
MAX_REFUSED = 1000

#: Chunks, and their bytes, after which what may be acknowledged later is at once: clients have larger windows.
MAX_UNACKNOWLEDGED = 16
MAX_UNACKNOWLEDGED_BYTES = 1 << 20

#: Where a session's events go.
Send = Callable[[SessionEvent], None]


class Session:
    """One session on the gateway that holds its client.

    `send` is where events go; None while there is no client. `owner` is the id of the API key that started it, empty
    where there are no keys. States: recording → finishing → over.
    """

    # Every chunk touches most of it: as a dict it would be three times the memory.
    __slots__ = (
        "_acknowledged",
        "_answered",
        "_copied",
        "_copies",
        "_first",
        "_held",
        "_last",
        "_refused",
        "_seq",
        "_skips",
        "_unacknowledged",
        "_unsaid",
        "_unsaid_bytes",
        "ack_interval",
        "borderless",
        "bytes_in",
        "chunk_count",
        "failed",
        "heard",
        "id",
        "last_event",
        "live",
        "missed",
        "move",
        "opened",
        "options",
        "owner",
        "pcm_rate",
        "rate_meter",
        "replaying",
        "results",
        "resumable",
        "resume_by",
        "send",
        "sent",
        "state",
        "user_id",
    )

    def __init__(
        self,
        sid: str,
        user_id: str,
        options: Options,
        send: Send | None,
        owner: str = "",
    ) -> None:
        self.id = sid
        self.user_id = user_id
        self.owner = owner
        self.options = options
        self.pcm_rate = options.bytes_per_second
        self.borderless = options.borderless
        self.live = options.mode == "stream"
        self.rate_meter: RateMeter | None = None  # its audio against the clock, from its first chunk on
        self.send = send
        self.state = "recording"
        self.failed: AsrError | None = None
        self.opened = self.heard = time.monotonic()
        self.resumable = False  # the client said that it resumes: it need not be waited for
        self.replaying = False  # the client gets what it has missed, and nothing else
        self.resume_by: float | None = None  # without a client: until when (time.time()) it may resume
        self.move = 0  # how often the session had changed its gateway when this one got it
        self.bytes_in = 0
        self.results = 0
        self.last_event = "0-1"
        self._first = 0
        self._last: int | None = None  # the index of the last chunk that was accepted
        self._skips = 0  # indexes after it that were refused: the next chunk may be one of them or the one after
        self._refused: set[int] = set()
        self._copied, self._copies = -1, 0  # the chunk of which a copy came last, and how many in a row
        self._unacknowledged: dict[int, int] = {}  # index → acknowledgements owed
        self.chunk_count = 0  # acknowledged here
        self._acknowledged = -1  # the index of the last one
        self.ack_interval = 0.0  # seconds for which acknowledgements may wait for others
        self._unsaid = self._unsaid_bytes = 0  # chunks that are acknowledged together with the next
        self._answered = -1  # the index of the last chunk with a result
        self._seq = 0  # of the last event that was taken
        self.sent = 0  # of the last one that the client was sent
        self.missed = 0  # results that it asked for and Redis has no more
        self._held: list[Result] = []  # results that came before their chunk's acknowledgement

    @classmethod
    def resumed(
        cls,
        sid: str,
        options: Options,
        fields: Mapping[str, str],
        events: Sequence[Result],
        last_seq: int,
        send: Send,
    ) -> Session:
        """Rebuild the session from what Redis has of it, for a client that has its results up to `last_seq`.

        Args:
            sid: Its id.
            options: Its options.
            fields: Its hash.
            events: Its durable events, oldest first; of very many, the oldest are gone. The client gets no more of what
                is `missed` than the final text.
            last_seq: The last event that the client has; 0: none.
            send: Where its events go.

        Raises:
            BadRequest: `last_seq` is past the last of the events.
        """
        session = cls(sid, fields["user_id"], options, send, fields.get("owner", ""))
        session.resumable = True
        session.move = int(fields["moves"])
        session.state = "finishing" if "end" in fields else "recording"
        if "last" in fields:
            session._first, session._last = int(fields["first"]), int(fields["last"])
            session._acknowledged = session._last
        first, last = (events[0].seq, events[-1].seq) if events else (1, 0)
        if last_seq > last:
            raise BadRequest("bad_seq", f"last_seq {last_seq} is past the session's last result", session_id=sid)
        session.missed = max(0, first - 1 - last_seq)
        session._seq = session.sent = last_seq + session.missed
        taken = [event for event in events if event.seq <= last_seq]
        if taken:
            session.last_event = taken[-1].id
            session.state = "over" if isinstance(taken[-1], Final) else session.state
        answers = [event.chunk_index for event in events if event.chunk_index is not None]
        answered = [event.chunk_index for event in taken if event.chunk_index is not None]
        session._answered = max(answered, default=answers[0] - 1 if answers else -1)
        return session

    def resumption(self) -> Resumed:
        """What a client that resumes is answered."""
        return Resumed(session_id=self.id, state=self.state, next_chunk_index=self.next_index, missed=self.missed)

    @property
    def last(self) -> int | None:
        """The index of the last chunk that was accepted."""
        return self._last

    @property
    def next_index(self) -> int:
        """The index of the first chunk that was not accepted."""
        return 0 if self._last is None else self._last + 1

    @property
    def owed(self) -> bool:
        """Whether a result is still to come."""
        return self.state == "finishing" or self._answered < self._acknowledged

    @property
    def in_flight(self) -> int:
        """Chunks accepted and not yet acknowledged."""
        return len(self._unacknowledged)

    def accept(self, index: Any) -> tuple[int, bool]:
        """The index of a chunk, and whether it is new; raises BadRequest for one that cannot be next.

        The first index may be any; then each is the one before plus one. None is the next. A chunk that was refused
        may be sent again or passed over.
        """
        if self.state != "recording":
            raise BadRequest("session_finished", "the session takes no more audio", session_id=self.id)
        following = self.next_index
        if index == following and type(index) is int and index < MAX_INDEX:
            return index, True
        if index is None:
            index = following + self._skips
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < MAX_INDEX:
            raise BadRequest("bad_index", "chunk_index must be a whole number from 0", session_id=self.id)
        if self._last is None:
            return index, True
        if index in self._refused and index < following:
            raise BadRequest("chunk_refused", "this chunk was refused and later ones were taken", **self.where(index))
        if index <= self._last:
            if index < self._first:
                raise self._gap(index, following)
            return index, False
        if index > following + self._skips:
            raise self._gap(index, following)
        return index, True

    def follows(self, index: int | None, count: int) -> bool:
        """Whether so many chunks, from this index on (None: without), are the next and nothing else."""
        if self.state != "recording" or self._skips or self.next_index + count > MAX_INDEX:
            return False
        return index is None or index == self.next_index

    def _gap(self, index: int, expected: int) -> BadRequest:
        return BadRequest(
            "chunk_gap",
            f"chunk {index} was sent where {expected} was expected",
            expected=expected,
            **self.where(index),
        )

    def where(self, index: Any) -> dict[str, Any]:
        """Name a chunk in the details of an error; `index` is as the client sent it."""
        return {"session_id": self.id} | ({"chunk_index": index} if isinstance(index, int) else {})

    def refuse(self, index: int | None = None) -> None:
        """A chunk was refused, perhaps unread: the client may go on with the next, or send this one again."""
        if self._last is None:
            return
        position = self._last + 1 + self._skips
        if (index is None or index == position) and len(self._refused) < MAX_REFUSED:
            self._refused.add(position)
            self._skips += 1

    def appending(self, index: int, count: int, size: int) -> None:
        """Note that `count` new chunks of `size` bytes together, from `index` on, are on their way to Redis."""
        if self._last is None:
            self._first = index
        self._last = index + count - 1
        self._skips = 0
        self._refused.difference_update(range(index, index + count))
        self.bytes_in += size
        self._unacknowledged |= dict.fromkeys(range(index, index + count), 1)

    def repeat(self, index: int) -> int:
        """Acknowledge a copy of a chunk, with the chunk itself if Redis does not have it yet.

        Returns:
            How many copies of this chunk have come in a row.
        """
        if index in self._unacknowledged:
            self._unacknowledged[index] += 1
        else:
            self._tell(Received(self.id, index))
        self._copies = self._copies + 1 if index == self._copied else 1
        self._copied = index
        return self._copies

    def appended(self, index: int, size: int = 0, count: int = 1) -> bool:
        """Redis has so many chunks: acknowledge them, then what was held back for that.

        True if `acknowledge` should be called, `ack_interval` seconds after the chunks came.
        """
        owed = {one: self._unacknowledged.pop(one) for one in range(index, index + count)}
        self.chunk_count += count
        self._acknowledged = max(index + count - 1, self._acknowledged)
        first = not self._unsaid
        if self.ack_interval:
            self._unsaid += count
            self._unsaid_bytes += size
            ending = self.state != "recording" and not self._unacknowledged
            if self._unsaid >= MAX_UNACKNOWLEDGED or self._unsaid_bytes >= MAX_UNACKNOWLEDGED_BYTES or ending:
                self.acknowledge()
        else:
            for one, times in owed.items():
                for _ in range(times):
                    self._tell(Received(self.id, one))
        if self._held:
            held, self._held = self._held, []
            for event in held:
                self._release(event)
        return first and self._unsaid > 0

    def acknowledge(self) -> None:
        """Acknowledge what Redis has and the client was not told."""
        if self._unsaid:
            self._unsaid = self._unsaid_bytes = 0
            self._tell(Received(self.id, self._acknowledged, through=True))

    def deliver(self, event: Result) -> bool:
        """Take a durable event; False if one before it is missing and must be read from the broker.

        An event that was taken before changes nothing.
        """
        if event.seq <= self._seq:
            return True
        if event.seq != self._seq + 1:
            return False
        self._seq = event.seq
        self.last_event = event.id
        self.heard = time.monotonic()
        self._release(event)
        return True

    def deliver_partial(self, event: Partial) -> bool:
        """Pass a partial result on; False if the durable event that it follows is still to come."""
        if event.follows > self._seq:
            return False
        if not self._held and self.state != "over":
            self._tell(event)
        return True

    def _release(self, event: Result) -> None:
        index = event.chunk_index
        owing = self._unacknowledged if isinstance(event, Final) else index in self._unacknowledged
        if owing or self._held:
            self._held.append(event)  # Pub/Sub overtook the reply to our own XADD
            return
        if index is not None:
            self._answered = max(index, self._answered)
        self.results += 1
        if self.send is not None:
            self.sent = event.seq
        if isinstance(event, Final):
            self.state = "over"
        self._tell(event)

    def _tell(self, event: SessionEvent) -> None:
        if self._unsaid:
            self.acknowledge()  # before any result
        if self.send is not None:
            self.send(event)
