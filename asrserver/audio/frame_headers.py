"""Headers of MPEG audio frames (ISO 11172-3, 13818-3) and of AAC frames in ADTS (ISO 13818-7).

Two bytes of noise in some thousand look like one. So nothing is taken for such audio because of one header where the
next is at hand: every frame says where the next begins.
"""

from __future__ import annotations

import re

#: Bytes of an MPEG audio header, and of an ADTS header as far as it is read.
MPEG_HEADER, ADTS_HEADER = 4, 7

#: kbit/s by layer; LOW: MPEG-2 and 2.5.
_LAYER_1 = (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448)
_LAYER_1_LOW = (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
_LAYER_2 = (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_LAYER_3 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_LOW = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)

_MPEG_RATES = (44100, 48000, 32000)
_ADTS_RATES = 13

#: What may be a header of either, as far as two bytes tell.
_SYNC = re.compile(rb"\xff[\xe2-\xe7\xf0-\xff]")

#: Consecutive headers that are proof where bytes before them belong to none.
_PROOF = 4

#: What may follow the last frame: tags.
_TAGS = (b"TAG", b"ID3", b"APE")


def mpeg_layer(head: bytes | bytearray) -> int:
    """The layer of an MPEG audio header, from 1; 4: it is reserved."""
    return 4 - (head[1] >> 1 & 3)


def mpeg_length(head: bytes | bytearray) -> int:
    """Bytes of the frame that a header of MPEG_HEADER bytes begins; 0 if it is none."""
    if len(head) < MPEG_HEADER or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, mpeg_layer(head)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or not 0 < bitrate < 15 or rate == 3:
        return 0
    hertz = _MPEG_RATES[rate] >> (0 if version == 3 else 1 if version == 2 else 2)
    if layer == 1:
        return (12000 * (_LAYER_1 if version == 3 else _LAYER_1_LOW)[bitrate] // hertz + padding) * 4
    if layer == 2:
        return 144000 * (_LAYER_2 if version == 3 else _LOW)[bitrate] // hertz + padding
    return (144000 * _LAYER_3[bitrate] if version == 3 else 72000 * _LOW[bitrate]) // hertz + padding


def mpeg_signature(head: bytes | bytearray) -> bytes:
    """The parts of an MPEG audio header that do not change from frame to frame."""
    return bytes((head[1] & 0xFE, head[2] & 0x0C))


def adts_length(head: bytes | bytearray) -> int:
    """Bytes of the frame that a header of ADTS_HEADER bytes begins; 0 if it is none."""
    if len(head) < ADTS_HEADER or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 0x0F >= _ADTS_RATES:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length > ADTS_HEADER else 0


def adts_signature(head: bytes | bytearray) -> bytes:
    """The parts of an ADTS header that do not change from frame to frame."""
    return bytes((head[1], head[2], head[3] & 0xC0))


def id3_bytes(data: bytes | bytearray) -> int:
    """Bytes of an ID3 tag of which at least ten are at hand; 0 if there is none."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def container(data: bytes) -> str | None:
    """Find frames: `mp3`, `mp2` (layers I and II), or `aac`; None if there are none.

    They begin at the first byte, where one may be cut at the end of the bytes; or behind a part of another frame, as in
    what was recorded of a broadcast: then there must be several.
    """
    data = data.ljust(ADTS_HEADER, b"\xff")
    broken: set[int] = set()
    for found in _SYNC.finditer(data):
        at = found.start()
        kind, frames = _chain(data, at, broken)
        if frames >= (_PROOF if at else 1):
            return kind
    return None


def _chain(data: bytes, at: int, broken: set[int]) -> tuple[str, int]:
    """(kind, number) of the frames from an offset to the end of the bytes, or to a tag; 0 if anything else follows.

    `broken` are offsets of frames after which something else follows. Those found are added: none is read twice.
    """
    adts = data[at + 1] & 0xF6 == 0xF0
    size = ADTS_HEADER if adts else MPEG_HEADER
    kind, first, count = "", b"", 0
    frames: list[int] = []
    while at + size <= len(data):
        head = data[at : at + size]
        if count and head.startswith(_TAGS):
            break
        length = adts_length(head) if adts else mpeg_length(head)
        signature = adts_signature(head) if adts else mpeg_signature(head)
        if not length or (count and signature != first) or at in broken:
            broken.update(frames)
            return "", 0
        frames.append(at)
        kind = "aac" if adts else "mp3" if mpeg_layer(head) == 3 else "mp2"
        first, count, at = signature, count + 1, at + length
    return kind, count
