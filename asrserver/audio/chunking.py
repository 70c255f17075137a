"""The role of a chunk in its session: an utterance, a file, or a piece of a live stream.

The worker decodes chunks by these rules and the gateway archives them by the same; the documentation's table of modes
describes them to clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from asrserver.audio import sniff, wav

#: In auto mode, a chunk of at least this many seconds of headerless PCM is an utterance; a shorter one is a piece.
UTTERANCE_SECONDS = 1.0

#: Assumed bytes per second of compressed audio whose rate is not known: 64 kbit/s.
COMPRESSED_BYTES_PER_SECOND = 8000


class Role(Enum):
    """The role of a chunk."""

    UTTERANCE = auto()  #: headerless PCM: a whole utterance
    FILE = auto()  #: begins with a container's header; in auto mode chunks without one may continue it
    PIECE = auto()  #: begins or continues a live stream


@dataclass(frozen=True, slots=True)
class Chunking:
    """The rules of one session, which follow from its options of the same names."""

    mode: str
    format: str
    sample_rate: int
    channels: int

    @property
    def codec(self) -> str:
        """Codec of chunks without a header. The formats that are no codec of PCM mean 16-bit PCM for them."""
        return self.format if self.format in wav.WIDTHS else "pcm_s16le"

    @property
    def headerless(self) -> wav.Format:
        """Format of chunks without a header."""
        return wav.Format.of(self.codec, self.channels, self.sample_rate)

    def container(self, head: bytes, first: bool) -> str | None:
        """Find the container that a chunk begins.

        Args:
            head: The chunk, or its first bytes.
            first: It is the session's first chunk. Weak signatures do not count in a chunk that may continue another.

        Returns:
            Its name as in `sniff.container`, `opus` for a stream of packets, or sniff.NOT_AUDIO for a live stream of
            what is certainly no audio; None if the chunk begins no container.
        """
        if self.format == "opus":
            return (sniff.container(head, first=False) or "opus") if first else None
        if self.format == "file":
            return sniff.container(head) if first else None
        if self.format != "auto":
            return None
        found = sniff.container(head, first or self.mode == "chunk")
        if found is None and first and self.mode == "stream" and sniff.refusal(head) is not None:
            return sniff.NOT_AUDIO
        return found

    def role(self, container: str | None, size: int, in_container: bool) -> Role:
        """Find the role of a chunk.

        Args:
            container: The container that it begins.
            size: Its bytes.
            in_container: A file, or a live stream in a container, is open.
        """
        if self.mode == "stream":
            return Role.PIECE
        if container is not None:
            return Role.FILE
        if self.mode == "auto" and (in_container or size < UTTERANCE_SECONDS * self.headerless.bytes_per_second):
            return Role.PIECE
        return Role.UTTERANCE
