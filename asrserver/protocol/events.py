"""The events of a session: what workers report about its audio, and what its gateway adds; a class for each.

Every protocol that clients speak is a translation of these (native.py is the first). Three kinds:

Durable      ChunkResult, SegmentResult, Flushed, ErrorEvent, Final. Kept in Redis (asr_events:{sid}) and published to
             the session's gateway. Numbered by `seq` without a gap; stored in PostgreSQL. UnknownEvent stands for one
             of a newer release.
Passing      SpeechStarted, Partial, Progress, Moved. Only published: they may be lost, and nothing depends on them.
Local        Started, Resumed, Received, Refusal, Lost. Made in the gateway for its own client; never in Redis.

Some classes say `gc=False`: no event refers to what holds it, so Python need not look for cycles among them. That saves
an eighth of the cost of storing them (tools/bench_storage.py).

Durable and passing events outlive the process that wrote them, and in a rolling restart the releases before and after
read each other's. The rules for that are in codec.py; a change here must obey them.
"""

from __future__ import annotations

from typing import Any, Self

import msgspec

from asrserver.errors import AsrError


class Word(msgspec.Struct, frozen=True, gc=False):
    """One word of a segment.

    Attributes:
        word: The word as written, without spaces around it.
        start: Seconds from the beginning of the session's audio.
        end: Seconds from the beginning of the session's audio.
        confidence: Mean probability of the word's tokens, 0 to 1.
    """

    word: str
    start: float
    end: float
    confidence: float

    def asdict(self) -> dict[str, Any]:
        """The word as JSON has it."""
        return {"word": self.word, "start": self.start, "end": self.end, "confidence": self.confidence}


def on_channel(channel: int | None) -> dict[str, int]:
    """The field of what was said on a channel; none where channels are mixed."""
    return {} if channel is None else {"channel": channel}


