"""WebM and Matroska (RFC 9559) as recorders write them: with unknown sizes, and a header in the first slice only."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from asrserver.audio import bounds
from asrserver.audio.demux.base import (
    MAX_HEADER_BYTES,
    MAX_PACKET_BYTES,
    MAX_SKIP_BYTES,
    Demuxer,
    Packet,
    Track,
    opus_skip,
)

_EBML = 0x1A45DFA3
_SEGMENT = 0x18538067
_CLUSTER = 0x1F43B675
_TRACKS = 0x1654AE6B
_TRACK_ENTRY = 0xAE
_BLOCK_GROUP = 0xA0
_BLOCK = 0xA1
_SIMPLE_BLOCK = 0xA3
_DISCARD_PADDING = 0x75A2

#: Elements of a track entry.
_NUMBER, _TYPE, _CODEC_ID, _CODEC_PRIVATE, _CODEC_DELAY = 0xD7, 0x83, 0x86, 0x63A2, 0x56AA
_AUDIO, _ENCODINGS = 0xE1, 0x6D80
_RATE, _CHANNELS, _BITS = 0xB5, 0x9F, 0x6264
_DEFAULT = 0x88

#: The clock: nanoseconds of a tick, in _INFO; and the tick at which a cluster begins.
_INFO, _TICK, _CLUSTER_TIME = 0x1549A966, 0x2AD7B1, 0xE7

#: Other elements outside and inside of clusters, which are skipped. Any other element is damage.
_PASSED = frozenset(
    (
        *(0xEC, 0xBF, 0x114D9B74, 0x1254C367, 0x1C53BB6B, 0x1043A770, 0x1941A469),
        *(0xAB, 0xA7, 0x5854, 0xAF, 0x75A1, 0x9B, 0xFB, 0xFA, 0xFD, 0xA4, 0x8E, 0xC8),
    )
)

_AUDIO_TRACK = 2

#: Where it may go on after damage: a recording, a cluster, or what may be a block of up to 8 KiB.
_PLACE = re.compile(
    rb"\x1a\x45\xdf\xa3|\x1f\x43\xb6\x75|\xa3(?:[\x81-\xfe]|[\x40-\x5f].)[\x81-\xfe]..[\0\x80]", re.DOTALL
)

#: Elements that follow a block. Damaged bytes that look like a block are hardly ever followed by one of these.
_AFTER_BLOCK = frozenset((_SIMPLE_BLOCK, _BLOCK_GROUP, _CLUSTER, _EBML, 0x1C53BB6B))

#: What follows the number of the track in a block: ticks since the cluster's, and flags.
_BLOCK_HEAD = struct.Struct(">hB")

#: Most tracks looked at, and elements of one element.
_MAX_TRACKS = 64
_MAX_ELEMENTS = 4096

_CODECS = {
    "A_OPUS": "opus",
    "A_VORBIS": "vorbis",
    "A_AAC": "aac",
    "A_FLAC": "flac",
    "A_MPEG/L3": "mp3",
    "A_PCM/FLOAT/IEEE": "pcm_f",
    "A_PCM/INT/LIT": "pcm_s",
}


class WebM(Demuxer):
    """Walks the elements regardless of their levels. So it can start before any block and needs no cluster's size."""

    name = "WebM"

    #: The video beside a sound that pauses for minutes is as many small elements.
    bytes_per_step = 16

    def __init__(self) -> None:
        super().__init__()
        self._group_at = 0  # where the open block group begins; its end is _group_end
        self._group_end = 0
        self._held: Packet | None = None  # a packet of that group, whose padding may follow
        self._tick = 1e-3  # seconds
        self._cluster: int | None = None  # the tick at which the cluster begins; None: not known yet
        self._ticks = 0  # of the last block, from there
        self._sound: list[dict[int, bytes]] = []  # the entries of the open recording's audio tracks
        self._resumed: float | None = None  # when the next block begins, in seconds, if the cluster's time has passed

    def resume(self, track: Track, offset: int, start: int, time: float | None = None) -> None:
        super().resume(track, offset, start, time)
        if track.clock:
            self._tick, self._resumed = 1 / track.clock, time

    def _next(self) -> Track | Packet | None:
        if self._held is not None and (self.offset >= self._group_end or self._ended):
            held, self._held = self._held, None
            return held
        header = _header(self._buffer)
        if header is None:
            return None
        ident, size, length = header
        if length == 0:
            raise self._damaged("no element begins here")
        if ident in (_SEGMENT, _CLUSTER):
            self._drop(length)
            self._cluster = None
        elif ident == _EBML:
            self.start = self.offset
            self.track = None
            self._tick = 1e-3
            self._pass(length, size)
        elif size is None:
            raise self._damaged(f"element {ident:X} has no size")
        elif ident == _BLOCK_GROUP:
            self._group_at = self.offset
            self._group_end = self.offset + length + size
            self._drop(length)
        elif ident == _TRACKS:
            return self._tracks(length, size)
        elif ident in (_SIMPLE_BLOCK, _BLOCK):
            return self._block(ident, length, size)
        elif ident in (_DISCARD_PADDING, _CLUSTER_TIME, _INFO):
            self._small(ident, length, size)
        elif ident in _PASSED:
            self._pass(length, size)
        else:
            raise self._damaged(f"there is no element {ident:X}")
        return None

    def _find(self) -> bool:
        self._held = None
        at = 0
        while (found := _PLACE.search(self._buffer, at)) is not None:
            self._spend(1)
            at = found.start()
            is_place = self._is_block(at) if self._buffer[at] == _SIMPLE_BLOCK else True
            if is_place is not False:
                self._drop(at)
                return bool(is_place)
            at += 1
        self._drop(max(0, len(self._buffer) - 6))  # what it looks for has up to seven bytes
        return False

    def _is_block(self, at: int) -> bool | None:
        """Whether what may be a block is one of the track; None: more bytes are needed to know."""
        _, size, length = _header(self._buffer[at : at + 12]) or (0, None, 0)
        if size is None or self.track is None:
            return False
        number, ticks, _ = struct.unpack_from(">BhB", self._buffer, at + length)
        if number != 0x80 | self.track.number:
            return False
        end = at + length + size
        following = _header(self._buffer[end : end + 12])
        if following is None:
            return None
        if following[0] not in _AFTER_BLOCK:
            return False
        if ticks < self._ticks:  # the beginning of its cluster is lost, and with it the time
            self._cluster = None
        return True

    def _pass(self, length: int, size: int | None) -> None:
        if size is None or size > MAX_SKIP_BYTES:
            raise self._damaged("an element is too long")
        self._drop(length + size)

    def _tracks(self, length: int, size: int) -> Track | None:
        if size > MAX_HEADER_BYTES:
            raise self._damaged("the list of tracks is too long")
        if len(self._buffer) < length + size:
            return None
        body = bytes(self._buffer[length : length + size])
        self._drop(length + size)
        entries = [dict(_elements(entry)) for ident, entry in _elements(body) if ident == _TRACK_ENTRY][:_MAX_TRACKS]
        sound = [one for one in entries if int.from_bytes(one.get(_TYPE, b""), "big") == _AUDIO_TRACK]
        self.tracks, self._sound = len(sound), sound
        if not sound:
            raise self._unsupported("it has no audio track")
        return self._begin_track(self._audio(self._chosen(sound, lambda one: one.get(_DEFAULT, b"\1") != b"\0")))

    def _alternatives(self) -> int:
        return len(self._sound)

    def _reopen(self, number: int) -> Track:
        return self._begin_track(self._audio(self._sound[number]))

    def _audio(self, entry: dict[int, bytes]) -> Track:
        named = entry.get(_CODEC_ID, b"").rstrip(b"\0").decode("ascii", "replace")
        codec = _CODECS.get(named) or ("aac" if named.startswith("A_AAC") else None)
        if codec is None:
            raise self._unsupported(f"its codec is {named}")
        if _ENCODINGS in entry:
            raise self._unsupported("its track is additionally compressed or encrypted")
        audio = dict(_elements(entry.get(_AUDIO, b"")))
        channels = int.from_bytes(audio.get(_CHANNELS, b"\1"), "big")
        rate, bits, frame = _rate(audio.get(_RATE, b"")), int.from_bytes(audio.get(_BITS, b""), "big"), 0
        if codec.startswith("pcm"):
            bounds.check(channels, rate)
            codec = f"{codec}{bits}le" if bits > 8 else "pcm_u8"
            frame = bits // 8 * channels
        private = entry.get(_CODEC_PRIVATE, b"")
        delay = int.from_bytes(entry.get(_CODEC_DELAY, b""), "big") * rate // 10**9
        # Vorbis tracks have a delay too, but their decoder does not return those samples.
        skip = opus_skip(private) if codec == "opus" else delay if codec in ("aac", "mp3") else 0
        number = int.from_bytes(entry.get(_NUMBER, b""), "big")
        return Track(codec, private, rate, channels, skip, number, frame, clock=1 / self._tick)

    def _block(self, ident: int, length: int, size: int) -> Packet | None:
        buffer = self._buffer
        available = len(buffer) - length
        if available < min(size, 8):
            return None
        number, width = _number(buffer, length)
        if not number or size < width + 3:
            raise self._damaged("a block has no track")
        if self.track is None or number != self.track.number:
            self._pass(length, size)
            return None
        if size > MAX_PACKET_BYTES:
            raise self._damaged("a block of audio is too long")
        if available < size:
            return None
        ticks, flags = _BLOCK_HEAD.unpack_from(buffer, length + width)
        if flags & 0x06:
            raise self._unsupported("its blocks are laced")
        in_group = ident == _BLOCK and self._group_at < self.offset < self._group_end
        packet = Packet(bytes(buffer[length + width + 3 : length + size]), self._group_at if in_group else self.offset)
        if self._cluster is None and self._resumed is not None:
            self._cluster = round(self._resumed / self._tick) - ticks
        if self._cluster is not None:
            packet.time = (self._cluster + ticks) * self._tick
        self._resumed, self._ticks = None, ticks
        self._drop(length + size)
        if not in_group:
            return packet
        held, self._held = self._held, packet
        return held

    def _small(self, ident: int, length: int, size: int) -> None:
        """Read an element that is read as a whole."""
        if size > (MAX_HEADER_BYTES if ident == _INFO else 8):
            raise self._damaged("an element is too long")
        if len(self._buffer) < length + size:
            return
        body = bytes(self._buffer[length : length + size])
        self._drop(length + size)
        if ident == _CLUSTER_TIME:
            self._cluster = int.from_bytes(body, "big")
        elif ident == _INFO:
            nanoseconds = int.from_bytes(dict(_elements(body)).get(_TICK, b"")[:8], "big")
            self._tick = (nanoseconds or 10**6) / 1e9
        else:
            self._padding(int.from_bytes(body, "big", signed=True))

    def _padding(self, nanoseconds: int) -> None:
        """Trim what DiscardPadding says is not audio at the end of the block."""
        if self._held is not None and self.track is not None and nanoseconds > 0:
            rate = 48000 if self.track.codec == "opus" else self.track.rate
            self._held.trim = nanoseconds * rate // 10**9


