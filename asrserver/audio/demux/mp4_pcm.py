"""PCM in QuickTime and MP4 files: what the sample entry says of the samples (QTFF, sound media; ISO 23003-5)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

#: Kinds of sample entries whose numbers are of one kind → FFmpeg's name of the codec.
_FIXED = {b"ulaw": "pcm_mulaw", b"alaw": "pcm_alaw", b"raw ": "pcm_u8"}

#: Kinds that say the kind of the numbers → (s: integer, f: floating point; bits). Their order is big-endian, unless the
#: box `enda` says otherwise.
_SIZED = {b"in24": ("s", 24), b"in32": ("s", 32), b"fl32": ("f", 32), b"fl64": ("f", 64)}

#: Flags of `lpcm`.
_FLOAT, _BIG, _SIGNED = 1, 2, 4

#: The numbers that are decoded.
_KNOWN = {("s", 8), ("s", 16), ("s", 24), ("s", 32), ("f", 32), ("f", 64)}


def codec(kind: bytes, entry: bytes, version: int, boxes: Mapping[bytes, bytes]) -> tuple[str, int] | None:
    """(FFmpeg's name of the codec, bytes of one sample of one channel); None if the entry is not one of PCM.

    Args:
        kind: The kind of the sample entry.
        entry: Its content.
        version: The version that the entry has.
        boxes: The boxes in it.

    Raises:
        struct.error: The entry is too short.
        KeyError: The box pcmC is missing.
    """
    if kind in _FIXED:
        return _FIXED[kind], 1
    (bits,) = struct.unpack_from(">H", entry, 18)
    numbers, is_little = "s", kind == b"sowt"
    if kind in _SIZED:
        numbers, bits = _SIZED[kind]
        is_little = boxes.get(b"enda", b"\0\0")[:2] == b"\0\1"
    elif kind == b"lpcm" and version == 2:
        bits, flags = struct.unpack_from(">II", entry, 48)
        numbers = "f" if flags & _FLOAT else "s" if flags & _SIGNED or bits > 8 else "u"
        is_little = not flags & _BIG
    elif kind in (b"ipcm", b"fpcm"):
        flags, bits = struct.unpack_from("BB", boxes[b"pcmC"], 4)
        numbers, is_little = ("f" if kind == b"fpcm" else "s"), bool(flags & 1)
    elif kind not in (b"sowt", b"twos", b"NONE"):
        return None
    if bits == 8 and (numbers == "u" or kind == b"NONE"):
        return "pcm_u8", 1
    if (numbers, bits) not in _KNOWN:
        return None
    order = "" if bits == 8 else "le" if is_little else "be"
    return f"pcm_{numbers}{bits}{order}", bits // 8
