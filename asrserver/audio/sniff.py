"""Recognise bytes by how they begin: a container, something that is not audio, or anything else, such as PCM."""

from __future__ import annotations

import codecs
import string

from asrserver.audio import frame_headers
from asrserver.errors import AudioError

#: How a tag begins that may precede any audio.
_ID3 = b"ID3"

#: Unambiguous signatures: (offset, bytes, name of the container). A RIFF or FORM has its type behind a length.
_CONTAINERS = (
    (8, b"WAVE", "wav"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"OggS", "ogg"),
    (0, b"fLaC", "flac"),
    (4, b"ftyp", "mp4"),
    (0, _ID3, "mp3"),
    (0, b"caff\0\x01", "caf"),
    (8, b"AIFF", "aiff"),
    (8, b"AIFC", "aiff"),
    (0, b".snd\0\0", "au"),
    (0, b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb", "w64"),
    (8, b"AVI ", "avi"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"FLV\x01", "flv"),
    (0, b"\0\0\x01\xba", "mpeg"),
    (0, b"#!AMR", "amr"),
    (0, b"wvpk", "wavpack"),
)

#: The first four bytes of the containers whose type is behind a length → the container, if it is another.
_OUTER = {
    "wav": {b"RIFF": "wav", b"RIFX": "rifx", b"RF64": "rf64", b"BW64": "rf64"},
    "aiff": {b"FORM": "aiff"},
    "avi": {b"RIFF": "avi"},
}

#: Boxes with which QuickTime files begin that have no `ftyp`.
_QUICKTIME = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"moof", b"styp")

#: Containers that are decoded as whole files only → their names.
WHOLE = {
    "caf": "CAF",
    "aiff": "AIFF",
    "au": "AU",
    "w64": "Wave64",
    "rf64": "RF64",
    "rifx": "RIFX",
    "avi": "AVI",
    "asf": "ASF (WMA, WMV)",
    "flv": "FLV",
    "mpeg": "MPEG program stream",
    "mpegts": "MPEG transport stream",
    "mp2": "MPEG audio layer I or II",
    "amr": "AMR",
    "wavpack": "WavPack",
    "ac3": "AC-3",
    "eac3": "E-AC-3",
    "loas": "AAC in LOAS",
}

#: The "container" of a live stream that begins with what is certainly no audio: all of it is refused, not only its
#: first piece.
NOT_AUDIO = "not_audio"

#: (signature, name for the error) of what clients send by mistake, and of audio that nothing here decodes.
_NOT_AUDIO = (
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"BZh91AY&SY", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of Microsoft Office"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90\0\x03\0\0\0", "a program"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"8BPS\0\x01", "a Photoshop image"),
    (b"MThd\0\0\0\x06", "MIDI"),
)
_NOT_DECODED = (
    (b"\x02#!SILK", "SILK audio"),
    (b"#!SILK", "SILK audio"),
    (b".RMF\0\0", "RealMedia"),
    (b"MAC ", "Monkey's Audio"),
    (b"TTA1", "TTA audio"),
    (b"DSD ", "DSD audio"),
    (b"FRM8", "DSD audio"),
    (b"MPCK", "Musepack audio"),
    (b"MP+", "Musepack audio"),
    (b"NIST_1A", "NIST SPHERE audio"),
    (b"Creative Voice File", "a Creative Voice file"),
    (b"ADIF", "AAC in ADIF"),
    (b"\x7f\xfe\x80\x01", "DTS audio"),
    (b"\xfe\x7f\x01\x80", "DTS audio"),
    (b"nut/multimedia container\0", "a NUT file"),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01", "an MXF file"),
    (b"\xb7\xd8\0\x20\x37\x49\xda\x11", "a WTV file"),
    *((bytes((0x64, 0xA3, kind, 0)), "an IRCAM file") for kind in (1, 2, 3, 4)),
    *((bytes((0, kind, 0xA3, 0x64)), "an IRCAM file") for kind in (1, 2, 3, 4)),
    (b".SoX", "a SoX file"),
    (b"XoS.", "a SoX file"),
    *((kind + bytes((version,)), "a Flash file") for kind in (b"FWS", b"CWS", b"ZWS") for version in range(3, 51)),
    (b".ra\xfd", "RealAudio"),
    (b"ajkg", "Shorten audio"),
    (b"OFR ", "OptimFROG audio"),
    (b"RIFF", "a RIFF file without sound"),
    (b"FORM", "an IFF file without sound"),
)

#: Bytes of a packet of an MPEG transport stream; recorders of discs put four more before each.
_TS_PACKETS = (188, 192)

#: Bytes of an AC-3 frame at most, and of its header as far as it is read.
_AC3_FRAME, _AC3_HEADER = 3840, 6

#: Consecutive frames that are proof of a signature as short as that of LOAS.
_SEVERAL = 3

#: Bytes of a file or chunk in which it is looked for what it is.
HEAD_BYTES = 4096

_PRINTABLE = frozenset(string.printable.encode())

#: How texts in UTF-16 begin.
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

#: Characters of texts that Python does not call printable: white space, and the mark at the beginning.
_SPACES = dict.fromkeys(map(ord, "\t\n\r\f\v\ufeff\u3000\u00a0"), " ")

#: A chunk of at least this many bytes is text if they all are: PCM never looks like text for that long.
_TEXT_PREFIX = 64