def _header(data: bytes | bytearray) -> tuple[int, int | None, int] | None:
    """(id, size or None if unknown, bytes of both) of the element at the front; None if cut; 0 bytes if invalid."""
    available = len(data)
    if available < 2:
        return None
    width = 9 - data[0].bit_length()
    if width > 4:
        return 0, None, 0
    if available <= width:
        return None
    end = width + 9 - data[width].bit_length()
    if end > width + 8:
        return 0, None, 0
    if available < end:
        return None
    unknown = (1 << 7 * (end - width)) - 1  # all bits set means unknown, as recorders write it
    size = int.from_bytes(data[width:end], "big") & unknown
    return int.from_bytes(data[:width], "big"), None if size == unknown else size, end


def _number(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """(value, bytes) of the variable-size integer at an offset (RFC 8794, 4); (0, 0) if there is none."""
    first = data[at]
    if first > 0x80:
        return first & 0x7F, 1
    width = 9 - first.bit_length()
    if width > 8 or len(data) < at + width:
        return 0, 0
    return int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1), width


def _elements(body: bytes) -> Iterator[tuple[int, bytes]]:
    """(id, content) of the elements of a master element, up to the first that is invalid or _MAX_ELEMENTS."""
    at = 0
    for _ in range(_MAX_ELEMENTS):
        header = _header(body[at : at + 12])
        if header is None:
            return
        ident, size, length = header
        if not length or size is None:
            return
        yield ident, body[at + length : at + length + size]
        at += length + size


def _rate(data: bytes) -> int:
    """The sample rate in a float element; 8000 by default, -1 if it is not a positive number."""
    value = struct.unpack(">d" if len(data) == 8 else ">f", data)[0] if len(data) in (4, 8) else 8000.0
    return int(min(value, 2.0**32)) if value > 0 else -1
