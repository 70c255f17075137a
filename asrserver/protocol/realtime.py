"""OpenAI's Realtime interface for transcription, WebSocket /v1/realtime: events of a session to its messages
(platform.openai.com, Realtime API; the fields are those that OpenAI's own libraries, LiveKit and pipecat read).

                                                                 S session.created
C {"type":"session.update","session":{…}}                        S session.updated
C {"type":"input_audio_buffer.append","audio":"<base64>"}
where turns are detected:                                        S input_audio_buffer.speech_started {audio_start_ms}
                                                                 S …transcription.delta {delta}
                                                                 S input_audio_buffer.speech_stopped {audio_end_ms}
C {"type":"input_audio_buffer.commit"}, or as a turn ends        S input_audio_buffer.committed, conversation.item.added
                                                                 S …transcription.delta, …transcription.completed
C {"type":"input_audio_buffer.clear"}                            S input_audio_buffer.cleared
S {"type":"error","error":{"type","code","message","param","event_id"}}

A turn is an item, with one id in all messages of it. Its deltas only add to its text: they have the words that will not
change, and what is missing comes before the end, which has the whole text. `error` tells a client what it did wrong:
some end their session at it. What the server cannot do is said by the close code.
"""

from __future__ import annotations

import itertools
import secrets
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from asrserver.errors import BadRequest
from asrserver.protocol.codes import CODES
from asrserver.protocol.events import (
    ErrorEvent,
    Final,
    Flushed,
    Lost,
    Partial,
    Refusal,
    Segment,
    SegmentResult,
    SessionEvent,
    SpeechStarted,
)
from asrserver.protocol.openai import logprobs
from asrserver.protocol.realtime_session import Setup
from asrserver.text.words import glue, join, words

#: Seconds of audio that a commit needs.
MIN_COMMIT = 0.1

#: Seconds within which the beginnings of two stretches of speech are the same one's.
SAME_START = 0.2

#: Seconds for which speech goes on at most: longer than any segment.
LONGEST_SPEECH = 30.0

#: The error codes that OpenAI has names of its own for.
_CODES = {"unknown_model": "model_not_found", "empty_chunk": "input_audio_buffer_commit_empty"}

#: Errors that are no fault of the client's, or none at all.
_UNTOLD = frozenset(("session_idle", *(code for code, known in CODES.items() if 503 in known.statuses)))

_TRANSCRIPTION = "conversation.item.input_audio_transcription"

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Turn:
    """An utterance, which is an item of the conversation. Times are seconds of the connection's audio.

    Attributes:
        id: The item's.
        start: Where it begins.
        spoken: Whether the client was told that speech began.
        committed: Whether it was told that the item exists.
        segments: What is final of it.
        text: The text of these.
        sent: The deltas so far.
        error: Why something of it could not be recognised.
    """

    id: str
    start: float
    spoken: bool = False
    committed: bool = False
    segments: list[Segment] = field(default_factory=list)
    text: str = ""
    sent: str = ""
    error: ErrorEvent | None = None

    def add(self, segment: Segment) -> None:
        """Add a segment to its text."""
        self.segments.append(segment)
        self.text = join([(self.text, ""), (segment.text, segment.language)])

    def continued(self, text: str, language: str) -> str:
        """The next delta, where this is known of its text now; empty if there is none."""
        if text.startswith(self.sent):
            more = text[len(self.sent) :]
        else:  # a mark or a letter became another: what was sent stays
            rest = glue(words(text, language)[len(words(self.sent, language)) :], language)
            more = join([(self.sent, ""), (rest, language)])[len(self.sent) :]
        self.sent += more
        return more


@dataclass(slots=True)
class _Mark:
    """What is done when all audio before a flush is recognised.

    Attributes:
        number: Of the flush; None: the end of the session is waited for.
        turn: Gets the text, and is complete then; None: the text is dropped.
        end: Where it is, in seconds of the connection's audio.
    """

    number: int | None
    turn: Turn | None
    end: float


