"""The sessions of one connection, and which of them each message is for."""

from __future__ import annotations

from typing import Any

from asrserver.errors import AsrError, BadRequest
from asrserver.gateway.chunk_order import MAX_INDEX
from asrserver.gateway.session import Session
from asrserver.protocol.native import HEADER, MAX_NAME, Link, named

#: Ended sessions of a connection that are remembered, so that they can be told from unknown ones.
MAX_ENDED = 20

#: Codes of the refusals of messages that cannot be understood: such a message may have been a chunk.
GARBLED = frozenset(("bad_json", "bad_base64", "bad_request"))


class ConnectionSessions(dict[str, Session]):
    """The open sessions of a connection by id, and what is still known of those that ended.

    Attributes:
        current: The session that was started or resumed last: binary frames without a channel are its chunks.
        channels: The session id of each channel. Once there is one, binary frames begin with native.HEADER.
    """

    __slots__ = ("_ended", "channels", "current")

    def __init__(self) -> None:
        self.current: Session | None = None
        self.channels: dict[int, str] = {}
        self._ended: dict[str, tuple[str, str]] = {}  # session id → code and message that later messages get

    def attach(self, session: Session, link: Link) -> None:
        """Add a session that was started or resumed on this connection."""
        self[session.id] = self.current = session
        session.ack_interval = link.ack_interval
        if link.channel is None:
            return
        if len(self.channels) >= MAX_ENDED + len(self):
            ended = (channel for channel, sid in self.channels.items() if sid not in self)
            del self.channels[next(ended, next(iter(self.channels)))]
        self.channels[link.channel] = session.id

    def detach(self, sid: str, code: str, message: str) -> None:
        """Remove a session that is over, or on another connection.

        Args:
            sid: Its id.
            code: The code of the error that answers later messages for it.
            message: The text of that error.
        """
        session = self.pop(sid, None)
        self._ended[sid] = (code, message)
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        if session is self.current:
            self.current = None

    def may_adopt(self, sid: Any) -> bool:
        """Whether a message names a session that this connection never had: perhaps one of a lost connection."""
        return isinstance(sid, str) and 0 < len(sid) <= MAX_NAME and sid not in self and sid not in self._ended

    def lookup(self, sid: Any, index: Any = None) -> Session:
        """Find the session that a message is for: the one that it names, or the current one.

        Args:
            sid: `session_id` as the client sent it.
            index: `chunk_index` as the client sent it; the error repeats it.

        Raises:
            BadRequest: There is no such session on this connection.
        """
        if sid in (None, "") and self.current is not None:
            return self.current
        session = self.get(sid) if isinstance(sid, str) else None
        if session is not None:
            return session
        where = named(sid)
        if isinstance(index, int):
            where["chunk_index"] = index
        if isinstance(sid, str) and sid in self._ended:
            raise BadRequest(*self._ended[sid], **where)
        raise BadRequest(
            "no_session", "there is no such session on this connection: send start or resume first", **where
        )

    def parse_frame(self, data: bytes) -> tuple[Session, int | None, bytes]:
        """Take a binary frame apart.

        Returns:
            Its session, the chunk's index where the frame has one, and the audio.

        Raises:
            BadRequest: The frame is too short, or there is no such session on this connection.
        """
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
        session = self.get(sid) or self.lookup(sid, index)
        return session, index, data[HEADER.size :]

    def parse_run(self, frames: list[bytes]) -> tuple[Session, list[bytes], int | None] | None:
        """Take binary frames apart that are consecutive chunks of one session.

        Returns:
            The session, the audio of each frame, and the first one's index where the frames have any; None if they are
            not consecutive, or if the session's chunks must not be joined.
        """
        session = self.current
        if not self.channels:
            return (session, frames, None) if session is not None and session.joinable else None
        if len(frames[0]) < HEADER.size:
            return None
        channel, index = HEADER.unpack_from(frames[0])
        session = self.get(self.channels.get(channel, ""))
        if session is None or not session.joinable or index >= MAX_INDEX:
            return None
        heads = [HEADER.pack(channel, number) for number in range(index, index + len(frames))]
        if not all(map(bytes.startswith, frames, heads)):
            return None
        return session, [frame[HEADER.size :] for frame in frames], index

    def meant_by(self, error: AsrError) -> list[Session]:
        """The session that a message was for which could not be understood, going by its error; at most one."""
        sid = error.details.get("session_id")
        session = self.get(sid) if sid else self.current
        return [] if session is None else [session]

    @property
    def resumable(self) -> bool:
        """Whether the client can resume all of them."""
        return all(session.resumable for session in self.values())
