"""WAV headers, read and written in plain Python; pcm.samples converts the data behind them.

A file is RIFF, a length and WAVE, then chunks: four letters, a length, and as many bytes, padded to an even number. The
chunk `fmt ` has the format of the samples, `data` the samples. Redundant header fields are ignored: the bytes of a
frame (one sample of every channel) and of a second are computed. A length that the writer did not know, as of a file
written to a pipe, is None.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from asrserver.audio import bounds

#: Bytes of RIFF, the length and WAVE.
RIFF_HEADER = 12

#: Bytes of a chunk's letters and length.
CHUNK_HEADER = 8

#: Fewest bytes in a `fmt ` chunk.
SHORTEST_FORMAT = 16

#: Formats of plain samples: (format tag, bits per sample) → FFmpeg's name of the codec.
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
#: Formats whose blocks are decoded by themselves: (format tag, bits per sample) → FFmpeg's name of the codec.
BLOCKS = {(2, 4): "adpcm_ms", (17, 4): "adpcm_ima_wav"}

#: Format tags of what is not decoded as a stream, with their names for messages.
_OTHERS = {
    2: "MS ADPCM",
    0x11: "IMA ADPCM",
    0x31: "GSM 6.10",
    0x45: "G.726",
    0x50: "MPEG audio layer I or II",
    0x55: "MP3",
    0xFF: "AAC",
    0x161: "WMA",
    0x28F: "G.722",
}

_TAGS: dict[str | None, tuple[int, int]] = {codec: key for key, codec in _CODECS.items()}

#: Codec → bytes of one sample of one channel. Headerless audio has the same names.
WIDTHS = {codec: bits // 8 for (_, bits), codec in _CODECS.items()}

_EXTENSIBLE = 0xFFFE

#: A length of at least this many bytes means unknown; writers that do not know it put 0 or about the largest number.
_UNKNOWN = 0x7FFF0000

#: Most bytes of data in a file written here: its length has 32 bits and includes the header.
_MAX_DATA = 0xFFFFFFFF - 44

#: Most chunks looked at before the samples. Files have a few; damage can look like a chunk every eight bytes.
_MAX_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class Format:
    """Format of samples."""

    codec: str | None  #: FFmpeg's name; None if it is not plain samples, such as ADPCM
    channels: int
    rate: int  #: samples per second of each channel
    bits: int  #: per sample of one channel

    @classmethod
    def of(cls, codec: str, channels: int, rate: int) -> Format:
        """Make the format of a codec in WIDTHS."""
        return cls(codec, channels, rate, 8 * WIDTHS[codec])

    @property
    def frame(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * self.bits // 8

    @property
    def bytes_per_second(self) -> int:
        """Bytes of a second of samples."""
        return self.channels * self.rate * self.bits // 8


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a file."""

    format: Format
    offset: int  #: bytes before the first sample
    size: int | None  #: bytes of samples; None: up to the end of the file