class Transcription:
    """The messages of one connection, made of the events of its sessions, which follow each other.

    Attributes:
        event_id: The client's own id of the event that is being handled; an error repeats it.
        id: The id of the connection's session, as its client knows it.
        setup: What the client has asked for.
    """

    def __init__(self, setup: Setup) -> None:
        self.id = new_session_id()
        self.setup = setup
        self.event_id: str | None = None
        self._numbers = itertools.count()
        self._detects = setup.turns is not None
        self._logprobs = False
        self._position = 0.0  # seconds of audio so far
        self._offset = 0.0  # seconds of audio before the present session
        self._covered = 0.0  # seconds up to which the audio is part of a turn that is over, or was cleared
        self._speech: float | None = None  # where the speech began that goes on, as far as is known
        self._turn: Turn | None = None
        self._next: SpeechStarted | Partial | None = None  # speech after the turn, whose result is still awaited
        self._marks: deque[_Mark] = deque()
        self._previous: str | None = None  # the id of the item that was committed last

    # -- what the client does ------------------------------------------------------------------------------------

    def created(self) -> bytes:
        """The first message."""
        return self._message("session.created", session=self._session())

    def updated(self, kind: str) -> bytes:
        """The answer to an update of this type."""
        if kind == "transcription_session.update":
            session = {"id": self.id, **self.setup.old_document()}
            return self._message("transcription_session.updated", session=session)
        return self._message("session.updated", session=self._session())

    def appended(self, seconds: float) -> None:
        """Count audio that came."""
        self._position += seconds

    @property
    def is_speaking(self) -> bool:
        """Whether speech goes on, as far as is known: then the audio should not be cut here."""
        return self._speech is not None and self._position - self._offset - self._speech < LONGEST_SPEECH

    def check_commit(self) -> None:
        """Raise BadRequest where there is (nearly) nothing to commit."""
        seconds = self._position - self._covered
        if seconds < MIN_COMMIT:
            message = f"a commit needs at least 100 ms of audio, and the buffer has {1000 * seconds:.0f} ms"
            raise BadRequest("empty_chunk", message)

    def commit(self, number: int | None) -> Iterator[bytes]:
        """Make the audio so far an item; its text is complete with the flush of this number, or with `settle`."""
        turn = self._turn or self._open(self._covered)
        yield from self._stopped(turn, self._position)
        yield from self._committed(turn)
        self._mark(number, turn)

    def clear(self, number: int | None) -> bytes:
        """Drop the audio so far; the flush is as that of `commit`."""
        self._mark(number, None)
        return self._message("input_audio_buffer.cleared")

    def _mark(self, number: int | None, turn: Turn | None) -> None:
        self._marks.append(_Mark(number, turn, self._position))
        self._turn = self._next = None
        self._covered = self._position

    def begin(self) -> Iterator[bytes]:
        """Go on with another session, which begins with the next audio, and is as the setup says."""
        detected, self._detects = self._detects, self.setup.turns is not None
        self._logprobs = self.setup.logprobs
        self._offset, self._speech = self._position, None
        if self._turn is not None and self._detects != detected:
            yield from self._complete(self._turn, self._position)

    def settle(self) -> Iterator[bytes]:
        """Complete what was committed: no more of it will come."""
        while self._marks:
            yield from self._reached()

    # -- events --------------------------------------------------------------------------------------------------

    def messages(self, event: SessionEvent) -> Iterator[bytes]:
        """Make the messages of an event."""
        match event:
            case SpeechStarted() | Partial():
                self._speech = event.start if isinstance(event, SpeechStarted) or event.text else None
                yield from self._heard(event)
            case SegmentResult():
                for segment in event.segments:
                    if self._speech is not None and self._speech < segment.end:
                        self._speech = None
                    yield from self._segment(segment)
            case Flushed():
                self._speech = None
                if self._marks and self._marks[0].number == event.number:
                    yield from self._reached()
            case ErrorEvent():
                yield from self._failed(event)
            case Final():
                yield from self.settle()
                if self._turn is not None and (self._detects or event.status == "error"):
                    yield from self._complete(self._turn, self._position)
                self._next = None
            case Lost():
                pass
            case Refusal():
                if event.code not in _UNTOLD:
                    yield self._error(event)

    def _heard(self, event: SpeechStarted | Partial) -> Iterator[bytes]:
        """Speech was found, or more is known of what is said."""
        if self._marks:
            turn = self._marks[0].turn  # nothing behind the mark is heard before it is reached
        elif self._detects:
            turn = yield from self._turn_at(event)
        else:
            turn = self._turn
        if isinstance(event, SpeechStarted) or (turn is None and (self._marks or self._detects)):
            return
        if event.text:
            turn = turn or self._open(self._covered)
            yield from self._delta(turn, join([(turn.text, ""), (event.stable, event.language)]), event.language)
        elif turn is not None and self._detects and not self._marks:  # it was no speech
            yield from self._complete(turn, self._offset + event.end)

    def _turn_at(self, event: SpeechStarted | Partial) -> Generator[bytes, None, Turn | None]:
        """The turn that speech belongs to. None: the one before is still to get its text, or has got it."""
        start = self._offset + event.start
        if self._turn is None:
            if start < self._covered - SAME_START or (isinstance(event, Partial) and not event.text):
                return None
            self._turn = yield from self._spoken(start)
        elif start > self._turn.start + SAME_START:
            self._next = event
            return None
        return self._turn

    def _segment(self, segment: Segment) -> Iterator[bytes]:
        if self._marks or not self._detects:
            turn = self._marks[0].turn if self._marks else self._turn or self._open(self._covered)
            if turn is not None:
                turn.add(segment)
                yield from self._delta(turn, turn.text, segment.language)
            return
        start = self._offset + segment.start
        turn = self._turn
        if turn is not None and start > turn.start + SAME_START:
            self._next = None
            yield from self._complete(turn, start)  # that it was no speech was not heard
            turn = None
        if turn is None:
            turn = yield from self._spoken(start)
        turn.add(segment)
        yield from self._complete(turn, self._offset + segment.end)

    def _failed(self, event: ErrorEvent) -> Iterator[bytes]:
        if event.code == "undecodable_audio":
            return  # half a sample at the end
        turn = self._marks[0].turn if self._marks else self._turn or self._open(self._covered)
        if turn is not None:
            turn.error = event
            if self._detects and not self._marks:
                yield from self._complete(turn, max(turn.start, self._offset + event.total))

    def _reached(self) -> Iterator[bytes]:
        """The first mark is reached."""
        mark = self._marks.popleft()
        if mark.turn is not None:
            yield from self._complete(mark.turn, mark.end)

    # -- turns ---------------------------------------------------------------------------------------------------

    def _open(self, start: float) -> Turn:
        self._turn = Turn(f"item_{self.id[-16:]}{next(self._numbers):04d}", start)
        return self._turn

    def _spoken(self, start: float) -> Generator[bytes, None, Turn]:
        """Open a turn in which speech was found."""
        turn = self._open(start)
        turn.spoken = True
        yield self._message("input_audio_buffer.speech_started", audio_start_ms=_ms(start), item_id=turn.id)
        return turn

    def _stopped(self, turn: Turn, end: float) -> Iterator[bytes]:
        if turn.spoken:
            turn.spoken = False
            yield self._message("input_audio_buffer.speech_stopped", audio_end_ms=_ms(end), item_id=turn.id)

    def _committed(self, turn: Turn) -> Iterator[bytes]:
        if turn.committed:
            return
        turn.committed = True
        before, self._previous = self._previous, turn.id
        content = [{"type": "input_audio", "transcript": None}]
        item = {"id": turn.id, "object": "realtime.item", "type": "message", "status": "completed", "role": "user"}
        yield self._message("input_audio_buffer.committed", previous_item_id=before, item_id=turn.id)
        yield self._message("conversation.item.added", previous_item_id=before, item={**item, "content": content})

    def _delta(self, turn: Turn, text: str, language: str) -> Iterator[bytes]:
        more = turn.continued(text, language)
        if more:
            yield self._message(f"{_TRANSCRIPTION}.delta", item_id=turn.id, content_index=0, delta=more)

    def _complete(self, turn: Turn, end: float) -> Iterator[bytes]:
        """End a turn, with its text or with why there is none; go on with the speech after it."""
        yield from self._stopped(turn, end)
        yield from self._committed(turn)
        if turn.error is not None and not turn.segments:
            error = {"type": "server_error", "code": turn.error.code, "message": turn.error.message, "param": None}
            yield self._message(f"{_TRANSCRIPTION}.failed", item_id=turn.id, content_index=0, error=error)
        else:
            if turn.segments:
                yield from self._delta(turn, turn.text, turn.segments[-1].language)
            yield self._completed(turn, end)
        if turn is self._turn:
            self._turn, self._covered = None, max(self._covered, end)
            following, self._next = self._next, None
            if following is not None:
                yield from self._heard(following)

    def _completed(self, turn: Turn, end: float) -> bytes:
        fields: dict[str, Any] = {"item_id": turn.id, "content_index": 0, "transcript": turn.text}
        fields["usage"] = {"type": "duration", "seconds": round(end - turn.start, 3)}
        if turn.segments:
            fields["languages"] = [{"code": code} for code in dict.fromkeys(one.language for one in turn.segments)]
        if self._logprobs:
            fields["logprobs"] = logprobs(turn.segments)
        return self._message(f"{_TRANSCRIPTION}.completed", **fields)

    # -- messages ------------------------------------------------------------------------------------------------

    def _session(self) -> dict[str, Any]:
        return {"id": self.id, **self.setup.document()}

    def _error(self, event: Refusal) -> bytes:
        kind = "server_error" if event.code.startswith("internal") else "invalid_request_error"
        code = _CODES.get(event.code, event.code)
        about = {"message": event.message, "param": event.option, "event_id": self.event_id}
        return self._message("error", error={"type": kind, "code": code, **about})

    def _message(self, kind: str, **fields: Any) -> bytes:
        number = next(self._numbers)
        return _encode({"type": kind, "event_id": f"event_{self.id[-16:]}{number:06d}", **fields})


def new_session_id() -> str:
    """An id as sessions of this interface have."""
    return f"sess_{secrets.token_hex(12)}"


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
