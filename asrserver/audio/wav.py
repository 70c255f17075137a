"""WAV: its header read and written, in plain Python; pcm.samples makes numbers of what is behind it.

A file is RIFF, a length and WAVE, then chunks: four letters, a length, and so many bytes, padded to an even number.
The chunk `fmt ` says what the samples are, `data` holds them. Of the header nothing is believed that follows from
something else: the bytes of a frame (one sample of every channel) and of a second are computed, and a length that
cannot be known, as of a file that was written to a pipe, is None.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from asrserver.audio import bounds

#: Bytes of RIFF, its length, and WAVE.
RIFF_HEADER = 12

#: Bytes of a chunk's letters and length.
CHUNK_HEADER = 8

#: Bytes of the shortest `fmt ` chunk's content.
SHORTEST_FORMAT = 16

#: Formats that are samples one after another: (format tag, bits a sample) → FFmpeg's name of the codec.
_CODECS = {
    (1, 8): "pcm_u8",
    (1, 16): "pcm_s16le",
    (1, 24): "pcm_s24le",
    (1, 32): "pcm_s32le",
    (3, 32): "pcm_f32le",
    (3, 64): "pcm_f64le",
    (6, 8): "pcm_alaw",
    (7, 8): "pcm_mulaw",
}
_TAGS: dict[str | None, tuple[int, int]] = {codec: key for key, codec in _CODECS.items()}

#: Bytes of one sample of one channel, by codec; headerless audio has names of these too.
WIDTHS = {codec: bits // 8 for (_, bits), codec in _CODECS.items()}

_EXTENSIBLE = 0xFFFE

#: Bytes of data from which on the header says only that it does not know: writers put 0, or about the largest number.
_UNKNOWN = 0x7FFF0000

#: Most bytes of data of a file that is written here: its length has 32 bits, and counts the header too.
_LONGEST = 0xFFFFFFFF - 44

#: Chunks before the samples that are passed over. Files have a few; damage can look like one every eight bytes.
_MOST_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class Format:
    """What the samples of a file are."""

    codec: str | None  #: FFmpeg's name; None for one that is not samples one after another, such as ADPCM
    channels: int
    rate: int  #: samples/s of each channel
    bits: int  #: of one sample of one channel

    @classmethod
    def of(cls, codec: str, channels: int, rate: int) -> Format:
        """The format of a codec of WIDTHS."""
        return cls(codec, channels, rate, 8 * WIDTHS[codec])

    @property
    def frame(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * self.bits // 8

    @property
    def bytes_per_second(self) -> int:
        return self.channels * self.rate * self.bits // 8


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before a file's samples."""

    format: Format
    offset: int  #: of the first sample, in bytes from the file's beginning
    size: int | None  #: bytes of samples; None for all that come


def is_riff(data: bytes | bytearray) -> bool:
    """Whether bytes begin a WAV file; RIFF_HEADER of them are enough."""
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def chunk(data: bytes | bytearray, at: int = 0) -> tuple[bytes, int, int] | None:
    """(letters, bytes of its content, bytes to the next chunk) of the chunk at an offset; None if that is cut."""
    if len(data) < at + CHUNK_HEADER:
        return None
    kind, size = struct.unpack_from("<4sI", data, at)
    return kind, size, CHUNK_HEADER + size + size % 2


def data_size(size: int) -> int | None:
    """The bytes of samples in a `data` chunk that says it has `size`; None if it does not know."""
    return size if 0 < size < _UNKNOWN else None


def parse_format(body: bytes) -> Format:
    """What the content of a `fmt ` chunk says, SHORTEST_FORMAT bytes or more; raises ImplausibleAudio."""
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
    bounds.check(channels, rate)
    if tag == _EXTENSIBLE and len(body) >= 26:
        (tag,) = struct.unpack_from("<H", body, 24)  # how its GUID begins
    whole = -(-bits // 8) * 8  # samples of 12 or 20 bits are the upper ones of as many bytes as they need
    codec = _CODECS.get((tag, whole))
    return Format(codec, channels, rate, whole if codec is not None else bits)


def read_format(data: bytes) -> Format | None:
    """The format of a WAV file by its first bytes; None if there is none in them. Raises ImplausibleAudio."""
    for kind, at, size in _chunks(data):
        if kind == b"fmt ":
            return parse_format(data[at : at + size]) if SHORTEST_FORMAT <= size <= len(data) - at else None
    return None


def read_header(data: bytes) -> Header | None:
    """The header of a WAV file by its first bytes; None if they do not hold all of one. Raises ImplausibleAudio."""
    format = read_format(data)
    for kind, at, size in _chunks(data) if format is not None else ():
        if format is not None and kind == b"data":
            return Header(format, at, data_size(size))
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(letters, offset and bytes of its content) of each of the first chunks of a file."""
    at = RIFF_HEADER
    for _ in range(_MOST_CHUNKS if is_riff(data) else 0):
        if (found := chunk(data, at)) is None:
            return
        kind, size, length = found
        yield kind, at + CHUNK_HEADER, size
        at += length


def write_header(format: Format, size: int) -> bytes:
    """The header of a file with `size` bytes of samples, which `padding(size)` follows.

    Raises ValueError for more than fit into a WAV file (`fitting`), KeyError for a format without a codec.
    """
    if size > _LONGEST:
        raise ValueError(f"{size} bytes of samples: a WAV file has {_LONGEST} at most")
    tag, bits = _TAGS[format.codec]
    fields = tag, format.channels, format.rate, format.bytes_per_second, format.frame, bits
    riff = 36 + size + size % 2
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", b"fmt ", 16, *fields, b"data", size)


def padding(size: int) -> bytes:
    """What follows so many bytes of samples at the end of a file."""
    return b"\0" * (size % 2)


def fitting(format: Format, size: int) -> int:
    """The bytes of whole frames, out of so many bytes of samples, that one file can hold."""
    return min(size, _LONGEST) // format.frame * format.frame


def encode(format: Format, samples: bytes) -> bytes:
    """A file of these samples, as the format says they are."""
    return write_header(format, len(samples)) + samples + padding(len(samples))
