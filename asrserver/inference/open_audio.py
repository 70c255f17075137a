"""What of a session's audio is open: a file that the next chunk may continue, or a live stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asrserver.inference.checkpoint import Checkpoint, StreamState
from asrserver.inference.event_log import Coverage
from asrserver.inference.stream import LiveStream
from asrserver.inference.utterances import RecognisedFile


@dataclass(slots=True)
class OpenFile:
    """A file that is answered and may continue with the next chunk: a recorder's first slice is a file too.

    Attributes:
        before: Id of the entry before it.
        index: The chunk that it is.
        kind: Its container.
        data: Its bytes.
        found: What is in it; None if an earlier owner answered it.
    """

    before: str
    index: int
    kind: str
    data: bytes
    found: RecognisedFile | None


class OpenAudio:
    """Holds at most one: a file, a live stream, or where an earlier owner left a live stream.

    Attributes:
        file: The file, if one is open.
        stream: The live stream, if one is open here.
    """

    def __init__(self, left: Checkpoint, make_stream: Callable[[StreamState | None, str | None], LiveStream]) -> None:
        """Begin with what earlier owners left.

        Args:
            left: Their checkpoint.
            make_stream: Continues a live stream from a state; or without one, begins one in a container (None:
                headerless PCM).
        """
        self.file: OpenFile | None = None
        self.stream: LiveStream | None = None
        self._left = left if left.stream is not None else None
        self._make_stream = make_stream

    def __bool__(self) -> bool:
        return self.file is not None or self.is_stream

    @property
    def is_left(self) -> bool:
        """Whether an earlier owner left a live stream that was not continued yet."""
        return self._left is not None

    @property
    def is_stream(self) -> bool:
        """Whether a live stream is open, here or as an earlier owner left it."""
        return self.stream is not None or self.is_left

    @property
    def in_container(self) -> bool:
        """Whether a file is open, or a live stream in a container."""
        return self.file is not None or (self.stream is not None and self.stream.kind is not None)

    @property
    def is_waiting(self) -> bool:
        """Whether segments of the live stream wait for their text, or to be taken."""
        return self.stream is not None and self.stream.is_waiting

    @property
    def backlog(self) -> float:
        """Seconds of speech in segments of the live stream that wait for their text."""
        return self.stream.backlog if self.stream is not None else 0.0

    def continue_stream(self) -> LiveStream | None:
        """Return the live stream, if there is one; that of an earlier owner is continued."""
        if self._left is not None:
            self.stream = self._make_stream(self._left.stream, None)
            self._left = None
        return self.stream

    def begin_stream(self, kind: str | None) -> LiveStream:
        """Return the live stream; where there is none, begin one, with the open file or in a container of this kind."""
        stream = self.continue_stream()
        if stream is None:
            file, self.file = self.file, None
            stream = self.stream = self._make_stream(None, kind if file is None else file.kind)
        return stream

    def reopen(self, file: OpenFile | None) -> None:
        """Undo `begin_stream`: the file is no beginning of a live stream."""
        self.file, self.stream = file, None

    def close(self) -> tuple[float, float]:
        """Forget what is open; return its seconds, and those of its channels beside the first."""
        found = self.file.found if self.file is not None else self.stream
        if self.stream is not None:
            self.stream.close()
        self.file = self.stream = self._left = None
        return (0.0, 0.0) if found is None else (found.seconds, found.further)

    def coverage(self, here: Checkpoint) -> Coverage:
        """What an event covers that is appended now; `here` is where a next owner continues if nothing is open."""
        if self.stream is not None:
            self.stream.checkpointed, self.stream.bytes_since_checkpoint = self.stream.needed, 0
            return Coverage(self.stream.seconds, self.stream.checkpoint(), self.stream.further)
        if self._left is not None:
            return Coverage(0.0, self._left)
        if self.file is None:
            return Coverage(0.0, here)
        found = self.file.found or RecognisedFile()
        return Coverage(found.seconds, Checkpoint(self.file.before, None), found.further)
