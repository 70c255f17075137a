"""Recognise bytes by how they begin: a container, something that is not audio, or anything else, such as PCM."""

from __future__ import annotations

import string

from asrserver.errors import AudioError

#: Unambiguous signatures: (offset, bytes, FFmpeg's name of the container).
_CONTAINERS = (
    (8, b"WAVE", "wav"),  # behind RIFF and a length
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"OggS", "ogg"),
    (0, b"fLaC", "flac"),
    (4, b"ftyp", "mp4"),
    (0, b"ID3", "mp3"),
)

#: (signature, name for the error) of what clients send by mistake.
_NOT_AUDIO = (
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"#!AMR", "AMR audio"),
)

_PRINTABLE = frozenset(string.printable.encode())

#: A chunk of at least this many bytes is text if they are all printable: PCM never is for so long.
_TEXT_PREFIX = 64


def container(data: bytes, first: bool = True) -> str | None:
    """Find the container that bytes begin.

    Args:
        data: The first bytes of a chunk or file.
        first: Nothing precedes them. Only then weak signatures count (an MP3 frame, ADTS), which PCM may resemble.

    Returns:
        FFmpeg's name of the container; None if they begin none.
    """
    for offset, magic, kind in _CONTAINERS:
        if data.startswith(magic, offset):
            if (kind == "wav" and data[:4] != b"RIFF") or (kind == "ogg" and not _first_page(data)):
                continue
            return kind
    if first and len(data) > 4 and data[0] == 0xFF and _mpeg_frame(data):
        return "aac" if data[1] & 0xF6 == 0xF0 else "mp3"
    return None


def _first_page(data: bytes) -> bool:
    """Whether an Ogg page is the first of its stream (RFC 3533, 6): later ones begin nothing."""
    return len(data) > 5 and bool(data[5] & 0x02)


def _mpeg_frame(data: bytes) -> bool:
    """Whether bytes begin with a valid ADTS or MPEG audio frame header (ISO 11172-3, 13818-7)."""
    if data[1] & 0xF6 == 0xF0:
        return (data[2] >> 2) & 0x0F < 13
    layer, bitrate, rate = (data[1] >> 1) & 3, data[2] >> 4, (data[2] >> 2) & 3
    return data[1] & 0xE0 == 0xE0 and layer == 1 and 0 < bitrate < 15 and rate < 3


def reject_non_audio(data: bytes, first: bool = True) -> None:
    """Reject bytes that begin no container and are certainly not PCM.

    Args:
        data: The bytes of a chunk.
        first: Nothing precedes them. Bytes that continue PCM may look like anything except a long text.

    Raises:
        AudioError: not_audio.
    """
    for magic, name in _NOT_AUDIO if first else ():
        if data.startswith(magic):
            raise AudioError("not_audio", f"the chunk is {name}")
    if is_text(data):
        raise AudioError("not_audio", "the chunk is text")


def is_text(data: bytes) -> bool:
    """Whether bytes are text rather than audio of any encoding."""
    head = data[:4096]
    return len(head) >= _TEXT_PREFIX and _PRINTABLE.issuperset(head)
