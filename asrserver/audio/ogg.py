"""Writes Ogg files (RFC 3533) of Opus (RFC 7845): what a client sent as packets becomes a file that players know."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

from asrserver.audio.demux.base import opus_samples
from asrserver.audio.demux.opus import HEAD

_HEADER = struct.Struct("<4sBBqIIIB")
_FIRST, _LAST = 2, 4

#: Lacing values of a page at most, and packets of a page: a second, mostly.
_MAX_LACING = 255
_PAGE_PACKETS = 50

#: Each byte with its bits in reverse.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

_TAGS = b"OpusTags" + struct.pack("<I", 9) + b"asrserver" + bytes(4)


def opus_pages(packets: Iterable[bytes]) -> Iterator[bytes]:
    """Make the pages of a file of packets. What is no packet of Opus is left out."""
    yield _page([HEAD], 0, 0, _FIRST)
    yield _page([_TAGS], 0, 1, 0)
    number, position, size = 2, 0, 0
    held: list[bytes] = []
    for packet in packets:
        lacing = len(packet) // 255 + 1
        if not opus_samples(packet) or lacing > _MAX_LACING:
            continue
        if size + lacing > _MAX_LACING or len(held) == _PAGE_PACKETS:
            yield _page(held, position, number, 0)
            number, size, held = number + 1, 0, []
        held.append(packet)
        size += lacing
        position += opus_samples(packet)
    yield _page(held, position, number, _LAST)


def _page(packets: list[bytes], position: int, number: int, flags: int) -> bytes:
    """A page of whole packets, at the end of which is the sample `position`."""
    lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes((len(packet) % 255,)) for packet in packets)
    body = lacing + b"".join(packets)
    page = _HEADER.pack(b"OggS", 0, flags, position, 1, number, 0, len(lacing)) + body
    return page[:22] + _checksum(page).to_bytes(4, "little") + page[26:]


def _checksum(data: bytes) -> int:
    """The CRC of a page. It has zlib's polynomial, but takes the bits of each byte the other way round."""
    reflected = zlib.crc32(data.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)
