"""Opus without a container (RFC 6716): packets as a client's encoder makes them, each sent by itself."""

from __future__ import annotations

from collections import deque

from asrserver.audio.demux.base import MAX_PACKET_BYTES, Demuxer, Packet, Track, opus_samples
from asrserver.errors import AudioError

#: The header that a container would have (RFC 7845, 5.1): one channel, to which stereo packets are mixed; no pre-skip.
HEAD = b"OpusHead\1\1" + bytes(2) + (48000).to_bytes(4, "little") + bytes(3)


class OpusPackets(Demuxer):
    """Each push is a packet: where it ends is known by nothing else."""

    name = "Opus"

    def __init__(self) -> None:
        super().__init__()
        self._packets: deque[bytes] = deque()

    def push(self, data: bytes) -> None:
        if data:
            self._packets.append(data)

    def discard(self) -> None:
        self.offset += sum(map(len, self._packets))
        self._packets.clear()

    def _next(self) -> Track | Packet | None:
        if not self._packets:
            return None
        if self.track is None:
            return self._begin_track(Track("opus", HEAD, 48000, 1))
        data = self._packets.popleft()
        at, self.offset = self.offset, self.offset + len(data)
        if len(data) > MAX_PACKET_BYTES or not opus_samples(data):
            raise AudioError("undecodable_audio", f"the message at byte {at} is no packet of Opus")
        return Packet(data, at)
