"""Ogg (RFC 3533) with Opus (RFC 7845), Vorbis or FLAC: Firefox's recordings, and many files."""

from __future__ import annotations

from collections import deque

from asrserver.audio.demux.base import MAX_PACKET_BYTES, Demuxer, Packet, Track, opus_samples, opus_skip
from asrserver.audio.demux.flac import streaminfo

_CONTINUED, _FIRST, _LAST = 1, 2, 4

#: First bytes of audio codecs that are not supported.
_OTHER_CODECS = (b"Speex   ", b"PCM     ", b"CELT    ")


class Ogg(Demuxer):
    """The first logical stream of audio; the next link of a chain is a new recording. It may start at any page."""

    name = "Ogg"

    def __init__(self) -> None:
        super().__init__()
        self._items: deque[Track | Packet] = deque()
        self._part = bytearray()  # the part so far of a packet that continues in the next page
        self._part_restart: int | None = None
        self._within = False  # there is such a packet, complete so far
        self._codec = ""
        self._head: list[bytes] = []  # the codec's header packets
        self._headers = 0  # header packets that are still to come
        self._serial = -1
        self._granule: int | None = None  # of the previous page

    def resume(self, track: Track, offset: int, start: int, time: float | None = None) -> None:
        super().resume(track, offset, start, time)
        self._codec, self._serial = track.codec, track.number

    def _next(self) -> Track | Packet | None:
        if self._items:
            return self._items.popleft()
        if len(self._buffer) < 27:
            return None
        if self._buffer[:5] != b"OggS\0":
            raise self._damaged("no page begins here")
        segments = self._buffer[26]
        size = 27 + segments + sum(self._buffer[27 : 27 + segments])
        if len(self._buffer) < max(size, 27 + segments):
            return None
        page = bytes(self._buffer[:size])
        at = self.offset
        self._drop(size)
        self._page(page, at)
        return self._items.popleft() if self._items else None

    def _find(self) -> bool:
        self._part.clear()
        self._within = False
        return self._find_any((b"OggS\0",))

    def _page(self, page: bytes, at: int) -> None:
        flags, serial = page[5], int.from_bytes(page[14:18], "little")
        if flags & _FIRST:
            self._begin(page[27 + page[26] :], serial, at)
            return
        if serial != self._serial:
            return
        if bool(flags & _CONTINUED) != self._within:  # pages are missing before it
            self._part.clear()
            self._within = False
        passing = bool(flags & _CONTINUED) and not self._within  # the rest of a packet whose beginning is missing
        fresh: list[Packet] = []
        position = 27 + page[26]
        first = True  # the next packet is the first that begins in this page
        for lace in page[27 : 27 + page[26]]:
            if not passing:
                if not self._within:
                    self._within = True
                    self._part_restart = at if first else None
                    first = False
                self._part += page[position : position + lace]
                if len(self._part) > MAX_PACKET_BYTES:  # tags with a picture: the rest of them is not needed
                    del self._part[MAX_PACKET_BYTES:]
            position += lace
            if lace < 255:
                if not passing:
                    self._packet(bytes(self._part), fresh)
                    self._part.clear()
                    self._within = False
                passing = False
        self._trim(fresh, flags, int.from_bytes(page[6:14], "little", signed=True))
        self._items += fresh

    def _begin(self, packet: bytes, serial: int, at: int) -> None:
        """Process the first page of a logical stream, which holds one packet."""
        if packet.startswith(b"OpusHead") and len(packet) >= 19:
            codec, headers = "opus", 1
        elif packet.startswith(b"\x01vorbis") and len(packet) < 255:
            codec, headers = "vorbis", 2
        elif packet.startswith(b"\x7fFLAC") and len(packet) >= 51:
            codec, headers = "flac", 1
        elif packet.startswith(_OTHER_CODECS) and not self._codec:
            raise self._unsupported(f"its codec is {packet[:8].decode('ascii').strip()}")
        else:
            return  # something else that is multiplexed with the audio
        if self._headers:
            return  # a second stream of audio: only the first is decoded
        self.start = at
        self.track = None
        self._codec, self._headers, self._head, self._serial = codec, headers, [packet], serial
        self._part.clear()
        self._within = False
        self._granule = None

    def _packet(self, packet: bytes, fresh: list[Packet]) -> None:
        if self._codec == "flac" and packet[:1] != b"\xff" and self.track is not None:
            return  # further metadata
        if self._headers:
            self._headers -= 1
            self._head.append(packet)
            if not self._headers:
                self._items.append(self._begin_track(self._track()))
        elif packet and self.track is not None:
            fresh.append(Packet(packet, self._part_restart))

    def _track(self) -> Track:
        head = self._head[0]
        if self._codec == "opus":
            return Track("opus", head, 48000, head[9], opus_skip(head), self._serial)
        if self._codec == "flac":
            return Track("flac", head[17:51], *streaminfo(head[17:51]), number=self._serial)
        # The decoder only reads the first and third headers. Xiph lacing: 2, then the lengths of all but the last.
        comments, setup = b"\x03vorbis" + bytes(8) + b"\x01", self._head[2]
        private = bytes((2, len(head), len(comments))) + head + comments + setup
        rate = int.from_bytes(head[12:16], "little")
        return Track("vorbis", private, rate, head[11], number=self._serial)

    def _trim(self, fresh: list[Packet], flags: int, granule: int) -> None:
        """At the end of a stream, trim what its granule position says is not audio (RFC 7845, 4.4)."""
        if self._codec == "opus" and fresh and flags & _LAST and self._granule is not None and granule >= self._granule:
            surplus = self._granule + sum(opus_samples(packet.data) for packet in fresh) - granule
            for packet in reversed(fresh):
                packet.trim = max(0, min(surplus, opus_samples(packet.data)))
                surplus -= packet.trim
        if granule >= 0:
            self._granule = granule
