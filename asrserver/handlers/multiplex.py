"""The sessions of one connection, and which of them a message is for."""

from __future__ import annotations

from typing import Any

from asrserver.errors import AsrError, BadRequest
from asrserver.gateway.session import Session
from asrserver.protocol.native import HEADER, Link, named

#: Ended sessions of a connection that are still told apart from unknown ones.
MAX_ENDED = 20

#: Codes of refusals that may have been a session's next chunk, which may come again or be passed over.
UNREAD = frozenset(
    (
        "bad_json",
        "bad_base64",
        "empty_chunk",
        "message_too_large",
        "bad_request",
        "chunk_too_large",
        "quota_exceeded",
        "too_fast",
    )
)


class Carried(dict[str, Session]):
    """The open sessions of a connection, by id; and what is still known of the last ones."""

    __slots__ = ("_ended", "channels", "current")

    def __init__(self) -> None:
        self.current: Session | None = None  # the last one started: binary frames are its chunks
        self.channels: dict[int, str] = {}  # whose are the binary frames, once one was started so
        self._ended: dict[str, tuple[str, str]] = {}  # what is said of each: code, message

    def carry(self, session: Session, link: Link) -> None:
        """The session is on this connection."""
        self[session.id] = self.current = session
        session.ack_interval = link.ack_interval
        if link.channel is None:
            return
        if len(self.channels) >= MAX_ENDED + len(self):
            ended = (channel for channel, sid in self.channels.items() if sid not in self)
            del self.channels[next(ended, next(iter(self.channels)))]
        self.channels[link.channel] = session.id

    def forget(self, sid: str, code: str, message: str) -> None:
        """The session is over, or not here any more; `code` and `message` answer what still comes for it."""
        session = self.pop(sid, None)
        self._ended[sid] = (code, message)
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        if session is self.current:
            self.current = None

    def meant(self, sid: Any, index: Any = None) -> Session:
        """The session that a message is for, whose chunk has this index: the one it names, or the last.

        Raises BadRequest where there is none. Both arguments are as the client sent them.
        """
        if sid in (None, "") and self.current is not None:
            return self.current
        session = self.get(sid) if isinstance(sid, str) else None
        if session is None:
            told = named(sid)
            if isinstance(index, int):
                told["chunk_index"] = index
            if isinstance(sid, str) and sid in self._ended:
                code, text = self._ended[sid]
                raise BadRequest(code, text, **told)
            raise BadRequest(
                "no_session", "there is no such session on this connection: send start or resume first", **told
            )
        return session

    def framed(self, data: bytes) -> tuple[Session, int | None, bytes]:
        """The session of a binary frame, the chunk_index where the frame has one, and its audio."""
        if not self.channels:
            if self.current is None:
                raise BadRequest("no_session", "audio came before start")
            return self.current, None, data
        if len(data) < HEADER.size:
            raise BadRequest("bad_request", f"a binary frame begins with {HEADER.size} bytes: channel and chunk_index")
        channel, index = HEADER.unpack_from(data)
        sid = self.channels.get(channel)
        if sid is None:
            raise BadRequest("no_session", f"there is no session with the channel {channel}", chunk_index=index)
        session = self.get(sid) or self.meant(sid, index)
        return session, index, data[HEADER.size :]

    def run(self, frames: list[bytes]) -> tuple[Session, list[bytes]] | None:
        """The session whose next chunks these frames are, one after another, and their audio; None if they are not."""
        session, index, pieces = self.current, None, frames
        if self.channels:
            if len(frames[0]) < HEADER.size:
                return None
            channel, index = HEADER.unpack_from(frames[0])
            session = self.get(self.channels.get(channel, ""))
        if session is None or not session.borderless or not session.follows(index, len(frames)):
            return None
        if index is not None:
            heads = [HEADER.pack(channel, number) for number in range(index, index + len(frames))]
            if not all(map(bytes.startswith, frames, heads)):
                return None
            pieces = [frame[HEADER.size :] for frame in frames]
        return (session, pieces) if all(pieces) else None

    def unread(self, error: AsrError) -> Session | None:
        """The session whose next chunk a refused message may have been."""
        if error.code not in UNREAD:
            return None
        sid = error.details.get("session_id")
        return self.get(sid) if sid else self.current

    @property
    def resumable(self) -> bool:
        """Whether none of them is lost with the connection."""
        return all(session.resumable for session in self.values())

    @property
    def owed(self) -> bool:
        """Whether one of them still has something to get."""
        return any(session.owed for session in self.values())