class Segment(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A stretch of speech and its final text: a row of asr_segments.

    Attributes:
        number: Position among the session's segments, from 0.
        start: Seconds from the beginning of the session's audio.
        end: Seconds from the beginning of the session's audio.
        text: What was said; never empty.
        language: ISO 639 code of the language it was recognised in.
        confidence: Mean probability of a token, 0 to 1.
        chunk_index: The chunk that contains it, where chunks are utterances of their own; else None.
        words: The words with their times, if the client asked for them; else empty.
        channel: The channel of the audio, from 0, where channels are recognised separately; else None.
    """

    number: int
    start: float
    end: float
    text: str
    language: str
    confidence: float
    chunk_index: int | None = None
    words: list[Word] = []
    channel: int | None = None

    def asdict(self) -> dict[str, Any]:
        """The segment as JSON has it."""
        return {
            **on_channel(self.channel),
            "number": self.number,
            "start": self.start,
            "end": self.end,
            "text": self.text,
            "language": self.language,
            "confidence": self.confidence,
            "words": [word.asdict() for word in self.words],
        }


class Trace(msgspec.Struct, frozen=True, gc=False):
    """Where a result stands in the trace of its session (telemetry/traces.py).

    Attributes:
        parent: The W3C `traceparent` of its span.
        entry: The index of the last chunk of the audio that completed it.
    """

    parent: str
    entry: int


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What travels between processes.

    Attributes:
        session_id: The session it is of.
        v: Version of the format, codec.VERSION of the writer.
    """

    session_id: str
    v: int = 1


class Durable(Event, frozen=True, kw_only=True):
    """An event that is kept in Redis, and later stored.

    Attributes:
        seq: Number among the session's durable events, from 1, without a gap.
        id: Id of its entry in asr_events:{sid}: "<epoch of the owner>-<number of the owner's event>".
        time: When it was made, in seconds since the Unix epoch.
        worker: Name of the worker that made it.
        model: Name of the model.
        chunk_count: Chunks of the session that were taken by then.
        total: Seconds of the session's audio that were recognised by then.
        language: ISO 639 code: the session's, as far as it is known; of a SegmentResult the segment's own.
        segments: The segments that are final by this event, in order: each segment is in exactly one event.
        channels: Channels of the audio that are recognised separately; 0 where they are mixed.
        further: Seconds of audio in the channels beside the first, as `total` counts those of one.
        trace: Of a session that is traced; else None.
    """

    seq: int
    id: str
    time: float
    worker: str
    model: str
    chunk_count: int
    total: float
    language: str | None
    segments: list[Segment]
    channels: int = 0
    further: float = 0.0
    trace: Trace | None = None

    @property
    def cost(self) -> float:
        """Seconds of audio that were recognised by then, of all channels."""
        return self.total + self.further

    @property
    def chunk_index(self) -> int | None:
        """The chunk that it answers, if it answers one."""
        return None


class ChunkResult(Durable, frozen=True, kw_only=True, tag="chunk"):
    """A chunk was recognised: the one answer to it.

    Attributes:
        chunk_index: The chunk.
        text: What was said in it; of a piece of a continuing recording, what became final with it, perhaps nothing.
        duration: Seconds of audio in it.
        received: When the gateway got it, in seconds since the Unix epoch.
    """

    chunk_index: int
    text: str
    duration: float
    received: float | None = None


class SegmentResult(Durable, frozen=True, kw_only=True, tag="segment"):
    """A segment of a stream has ended: it is the one in `segments`.

    Attributes:
        text: The segment's text.
        cut: Whether it ended only because it was as long as a segment may be: speech went on.
    """

    text: str
    cut: bool = False


class Flushed(Durable, frozen=True, kw_only=True, tag="flushed"):
    """All speech before a flush has its result, in the events before this one.

    Attributes:
        number: Number of the flush among the session's, from 1.
    """

    number: int


class ErrorEvent(Durable, frozen=True, kw_only=True, tag="error"):
    """A chunk could not be recognised, and this is the one answer to it; or a recording could not.

    Attributes:
        code: What went wrong, see codes.py.
        message: The same for people, in one line.
        chunk_index: The chunk, or None where no single one is at fault.
        received: When the gateway got the chunk, in seconds since the Unix epoch.
    """

    code: str
    message: str
    chunk_index: int | None = None
    received: float | None = None


class Final(Durable, frozen=True, kw_only=True, tag="final"):
    """The session is over; nothing follows.

    Attributes:
        status: How it ended: `done`, or `interrupted` where its client was gone.
        text: The text of the whole session, joined as its language joins words.
    """

    status: str
    text: str


class UnknownEvent(Durable, frozen=True, kw_only=True):
    """A durable event that this release cannot read: it is counted, its segments are stored, and no client is told.

    Attributes:
        type: The type it names.
        problem: What could not be read, where the type is known; else empty.
    """

    type: str
    problem: str = ""
    seq: int = 0
    id: str = ""
    time: float = 0.0
    worker: str = ""
    model: str = ""
    chunk_count: int = 0
    total: float = 0.0
    language: str | None = None
    segments: list[Segment] = []

    def placed(self, id: str, seq: int) -> Self:
        """The same with the place among the others that its entry says."""
        return msgspec.structs.replace(self, id=id, seq=seq)


class SpeechStarted(Event, frozen=True, kw_only=True, tag="speech_started"):
    """Speech was found, of which there is no text yet. It may turn out to be none.

    Attributes:
        start: Where it begins, in seconds from the beginning of the session's audio.
        follows: As Partial has it.
        channel: As Segment has it.
        channels: As Durable has it.
    """

    start: float
    follows: int
    channel: int | None = None
    channels: int = 0


class Partial(Event, frozen=True, kw_only=True, tag="partial"):
    """The text so far of a segment that is still growing; the next Partial, or the segment's result, replaces it.

    Attributes:
        start: Where the segment begins, in seconds from the beginning of the session's audio.
        end: Up to where it was heard.
        text: The whole text; empty where a segment turned out to be no speech.
        stable: The beginning of `text` that is not expected to change.
        language: ISO 639 code, or empty where there is no text.
        follows: `seq` of the durable event before it: a reader that does not have that one has missed something.
        channel: As Segment has it.
        channels: As Durable has it.
    """

    start: float
    end: float
    text: str
    stable: str
    language: str
    follows: int
    channel: int | None = None
    channels: int = 0


class Progress(Event, frozen=True, kw_only=True, tag="progress"):
    """Chunks of a stream were taken, which have no answers of their own.

    Attributes:
        taken: Index of the last of them.
        total: Seconds of the session's audio by then.
        further: As Durable has it.
    """

    taken: int
    total: float
    further: float = 0.0

    @property
    def cost(self) -> float:
        """Seconds of the session's audio by then, of all channels."""
        return self.total + self.further


class Moved(Event, frozen=True, kw_only=True, tag="moved"):
    """The session is another gateway's now. Made by the broker's scripts, for the gateway that had it.

    Attributes:
        move: How often the session has changed its gateway: older news is ignored.
        ended: True if the other gateway ended the session because its client was gone; False if a client resumed it.
    """

    move: int
    ended: bool


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """The session has begun.

    Attributes:
        session_id: Its id, the client's or the server's own.
        queued: Sessions that wait for a worker before this one; None where the client did not ask.
        model: The model that will recognise it; None where that depends on the worker that takes it.
    """

    session_id: str
    queued: int | None = None
    model: str | None = None


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """The session goes on on this connection.

    Attributes:
        session_id: Its id.
        state: `recording`; or `finishing`, `over` where it takes no more audio.
        next_chunk_index: The first chunk that the server does not have.
        missed: Durable events after the client's last one that are no longer kept.
        flushes: Flushes that the server has got.
    """

    session_id: str
    state: str
    next_chunk_index: int
    missed: int = 0
    flushes: int = 0


class Received(msgspec.Struct, frozen=True):
    """A chunk is in Redis: it will be recognised, whatever process dies.

    Attributes:
        session_id: Its session.
        chunk_index: The chunk.
        through: Whether it stands for all chunks before it too.
    """

    session_id: str
    chunk_index: int
    through: bool = False


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A request of the client is refused.

    Attributes:
        code: Why, see codes.py.
        message: The same for people, in one line.
        session_id: The session, where there is one.
        chunk_index: The chunk, where there is one.
        expected: Of a chunk that left one out: the index that was expected.
        option: The option whose value cannot be used.
        retry_after: Seconds after which to try again.
        resumable: Whether the session can be resumed; None where it is not lost.
    """

    code: str
    message: str
    session_id: str | None = None
    chunk_index: int | None = None
    expected: int | None = None
    option: str | None = None
    retry_after: float | None = None
    resumable: bool | None = None

    @classmethod
    def of(cls, error: AsrError, **where: Any) -> Self:
        """Make it of an error, whose details take precedence over `where`; some details are only for HTTP."""
        details = {name: value for name, value in (where | error.details).items() if name in cls.__struct_fields__}
        return cls(code=error.code, message=error.message, **details)


class Lost(Refusal, frozen=True, kw_only=True):
    """The session is no longer on this connection: the last event that its client gets there."""


#: Durable events.
Result = ChunkResult | SegmentResult | Flushed | ErrorEvent | Final | UnknownEvent

#: What goes through Redis's Pub/Sub.
Published = Result | SpeechStarted | Partial | Progress | Moved

#: What a session's client may be told.
SessionEvent = Result | SpeechStarted | Partial | Started | Resumed | Received | Refusal | Lost
