"""The index of an MP4 file (ISO 14496-12): where its samples are, when they are played, and what edit lists keep.

Everything is computed with arrays: an index has a million entries, and may claim any number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

#: Most samples in one index: three hours of AAC.
MAX_SAMPLES = 500_000

#: The size of a box, and its type.
_BOX = struct.Struct(">I4s")

#: Most boxes in one box. Files have a few dozen.
_MAX_BOXES = 4096

#: Samples before the first that an edit keeps, which are decoded and not played: MP3 needs ten.
_PREROLL = 12

#: Samples of which the numbers are Python's at a time: those of an array take many times as long to read one by one,
#: and those of a whole index hundreds of megabytes.
_ROWS = 256

#: Bytes, or a view of some.
T = TypeVar("T", bytes, memoryview)

Array = np.ndarray[Any, np.dtype[Any]]

#: A sample of a SampleTable: its offset, size, time, skip and keep.
Row = tuple[int, int, float, float, float]


class TooManyBoxes(OverflowError):
    """Raised when a box contains more boxes than any recorder writes: what reads them all takes seconds."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A part of the track that is played.

    Attributes:
        begin: Its first tick of the track's clock.
        end: The tick after its last; None: up to the end of the track.
        start: When it is played, in seconds.
    """

    begin: int
    end: int | None
    start: float


@dataclass(slots=True)
class SampleTable:
    """The samples to read, in the order of their bytes. All arrays have one element a sample.

    Attributes:
        offsets: Position in the file, or in the stream, in bytes.
        sizes: Bytes.
        times: When the sample, or what is kept of it, is played, in seconds; NaN: unknown.
        skips: Seconds at the beginning that are not played.
        keeps: Seconds after them that are played; negative: all.
    """

    offsets: Array
    sizes: Array
    times: Array
    skips: Array
    keeps: Array

    @classmethod
    def of(cls, offsets: Array, sizes: Array) -> SampleTable:
        """A plan of samples that are played as a whole, at times that are not known. The latter arrays are read-only:
        they take no memory.
        """
        return cls(offsets, sizes, *(np.broadcast_to(value, len(offsets)) for value in (np.nan, 0.0, -1.0)))

    @property
    def arrays(self) -> tuple[Array, ...]:
        """All arrays, in the order of the attributes."""
        return self.offsets, self.sizes, self.times, self.skips, self.keeps

    def __len__(self) -> int:
        return len(self.offsets)

    def rows(self) -> Iterator[Row]:
        """The samples, one after another."""
        for at in range(0, len(self), _ROWS):
            yield from zip(*(array[at : at + _ROWS].tolist() for array in self.arrays), strict=True)

    def select(self, which: Array) -> SampleTable:
        """The samples at some indexes."""
        return SampleTable(*(array[which] for array in self.arrays))

    def ordered(self) -> SampleTable:
        """The samples that have bytes, in the order of these."""
        if (self.sizes > 0).all() and (self.offsets[1:] >= self.offsets[:-1]).all():
            return self
        plan = self.select(np.flatnonzero(self.sizes > 0))
        return plan.select(np.argsort(plan.offsets, kind="stable"))


def header(head: bytes | memoryview) -> tuple[int, bytes, int]:
    """(bytes of a box, or 0: up to the end; type; bytes of its header, or 0: none begins) of its first 16 bytes."""
    if len(head) < 8:
        return 0, b"", 0
    (size, kind), length = _BOX.unpack_from(head), 8
    if size == 1:
        size, length = int.from_bytes(head[8:16], "big"), 16
    return size, kind, length if not size or size >= length else 0


def boxes(body: T) -> Iterator[tuple[bytes, T]]:
    """(type, content) of each box; raises TooManyBoxes."""
    at = count = 0
    while at + 8 <= len(body):
        size, kind, length = header(body[at : at + 16])
        if not length:
            return
        size = size or len(body) - at
        if (count := count + 1) > _MAX_BOXES:
            raise TooManyBoxes
        yield kind, body[at + length : at + size]
        at += size


def path(body: bytes, *kinds: bytes) -> bytes:
    """The content of a nested box; raises KeyError if there is none."""
    for kind in kinds:
        body = next((content for name, content in boxes(body) if name == kind), b"")
        if not body:
            raise KeyError(kind)
    return body


def table(stbl: bytes) -> tuple[Array, Array]:
    """(offsets in the file, sizes) of the samples in the main index; that of a fragmented file has none."""
    stsz = path(stbl, b"stsz")
    size, count = struct.unpack_from(">II", stsz, 4)
    if count > MAX_SAMPLES:
        raise OverflowError
    if not count:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    sizes = np.full(count, size, np.int64) if size else _numbers(stsz, 12, ">u4", count)
    starts, in_chunk = _chunks(stbl, count)
    ends = np.cumsum(in_chunk)
    sizes = sizes[: int(ends[-1])]
    before = np.cumsum(sizes) - sizes
    firsts = np.minimum(ends - in_chunk, len(sizes) - 1)
    return np.repeat(starts - before[firsts], in_chunk) + before, sizes


def pcm_table(stbl: bytes, frame: int, most: int) -> tuple[Array, Array, Array]:
    """(offsets in the file, sizes, ticks) of packets of PCM, each of several samples that lie together.

    Args:
        stbl: The index, in which each sample of all channels counts as one.
        frame: Bytes of it.
        most: Most samples of a packet.
    """
    (count,) = struct.unpack_from(">I", path(stbl, b"stsz"), 8)
    stts = path(stbl, b"stts")
    entries, _, ticks = struct.unpack_from(">III", stts, 4)
    if not count or entries != 1:
        return (np.zeros(0, np.int64),) * 3
    starts, in_chunk = _chunks(stbl, count)
    pieces = -(-in_chunk // most)
    total = int(pieces.sum())
    if total > MAX_SAMPLES:
        raise OverflowError
    done = (np.arange(total) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * most
    samples = np.minimum(np.repeat(in_chunk, pieces) - done, most)
    return np.repeat(starts, pieces) + done * frame, samples * frame, samples * ticks


def _chunks(stbl: bytes, count: int) -> tuple[Array, Array]:
    """(offset in the file, number of samples) of each chunk; the index has `count` samples."""
    stsc = path(stbl, b"stsc")
    found = dict(boxes(stbl))
    wide = b"co64" in found
    offsets = found[b"co64" if wide else b"stco"]
    chunks = min(int.from_bytes(offsets[4:8], "big"), len(offsets) // (8 if wide else 4))
    starts = _numbers(offsets, 8, ">u8" if wide else ">u4", chunks)
    runs = _numbers(stsc, 8, ">u4", 3 * min(int.from_bytes(stsc[4:8], "big"), len(stsc) // 12)).reshape(-1, 3)
    run = np.searchsorted(runs[:, 0], np.arange(1, len(starts) + 1), side="right") - 1
    if not len(runs) or not len(starts) or run[0] < 0:
        raise ValueError
    in_chunk = np.minimum(runs[run, 1], count)
    ends = np.cumsum(in_chunk)
    used = int(np.searchsorted(ends, count)) + 1
    in_chunk = np.diff(np.minimum(ends[:used], count), prepend=0)
    return starts[: len(in_chunk)], in_chunk


def durations(stbl: bytes, count: int) -> Array:
    """The ticks of the first `count` samples; those of samples that the table lacks are 0."""
    stts = path(stbl, b"stts")
    entries = _numbers(stts, 8, ">u4", 2 * min(int.from_bytes(stts[4:8], "big"), len(stts) // 8)).reshape(-1, 2)
    ends = np.minimum(np.cumsum(np.minimum(entries[:, 0], count)), count)
    found = np.repeat(entries[:, 1], np.diff(ends, prepend=0))
    return np.concatenate([found, np.zeros(count - len(found), np.int64)])


def edits(trak: bytes, clock: int, movie_clock: int) -> list[Edit]:
    """What the edit list of a track keeps, in the order in which it is played; without a list, nothing.

    Args:
        trak: The track.
        clock: Ticks per second of the track.
        movie_clock: Of the whole file, in which the list's durations count.
    """
    try:
        elst = path(trak, b"edts", b"elst")
    except KeyError:
        return []
    wide = elst[0] == 1
    width, form = (20, ">Qq") if wide else (12, ">Ii")
    found, played = [], 0.0
    for at in range(8, min(len(elst) - width + 1, 8 + width * int.from_bytes(elst[4:8], "big")), width):
        length, begin = struct.unpack_from(form, elst, at)
        seconds = length / movie_clock
        if begin >= 0:
            end = begin + round(seconds * clock) if length else None
            found.append(Edit(begin, end, played))
        played += seconds
        if len(found) > _MAX_BOXES:
            raise OverflowError
    return found


def edited(plan: SampleTable, starts: Array, ticks: Array, clock: int, kept: list[Edit]) -> SampleTable:
    """Give samples their times, and leave out what edits do not keep.

    Args:
        plan: The samples, in the order in which they are played.
        starts: The tick at which each begins.
        ticks: The ticks of each.
        clock: Ticks per second.
        kept: The edits. None at all keep everything.

    Raises:
        ValueError: The edits play something twice, or out of order.
    """
    plan.keeps = plan.keeps.astype(np.float32)
    if len(ticks) > 1 and 0 < ticks[-1] < ticks[-2]:  # the rest of the last packet is padding
        plan.keeps[-1] = ticks[-1] / clock
    if not kept:
        plan.times = starts / clock
        return plan
    plan.times, plan.skips = np.full(len(plan), np.nan), np.zeros(len(plan), np.float32)
    ends = starts + ticks
    selected: list[Array] = []
    taken, limit = -1, 0  # the last sample that was selected, and the tick up to which
    for edit in kept:
        if edit.begin < limit:
            raise ValueError
        limit = edit.end if edit.end is not None else 1 << 62
        first = int(np.searchsorted(ends, edit.begin, side="right"))
        last = int(np.searchsorted(starts, limit, side="left"))
        if first >= last:
            continue
        inside = np.arange(first, last)
        plan.times[inside] = edit.start + (np.maximum(starts[inside], edit.begin) - edit.begin) / clock
        plan.skips[first] = max(0, edit.begin - int(starts[first])) / clock
        if limit < ends[last - 1]:
            plan.keeps[last - 1] = (limit - max(edit.begin, int(starts[last - 1]))) / clock
        before = np.arange(max(0, first - _PREROLL), first)
        before = before[before > taken]
        plan.keeps[before] = 0.0
        selected += [before, inside[inside > taken]]
        taken = max(taken, last - 1)
    return plan.select(np.concatenate([np.zeros(0, np.int64), *selected]))


def _numbers(data: bytes, at: int, dtype: str, count: int) -> Array:
    """Big-endian numbers; raises ValueError if there are fewer."""
    if count > 0:
        return np.frombuffer(data, dtype, count, at).astype(np.int64)
    return np.zeros(0, np.int64)