def container(data: bytes, first: bool = True) -> str | None:
    """Find the container that bytes begin.

    Args:
        data: The first bytes of a chunk or file.
        first: Nothing precedes them. Only then weak signatures count (an MP3 frame, ADTS), which PCM may resemble.

    Returns:
        Name of the container: FFmpeg's, for those that are decoded as streams; or one of WHOLE. None if they begin
        none.
    """
    for offset, magic, kind in _CONTAINERS:
        if data.startswith(magic, offset):
            if kind in _OUTER:
                if (outer := _OUTER[kind].get(bytes(data[:4]))) is None:
                    continue
                return outer
            if kind == "ogg" and not _first_page(data):
                continue
            return _tagged(data) if magic == _ID3 else kind
    return _weak(bytes(data[:HEAD_BYTES])) if first and len(data) > 4 else None


def title(kind: str) -> str:
    """The name of a container for messages."""
    return WHOLE.get(kind, kind)


def _weak(data: bytes) -> str | None:
    """The container that bytes begin by a signature that PCM may resemble."""
    if data[4:8] in _QUICKTIME and data[0] < 0x10:
        return "mp4"
    if (kind := _ac3(data)) is not None:
        return kind
    if _loas(data):
        return "loas"
    for size in _TS_PACKETS:
        marks = data[size - 188 : 5 * size : size]
        if len(marks) >= 3 and set(marks) == {0x47}:
            return "mpegts"
    return frame_headers.container(data)


def _tagged(data: bytes) -> str:
    """The container behind an ID3 tag: MP3, unless its beginning is at hand and says otherwise."""
    behind = data[frame_headers.id3_bytes(data) :]
    if behind.startswith(b"fLaC"):
        return "flac"
    return "aac" if len(behind) > 4 and frame_headers.container(bytes(behind[:HEAD_BYTES])) == "aac" else "mp3"


def _first_page(data: bytes) -> bool:
    """Whether an Ogg page is the first of its stream (RFC 3533, 6): later ones begin nothing."""
    return len(data) > 5 and bool(data[5] & 0x02)


def _ac3(data: bytes) -> str | None:
    """`ac3` or `eac3` if bytes begin with such a frame (ETSI TS 102 366), which another follows if it is at hand."""
    mark = b"\x0b\x77"
    if not data.startswith(mark) or len(data) < _AC3_HEADER:
        return None
    version = data[5] >> 3
    if 10 < version <= 16:
        length = 2 * ((data[2] & 7) << 8 | data[3]) + 2
        return "eac3" if data[length : length + 2] in (mark, b"") else None
    if data[4] >> 6 == 3 or data[4] & 0x3F >= 38 or version > 10:
        return None
    followed = len(data) < _AC3_FRAME + len(mark) or data.find(mark, len(mark), _AC3_FRAME + len(mark)) > 0
    return "ac3" if followed else None


def _loas(data: bytes) -> bool:
    """Whether bytes consist of frames of LOAS (ISO 14496-3, 1.7.2), of which there must be several."""
    at = count = 0
    while at + 3 <= len(data):
        if data[at] != 0x56 or data[at + 1] & 0xE0 != 0xE0:
            return False
        at, count = at + 3 + ((data[at + 1] & 0x1F) << 8 | data[at + 2]), count + 1
    return count >= _SEVERAL


def of_file(data: bytes) -> str:
    """The container of a file.

    Args:
        data: Its first bytes: HEAD_BYTES, if it has so many.

    Raises:
        AudioError: not_audio, or undecodable_audio if it is what nothing here decodes.
    """
    if not data:
        raise AudioError("not_audio", "the file is empty")
    if (kind := container(data)) is None:
        reject_non_audio(data)
        raise AudioError("not_audio", "the file is in no audio or video format that is known")
    return kind


def reject_non_audio(data: bytes, first: bool = True) -> None:
    """Raise what `refusal` finds, if anything."""
    if (error := refusal(data, first)) is not None:
        raise error


def refusal(data: bytes, first: bool = True) -> AudioError | None:
    """Why bytes that begin no container are certainly not PCM; None if they may be.

    Args:
        data: The bytes of a chunk.
        first: Nothing precedes them. Bytes that continue PCM may look like anything except a long text.

    Returns:
        An error with the code not_audio, or undecodable_audio if it is audio that nothing here decodes.
    """
    for magic, name in _NOT_AUDIO if first else ():
        if data.startswith(magic):
            return AudioError("not_audio", f"this is {name}, not audio")
    if first and data[4:7] == b"\xf8\x72\x6f":
        return AudioError("undecodable_audio", "this is TrueHD audio, which is not supported: convert it")
    if first and data[:2] == b"BM" and data[6:10] == bytes(4) and data[11:14] == bytes(3):
        return AudioError("not_audio", "this is a BMP image, not audio")
    for magic, name in _NOT_DECODED if first else ():
        if data.startswith(magic):
            return AudioError("undecodable_audio", f"this is {name}, which is not supported: convert it")
    return AudioError("not_audio", "this is text, not audio") if is_text(data) else None


def is_text(data: bytes) -> bool:
    """Whether bytes are text in UTF-8, or in UTF-16 with a mark, rather than audio of any encoding."""
    head = bytes(data[:HEAD_BYTES])
    if len(head) < _TEXT_PREFIX:
        return False
    if _PRINTABLE.issuperset(head):
        return True
    encoding = "utf-8"
    if head[:2] in _UTF16 and not any(head[3 if head[0] == 0xFF else 2 :: 2]):  # of European languages
        encoding = "utf-16"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return text.translate(_SPACES).isprintable()