def block(codec: str, rate: int, channels: int) -> int:
    """The samples of each channel that must be converted together, counted from the beginning of a recording.

    Channels are mixed by blocks of 20 ms (mixing.py), and floating-point samples divided by blocks where somebody
    did not (pcm.divided), whichever way the bytes are cut.
    """
    return max(1, rate // 50) if channels > 1 or codec.startswith("pcm_f") else 1


def is_riff(data: bytes | bytearray) -> bool:
    """Whether bytes begin a WAV file; the first RIFF_HEADER of them are enough."""
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def chunk(data: bytes | bytearray, at: int = 0) -> tuple[bytes, int, int] | None:
    """(letters, bytes of content, bytes to the next chunk) of the chunk at an offset; None if its header is cut."""
    if len(data) < at + CHUNK_HEADER:
        return None
    kind, size = struct.unpack_from("<4sI", data, at)
    return kind, size, CHUNK_HEADER + size + size % 2


def data_size(size: int) -> int | None:
    """The bytes of samples that a `data` chunk's length means; None: unknown."""
    return size if 0 < size < _UNKNOWN else None


def parse_format(body: bytes) -> Format:
    """Parse the content of a `fmt ` chunk, which must have at least SHORTEST_FORMAT bytes.

    Raises:
        ImplausibleAudio: It claims channels or a rate outside the limits.
    """
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
    bounds.check(channels, rate)
    if tag == _EXTENSIBLE and len(body) >= 26:
        (tag,) = struct.unpack_from("<H", body, 24)  # its GUID begins with the tag
    whole = -(-bits // 8) * 8  # samples of 12 or 20 bits are the upper bits of whole bytes
    codec = _CODECS.get((tag, whole))
    return Format(codec, channels, rate, whole if codec is not None else bits)


def parse_blocks(body: bytes) -> tuple[str, int] | None:
    """(FFmpeg's name of the codec, bytes of a block) in a `fmt ` chunk of ADPCM; None if it is anything else."""
    tag, _, _, _, block, bits = struct.unpack_from("<HHIIHH", body)
    codec = BLOCKS.get((tag, bits))
    return (codec, block) if codec is not None and block else None


def title(body: bytes) -> str:
    """The name of the format in a `fmt ` chunk, for messages."""
    (tag,) = struct.unpack_from("<H", body, 24 if body[:2] == b"\xfe\xff" and len(body) >= 26 else 0)
    return _OTHERS.get(tag, f"of the kind {tag:#x}")


def read_format(data: bytes) -> Format | None:
    """Read the format from the first bytes of a WAV file; None if they do not hold it. Raises ImplausibleAudio."""
    for kind, at, size in _chunks(data):
        if kind == b"fmt ":
            return parse_format(data[at : at + size]) if SHORTEST_FORMAT <= size <= len(data) - at else None
    return None


def is_whole(data: bytes) -> bool:
    """Whether the file that these bytes begin is decoded as a whole only: its audio is GSM, for example."""
    for kind, at, size in _chunks(data):
        if kind == b"fmt " and SHORTEST_FORMAT <= size <= len(data) - at:
            body = data[at : at + size]
            with suppress(bounds.ImplausibleAudio):
                return parse_format(body).codec is None and parse_blocks(body) is None
    return False


def read_header(data: bytes) -> Header | None:
    """Read the header from the first bytes of a WAV file; None if they do not hold all of it.

    Raises:
        ImplausibleAudio: It claims channels or a rate outside the limits.
    """
    format = read_format(data)
    for kind, at, size in _chunks(data) if format is not None else ():
        if format is not None and kind == b"data":
            return Header(format, at, data_size(size))
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(letters, offset of content, bytes of content) of the first chunks of a file."""
    at = RIFF_HEADER
    for _ in range(_MAX_CHUNKS if is_riff(data) else 0):
        if (found := chunk(data, at)) is None:
            return
        kind, size, length = found
        yield kind, at + CHUNK_HEADER, size
        at += length


def without_lists(data: bytes) -> bytes:
    """A file whose lists of names (LIST) are skipped by readers.

    FFmpeg (8.0) allocates for a name in them what it claims to be long: 2 kB of WAV took 2 GB.
    """
    changed = bytearray(data)
    for kind, at, _ in _chunks(data):
        if kind == b"LIST":
            changed[at - CHUNK_HEADER : at - CHUNK_HEADER + len(kind)] = b"JUNK"
    return bytes(changed)


def write_header(format: Format, size: int) -> bytes:
    """Make the header of a file with `size` bytes of samples, which `padding(size)` must follow.

    Raises:
        ValueError: A WAV file cannot hold that many bytes (see `fitting`).
        KeyError: The format has no codec.
    """
    if size > _MAX_DATA:
        raise ValueError(f"{size} bytes of samples do not fit into a WAV file (limit {_MAX_DATA})")
    tag, bits = _TAGS[format.codec]
    fields = tag, format.channels, format.rate, format.bytes_per_second, format.frame, bits
    riff = 36 + size + size % 2
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", b"fmt ", 16, *fields, b"data", size)


def padding(size: int) -> bytes:
    """The bytes that must follow `size` bytes of samples at the end of a file."""
    return b"\0" * (size % 2)


def fitting(format: Format, size: int) -> int:
    """The number of bytes, of `size` bytes of samples, that fit into one file as whole frames."""
    return min(size, _MAX_DATA) // format.frame * format.frame


def encode(format: Format, samples: bytes) -> bytes:
    """Make a file of samples in a format."""
    return write_header(format, len(samples)) + samples + padding(len(samples))
