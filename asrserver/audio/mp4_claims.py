"""What the index of an MP4 file makes FFmpeg do, compared with the bytes that the file has.

FFmpeg makes an entry of each sample that an index or a fragment claims, of each track: 15 kB took 1.8 GB, in nine
seconds. And it takes the number of a track for a signed one: where that is negative, its search for the next fragment
(`mov_read_trun`, FFmpeg 8) counts up from -1,094,995,528, a second for each fragment of whatever track.

The sandbox (sandbox.py) would contain that, but for seconds of CPU and half a gigabyte of memory for each such file, of
a few kilobytes. So they are refused in milliseconds, by a reason that names what is wrong with them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from asrserver.audio.bounds import TooMuchWork
from asrserver.audio.demux import mp4_index
from asrserver.audio.demux.mp4_index import TooManyBoxes

#: Samples that any file may claim, beside one for each of its bytes: of a truncated file, whose index comes first, most
#: may be missing. They take 24 MB.
_FREE = 1_000_000

#: Boxes in which FFmpeg looks for boxes, of whatever kind; and how deep it looks.
_PARENTS = frozenset(
    (
        *(b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex", b"edts", b"dinf", b"udta"),
        *(b"meta", b"ilst", b"clip", b"wave", b"sinf", b"schi", b"ipro", b"iprp", b"ipco"),
    )
)
_MAX_DEPTH = 10

#: Most bytes of an index that is compressed.
_MAX_UNPACKED = 64 << 20

#: Samples of PCM that FFmpeg takes as one.
_PCM_SAMPLES = 1024

#: The highest number of a track that is positive with FFmpeg.
_MAX_TRACK_ID = 2**31 - 1


def check(file: IO[bytes]) -> None:
    """Check an MP4 file; raises TooMuchWork. Every honest sample has a byte at least, and tracks count from one."""
    size = file.seek(0, 2)
    try:
        claimed = sum(map(_claimed, _indexes(file, size)))
    except TooManyBoxes:
        claimed = size + _FREE + 1
    if claimed > size + _FREE:
        raise TooMuchWork("the index of the MP4 data claims more samples than there are bytes")
    file.seek(0)


def _indexes(file: IO[bytes], end: int) -> Iterator[memoryview]:
    """The boxes of a file in which samples may be claimed; what else it contains is not read."""
    at = 0
    while at < end:
        file.seek(at)
        head = file.read(16)
        size, kind, length = mp4_index.header(head)
        if not length:
            break
        size = size or end - at
        # FFmpeg takes for an index, too, what an interrupted editor has left in the place of one.
        if kind in _PARENTS or head[12:16] in (b"moov", b"cmov"):
            file.seek(at)
            yield memoryview(file.read(size))
        at += size


def _claimed(body: memoryview) -> int:
    """The entries that FFmpeg makes of boxes; raises TooMuchWork for the number of a track."""
    total = 0
    for kind, content in _nested(body):
        if kind == b"trak":
            total += _of_track(content)
        elif kind == b"trun":
            total += int.from_bytes(content[4:8], "big")
        elif kind == b"tkhd":
            _check_track_id(content)
    return total


def _check_track_id(content: memoryview) -> None:
    header = bytes(content[:24])
    at = 20 if header[:1] == b"\1" else 12  # behind times of 64 or of 32 bits
    number = int.from_bytes(header[at : at + 4], "big")
    if number > _MAX_TRACK_ID:
        raise TooMuchWork(f"a track of the MP4 data has the number {number}; {_MAX_TRACK_ID} is the highest")


def _nested(body: memoryview, depth: int = 0) -> Iterator[tuple[bytes, memoryview]]:
    """(type, content) of boxes, each before those in it; raises TooManyBoxes."""
    for kind, content in mp4_index.boxes(body):
        yield kind, content
        if depth >= _MAX_DEPTH:
            continue
        if kind == b"cmov":
            yield from _nested(_unpacked(content), depth + 1)
        elif kind in _PARENTS or bytes(content[4:8]) in (b"moov", b"cmov"):
            begin = max(0, bytes(content[:64]).find(b"hdlr") - 4) if kind == b"meta" else 0
            yield from _nested(content[begin:], depth + 1)


def _unpacked(body: memoryview) -> memoryview:
    """A compressed index, as QuickTime wrote them in the nineties; raises TooManyBoxes if it is not plausible."""
    unpacking = zlib.decompressobj()
    try:
        found = unpacking.decompress(dict(mp4_index.boxes(body)).get(b"cmvd", memoryview(b""))[4:], _MAX_UNPACKED)
    except zlib.error:
        return memoryview(b"")
    if unpacking.unconsumed_tail:
        raise TooManyBoxes
    return memoryview(found)


def _of_track(body: memoryview) -> int:
    """The entries that FFmpeg makes of a track: one for each sample, or of PCM some for each chunk."""
    samples = chunks = longest = 0
    is_sound = False
    is_pcm = True
    for kind, content in _nested(body):
        head = bytes(content[:16])
        if kind in (b"stsz", b"stz2"):
            samples += int.from_bytes(head[8:12], "big")
        elif kind == b"stts":  # a tick for each sample
            is_pcm &= head[4:8] == b"\0\0\0\1" == head[12:16]
        elif kind == b"hdlr":
            is_pcm &= head[8:12] != b"vide"
            is_sound |= head[8:12] == b"soun"
        elif kind in (b"stco", b"co64"):
            chunks += min(int.from_bytes(head[4:8], "big"), len(content) // 4)
        elif kind == b"stsc":
            longest = max(longest, int(_numbers(content[8:])[1::3].max(initial=0)))
    return chunks * (1 + longest // _PCM_SAMPLES) if is_pcm and is_sound else samples


def _numbers(body: memoryview) -> np.ndarray[Any, Any]:
    count = len(body) // 4
    return np.frombuffer(body, ">u4", count) if count else np.zeros(0, np.uint32)
