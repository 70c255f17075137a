"""Where a session's next owner continues, and what it must know: kept in the session's hash, in the field `state`.

The next owner may be a worker of another release, so the rules of protocol/codec.py hold here too: readers ignore
unknown fields, new fields have defaults, and no field changes its meaning. Release 0.1.0 refuses a `border` with a
field that it does not know: new ones of a ResumePoint and its Track are kept beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from asrserver.audio.recording import ResumePoint

#: Id before that of a session's first entry.
BEGINNING = "0-1"


class StreamState(msgspec.Struct, frozen=True):
    """A live stream that a next owner continues.

    Attributes:
        after: Id of the entry before the one in which the point lies.
        kind: Its container; None for headerless PCM.
        sample: The first sample, at 16 kHz, that may be part of a segment still to come.
        skip: Bytes of that entry that lie before the point.
        border: Where the decoder continues: at `sample`, or before it.
        floors: Where channels are recognised separately: `sample` of each channel; `sample` is the lowest of them.
    """

    after: str
    kind: str | None
    sample: int
    skip: int
    border: ResumePoint
    floors: list[int] = []


class Checkpoint(NamedTuple):
    """Where a next owner continues.

    Attributes:
        after: It reads the entries after this one.
        stream: The live stream that continues there; None if there is none.
    """

    after: str
    stream: StreamState | None


class SessionState(msgspec.Struct, frozen=True):
    """What a next owner must know of a session.

    Attributes:
        after: It reads the entries after this one.
        recording: The live stream that continues there; None if there is none.
        total: Seconds of the utterances and live streams that are over.
        language: The session's language code; None: not known yet.
        answered: Index of the last chunk that was answered; -1: none.
        taken: Index of the last chunk that was counted; -1: none.
        chunks: Chunks counted.
        damaged: Index of the last chunk whose damage was reported, before its answer; -1: none.
        further: The same as `total` in the further channels together, where channels are recognised separately.
        languages: What `language` is, of each such channel.
    """

    after: str = BEGINNING
    recording: StreamState | None = None
    total: float = 0.0
    language: str | None = None
    answered: int = -1
    taken: int = -1
    chunks: int = 0
    damaged: int = -1
    further: float = 0.0
    languages: list[str | None] = []

    @property
    def checkpoint(self) -> Checkpoint:
        """Where to continue."""
        return Checkpoint(self.after, self.recording)


#: Fields of a border, and of its track, that are newer than release 0.1.0, which refuses them there. They are kept
#: beside the border, in `clock`, which it ignores.
_NEWER_OF_BORDER = ("time", "others")
_NEWER_OF_TRACK = ("clock", "ticks", "delay")


def encode(state: SessionState) -> str:
    """A state as the session's hash holds it."""
    fields = msgspec.to_builtins(state)
    if state.recording is not None:
        clock: dict[str, Any] = {}
        fields["recording"]["clock"] = clock
        for part, names in _parts(fields["recording"]):
            clock |= {name: part.pop(name) for name in names}
    return msgspec.json.encode(fields).decode()


def decode(text: str | None) -> SessionState:
    """A state from a session's hash; None: no owner has written one yet. Raises ValueError."""
    if text is None:
        return SessionState()
    fields = msgspec.json.decode(text, type=dict[str, Any])
    recording = fields.get("recording")
    if isinstance(recording, dict) and isinstance(clock := recording.get("clock"), dict):
        for part, names in _parts(recording):
            part |= {name: clock[name] for name in names if name in clock}
    return msgspec.convert(fields, SessionState)


def _parts(recording: dict[str, Any]) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """The border of a stream and the track in it, each with the names of its newer fields."""
    border = recording.get("border")
    if isinstance(border, dict):
        yield border, _NEWER_OF_BORDER
        if isinstance(track := border.get("track"), dict):
            yield track, _NEWER_OF_TRACK
