"""One session as its gateway sees it: its state, its acknowledgements, and the order of its results.

The order of its chunks is in chunk_order.py. It knows neither Tornado nor Redis. It gives its events to `send`, in the
order in which the client gets them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from asrserver.errors import AsrError, BadRequest, Refused
from asrserver.gateway.chunk_order import ChunkOrder
from asrserver.protocol.events import (
    Final,
    Flushed,
    Lost,
    Partial,
    Received,
    Result,
    Resumed,
    SessionEvent,
    SpeechStarted,
)
from asrserver.protocol.options import Options

if TYPE_CHECKING:
    from asrserver.gateway.rate_limits import RateMeter
    from asrserver.telemetry.gateway_traces import SessionTrace

#: Flushes of one session that may wait for their answer: each is an entry in Redis.
MAX_FLUSHES = 32

#: Chunks, and their bytes, after which a delayed acknowledgement is sent at once. The windows of clients are larger.
MAX_UNACKNOWLEDGED = 16
MAX_UNACKNOWLEDGED_BYTES = 1 << 20

#: Sends an event to the client of a session.
Send = Callable[[SessionEvent], None]


class Session:
    """One session on the gateway that holds it.

    Attributes:
        id: The id of the session.
        user_id: The id of the user that the client named; may be empty.
        owner: The id of the API key that started it; empty where there are no keys.
        options: What the client asked for.
        state: recording (it accepts audio), finishing (its results are awaited), or over.
        send: Sends its events to its client; None while there is none.
        pcm_rate: Bytes of its headerless audio that count as one second.
        joinable: Whether chunks may be joined: where one ends means nothing.
        live: Whether its chunks are pieces of a stream, which have no results of their own.
        rate_meter: Measures its audio against the clock; None until its first chunk.
        ack_interval: Seconds for which an acknowledgement may wait for further chunks; 0: none waits.
        failed: Why chunks can no longer be written; None while they can.
        opened: When this gateway got it, by time.monotonic().
        heard: When its last event was delivered, by time.monotonic().
        named: Whether its client has chosen its id.
        resumable: Whether its client said that it will resume; then a shutdown need not wait for it.
        resume_by: Until when (time.monotonic()) its client may resume; None while it is connected.
        replaying: Whether missed events are being sent to its client; new ones wait until then.
        order: The order of its chunks.
        flushes: How often it was flushed.
        flushed: How many of these flushes were answered.
        move: How often the session had moved between gateways when this one got it.
        chunk_count: Chunks that were acknowledged here.
        bytes_in: Bytes of audio that were accepted here.
        results: Results that were delivered here.
        last_event: The id of the last durable event that was taken.
        sent: `seq` of the last event that its client was sent.
        missed: Events that its client has not got and Redis has no more.
        trace: Its spans; None while it has none.
    """

    # Every chunk touches most of these, and a dict would take three times the memory.
    __slots__ = (
        "_acknowledged",
        "_answered",
        "_delayed",
        "_delayed_bytes",
        "_held",
        "_resuming",
        "_seq",
        "_unacknowledged",
        "ack_interval",
        "bytes_in",
        "chunk_count",
        "failed",
        "flushed",
        "flushes",
        "heard",
        "id",
        "joinable",
        "last_event",
        "live",
        "missed",
        "move",
        "named",
        "opened",
        "options",
        "order",
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
        "trace",
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
        self.pcm_rate = options.cost_rate
        self.joinable = options.joinable
        self.live = options.mode == "stream"
        self.rate_meter: RateMeter | None = None
        self.send = send
        self.state = "recording"
        self.failed: AsrError | None = None
        self.opened = self.heard = time.monotonic()
        self.named = False
        self.resumable = False
        self.replaying = False
        self.resume_by: float | None = None
        self._resuming = 0  # attempts to resume it here that are not decided yet
        self.order = ChunkOrder(sid)
        self.flushes = self.flushed = 0
        self.move = 0
        self.bytes_in = 0
        self.results = 0
        self.last_event = "0-1"
        self._unacknowledged: dict[int, int] = {}  # index → acknowledgements owed
        self.chunk_count = 0
        self._acknowledged = -1  # index of the last acknowledged chunk
        self.ack_interval = 0.0
        self._delayed = self._delayed_bytes = 0  # chunks whose acknowledgement waits for the next, and their bytes
        self._answered = -1  # index of the last chunk with a result
        self._seq = 0  # of the last durable event that was taken
        self.sent = 0
        self.missed = 0
        self._held: list[Result] = []  # results that wait for the acknowledgement of their chunk
        self.trace: SessionTrace | None = None

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
            events: Its durable events, oldest first; the oldest of very many are gone. Of these, which `missed` counts,
                the client gets no more than the final text contains.
            last_seq: The last event that the client has; 0: none.
            send: Where its events go.
        """
        session = cls(sid, fields["user_id"], options, send, fields.get("owner", ""))
        session.resumable = True
        session.move = int(fields["moves"])
        session.flushes = session.flushed = int(fields.get("flushes", 0))
        session.state = "finishing" if "end" in fields else "recording"
        if "last" in fields:
            session._acknowledged = int(fields["last"])
            session.order.restore(int(fields["first"]), session._acknowledged)
        session.order.missing.restore(fields.get("missing", ""), session.order.last)
        first = events[0].seq if events else 1
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
        """Return the answer for a client that resumes."""
        return Resumed(
            session_id=self.id,
            state=self.state,
            next_chunk_index=self.order.next_index,
            missed=self.missed,
            flushes=self.flushes,
        )

    @property
    def owed(self) -> bool:
        """Whether results are still to come."""
        return self.state == "finishing" or self._answered < self._acknowledged

    @property
    def in_flight(self) -> int:
        """Accepted chunks that are not acknowledged yet."""
        return len(self._unacknowledged)

    def summary(self) -> str:
        """Its figures on this gateway, for the log."""
        seconds = time.monotonic() - self.opened
        missed = f" missed={self.missed}" if self.missed else ""
        return f"chunks={self.chunk_count} bytes={self.bytes_in} results={self.results} seconds={seconds:.1f}{missed}"

    def end_trace(self, how: str) -> None:
        """End its span, if it has one; `how` says why it left this gateway."""
        if self.trace is not None:
            self.trace.end(how, self.chunk_count, self.bytes_in, self.results)

    def seconds_to_resume(self, connected: float) -> float:
        """Seconds that its client still has to resume; `connected` while there is no need to, or at least that many
        while somebody does."""
        if self.resume_by is None:
            return connected
        left = self.resume_by - time.monotonic()
        return max(left, connected) if self._resuming else left

    @contextmanager
    def while_resuming(self) -> Iterator[None]:
        """Keep the session from being ended, for want of its client, while the client is resuming it.

        They may be several at once, of whom some or all are refused; and the client that is connected may leave.
        """
        self._resuming += 1
        try:
            yield
        finally:
            self._resuming -= 1

    def require_recording(self) -> None:
        """Raise BadRequest if the session was ended."""
        if self.state != "recording":
            raise BadRequest("session_finished", "the session was finished before", session_id=self.id)

    def flush(self) -> int:
        """Count a flush, and return its number.

        Raises:
            BadRequest: The session was ended.
            Refused: Too many were not answered yet.
        """
        self.require_recording()
        if self.flushes - self.flushed >= MAX_FLUSHES:
            message = f"{MAX_FLUSHES} flushes of the session were not answered yet"
            raise Refused(429, "too_fast", message, session_id=self.id, retry_after=1.0)
        self.flushes += 1
        return self.flushes

    def check_chunk(self, index: Any) -> tuple[int, bool]:
        """Check whether a chunk may come; see ChunkOrder.check.

        Raises:
            BadRequest: It is out of order, or the session accepts no more audio.
        """
        if self.state != "recording":
            raise BadRequest("session_finished", "the session accepts no more audio", session_id=self.id)
        return self.order.check(index)

    def appending(self, index: int, count: int, size: int) -> None:
        """Note that `count` new chunks of `size` bytes together, from `index` on, are on their way to Redis."""
        self.order.accept(index, count)
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
        return self.order.count_copy(index)

    def appended(self, index: int, size: int = 0, count: int = 1) -> bool:
        """Note that Redis has chunks: acknowledge them, and deliver the results that waited for it.

        Args:
            index: The index of the first chunk.
            size: Bytes of all chunks.
            count: The number of chunks.

        Returns:
            Whether `acknowledge` must be called `ack_interval` seconds after the chunks came.
        """
        owed = {one: self._unacknowledged.pop(one) for one in range(index, index + count)}
        self.chunk_count += count
        self._acknowledged = max(index + count - 1, self._acknowledged)
        first = not self._delayed
        if self.ack_interval:
            self._delayed += count
            self._delayed_bytes += size
            ending = self.state != "recording" and not self._unacknowledged
            if self._delayed >= MAX_UNACKNOWLEDGED or self._delayed_bytes >= MAX_UNACKNOWLEDGED_BYTES or ending:
                self.acknowledge()
        else:
            for one, times in owed.items():
                for _ in range(times):
                    self._tell(Received(self.id, one))
        if self._held:
            held, self._held = self._held, []
            for event in held:
                self._release(event)
        return first and self._delayed > 0

    def acknowledge(self) -> None:
        """Send the acknowledgement that was delayed, if there is one."""
        if self._delayed:
            self._delayed = self._delayed_bytes = 0
            self._tell(Received(self.id, self._acknowledged, through=True))

    def deliver(self, event: Result) -> bool:
        """Deliver a durable event; one that was taken before changes nothing.

        Returns:
            False if an event before it is missing: that must be read from Redis first.
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

    def deliver_read(self, event: Result) -> bool:
        """Deliver an event that was read from Redis behind the last one: what is missing between, it has no more."""
        lost = max(0, event.seq - 1 - self._seq)
        self._seq += lost
        self.missed += lost
        return self.deliver(event)

    def deliver_passing(self, event: Partial | SpeechStarted) -> bool:
        """Deliver an event that is not kept; return False if the durable event that it follows is still missing."""
        if event.follows > self._seq:
            return False
        if not self._held and self.state != "over":
            self._tell(event)
        return True

    def _release(self, event: Result) -> None:
        index = event.chunk_index
        owing = self._unacknowledged if isinstance(event, Final) else index in self._unacknowledged
        if owing or self._held:
            self._held.append(event)  # Pub/Sub was faster than the reply of Redis to the chunk
            return
        if index is not None:
            self._answered = max(index, self._answered)
        self.results += 1
        if self.send is not None:
            self.sent = event.seq
        if isinstance(event, Flushed):
            self.flushed = max(self.flushed, event.number)
        if isinstance(event, Final):
            self.state = "over"
        self._tell(event)

    def leave(self, error: AsrError, **details: Any) -> None:
        """Send the client its last event on this gateway: why the session is no longer here."""
        send, self.send = self.send, None
        if send is not None:
            send(Lost.of(error, session_id=self.id, **details))

    def _tell(self, event: SessionEvent) -> None:
        if self._delayed:
            self.acknowledge()  # acknowledgements come before results
        if self.send is not None:
            self.send(event)
