"""What a chunk of a session is: an utterance, a file, or a piece of a recording that goes on.

The worker decodes chunks by this and the gateway archives them by it; README's table of modes says the same to clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from asrserver.audio import sniff, wav

#: In auto mode, seconds of headerless PCM from which on a chunk is an utterance; less is a piece of a recording.
UTTERANCE_SECONDS = 1.0

#: Bytes a second of compressed audio, until something better is known: 64 kbit/s.
COMPRESSED_BYTES_PER_SECOND = 8000


class Role(Enum):
    """What a chunk is."""

    UTTERANCE = auto()  #: headerless PCM, all of an utterance
    FILE = auto()  #: begins with a container's head; in auto mode chunks that have none go on with it
    PIECE = auto()  #: begins a recording that is going on, or goes on with one


@dataclass(frozen=True, slots=True)
class Chunking:
    """The rules of one session, by its options `mode`, `format`, `sample_rate` and `channels`."""

    mode: str
    format: str
    sample_rate: int
    channels: int

    @property
    def codec(self) -> str:
        """Of chunks without a head. A format of `auto` means 16-bit PCM then."""
        return "pcm_s16le" if self.format == "auto" else self.format

    @property
    def headerless(self) -> wav.Format:
        """What chunks without a head are."""
        return wav.Format.of(self.codec, self.channels, self.sample_rate)

    def container(self, head: bytes, first: bool) -> str | None:
        """The container that a chunk opens, as `sniff.container` names it; None if it opens none.

        Args:
            head: the chunk, or its first bytes.
            first: whether it is the session's first chunk. Weak signatures count in none that may go on with another.
        """
        return sniff.container(head, first or self.mode == "chunk") if self.format == "auto" else None

    def role(self, container: str | None, size: int, in_container: bool) -> Role:
        """What a chunk is.

        Args:
            container: what it opens.
            size: its bytes.
            in_container: whether what came before is a file, or a recording in a container.
        """
        if self.mode == "stream":
            return Role.PIECE
        if container is not None:
            return Role.FILE
        if self.mode == "auto" and (in_container or size < UTTERANCE_SECONDS * self.headerless.bytes_per_second):
            return Role.PIECE
        return Role.UTTERANCE
