"""FLAC (RFC 9639). Its frames do not say how long they are: each ends where the next one's header begins."""

from __future__ import annotations

import re

from asrserver.audio.demux.base import MAX_HEADER_BYTES, Demuxer, Packet, Track
from asrserver.audio.frame_headers import id3_bytes

#: What may be a frame's header, as far as four bytes tell. What it lets through costs time: see `_spend`.
_HEADER = re.compile(rb"\xff[\xf8\xf9][\x10-\xff][\x00-\xaf]", re.DOTALL)

_SYNC = (b"\xff\xf8", b"\xff\xf9")

#: Most missing frames between two frames that are taken for the same stream.
_MAX_GAP = 64

#: How a stream begins.
_MARK = b"fLaC"


class Flac(Demuxer):
    """A frame ends where a header with a valid checksum and the next frame's number begins."""

    name = "FLAC"

    def __init__(self) -> None:
        super().__init__()
        self._info = b""
        self._metadata = False  # metadata blocks are still to come
        self._looked = 0  # bytes of the frame at the front that were searched for its end
        self._front: tuple[int, int] | None = None  # the header of that frame; None: not read yet

    def _next(self) -> Track | Packet | None:
        if len(self._buffer) < 4:
            return None
        if self._buffer[:4] == _MARK:
            self.start, self.track, self._metadata = self.offset, None, True
            self._drop(4)
            return None
        if self._metadata:
            return self._block()
        if self.track is None:
            if self._buffer[:3] == b"ID3" and len(self._buffer) < 10:
                return None
            if size := id3_bytes(self._buffer):
                self._drop(size)
                return None
            raise self._damaged("it does not begin with fLaC")
        if self._buffer[:2] not in _SYNC:
            raise self._damaged("no frame begins here")
        if len(self._buffer) < 16:
            return None
        self._front = self._front or _header(self._buffer, 0)
        if self._front is None:
            raise self._damaged("no frame begins here")
        end = self._end(*self._front)
        if end is None and self._ended:
            end = len(self._buffer), None
        return None if end is None else self._frame(*end)

    def _frame(self, length: int, following: tuple[int, int] | None) -> Packet:
        packet = Packet(bytes(self._buffer[:length]), self.offset)
        self._drop(length)
        self._front = following
        return packet

    def _drop(self, count: int) -> None:
        super()._drop(count)
        self._looked, self._front = 0, None

    def _block(self) -> Track | None:
        kind, size = self._buffer[0], int.from_bytes(self._buffer[1:4], "big")
        if kind & 0x7F == 0:
            if len(self._buffer) < 4 + size:
                return None
            self._info = bytes(self._buffer[4:38])
        self._drop(4 + size)
        if not kind & 0x80:
            return None
        self._metadata = False
        if len(self._info) < 34:
            self._lost = True
            raise self._unsupported("it has no STREAMINFO")
        rate, channels = streaminfo(self._info)
        self._lost = True  # unless the track is accepted: what follows belongs to no recording
        track = self._begin_track(Track("flac", self._info, rate, channels))
        self._lost = False
        return track

    def _end(self, number: int, step: int) -> tuple[int, tuple[int, int] | None] | None:
        """Find where the frame at the front ends: at the header with the next number, or at the mark of another stream.

        Or at the header of a somewhat later number that is otherwise like this one: the frames between are damaged.

        Args:
            number: Number of the frame.
            step: Difference to the next frame's number.

        Returns:
            (its length in bytes, the header of the next frame or None for a mark); None: more bytes are needed.
        """
        at = max(self._looked, 8)
        while (at := self._candidate(at)) >= 0 and at + 16 <= len(self._buffer):
            if self._buffer[at : at + 2] == self._buffer[:2]:
                header = _header(self._buffer, at)
                self._spend(1)
                ahead = (header[0] - number) / step if header is not None else 0
                if ahead == 1 or (1 < ahead < _MAX_GAP and self._buffer[at + 2] == self._buffer[2]):
                    return at, header
            at += 1
        mark = self._buffer.find(_MARK + b"\0\0\0\x22", max(self._looked - 8, 8))
        if mark >= 0:
            return mark, None
        self._looked = max(8, len(self._buffer) - 16 if at < 0 else min(at, len(self._buffer) - 16))
        if len(self._buffer) > MAX_HEADER_BYTES:
            raise self._damaged("a frame does not end")
        return None

    def _candidate(self, at: int) -> int:
        """Where the next bytes are that may be a frame's header; -1: nowhere, but perhaps in the last three bytes."""
        found = _HEADER.search(self._buffer, at)
        return -1 if found is None else found.start()

    def _find(self) -> bool:
        at = -1
        while self.track is not None and (at := self._candidate(at + 1)) >= 0 and at + 16 <= len(self._buffer):
            self._spend(1)
            if _header(self._buffer, at) is not None:
                self._drop(at)
                return True
        if self._buffer.find(_MARK) >= 0:
            self._drop(self._buffer.find(_MARK))
            return True
        self._drop(min(at if at >= 0 else len(self._buffer), max(0, len(self._buffer) - 16)))
        return False


def streaminfo(info: bytes) -> tuple[int, int]:
    """(samples per second, channels) of a STREAMINFO block (RFC 9639, 8.2)."""
    return int.from_bytes(info[10:13], "big") >> 4, (info[12] >> 1 & 7) + 1


def _header(data: bytearray, at: int) -> tuple[int, int] | None:
    """(number, difference to the next number) of the frame header at an offset (9.1); None if there is none."""
    if len(data) < at + 6 or data[at + 1] & 0xFE != 0xF8:
        return None
    block, rate = data[at + 2] >> 4, data[at + 2] & 0x0F
    if not block or rate == 15 or data[at + 3] >> 4 > 10 or data[at + 3] & 0x0E == 0x06 or data[at + 3] & 1:
        return None
    lead, end = data[at + 4], at + 5
    extra = 0 if lead < 0x80 else 7 - (lead ^ 0xFF).bit_length()
    number = lead if not extra else lead & (0x3F >> extra)
    if lead & 0xC0 == 0x80 or lead == 0xFF or len(data) < end + extra + 5:
        return None
    for byte in data[end : end + extra]:
        number = number << 6 | byte & 0x3F
    end += extra
    if block < 6:
        size = 192 if block == 1 else 576 << block - 2
    elif block > 7:
        size = 256 << block - 8
    else:
        width = block - 5
        size = int.from_bytes(data[end : end + width], "big") + 1
        end += width
    end += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if _crc8(data[at:end]) != data[end]:
        return None
    return number, size if data[at + 1] & 1 else 1


def _crc8(data: bytes | bytearray) -> int:
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value


def _table() -> bytes:
    """The CRC-8 table of the polynomial x^8 + x^2 + x + 1."""
    table = bytearray()
    for value in range(256):
        for _ in range(8):
            value = (value << 1 ^ 0x07) & 0xFF if value & 0x80 else value << 1
        table.append(value)
    return bytes(table)


_CRC8 = _table()
