"""The index of a fragment of an MP4 file (ISO 14496-12, 8.8): where its samples are.

Recorders write two to ten fragments a second, of a dozen samples each. So it is computed without arrays, whose every
call costs as much as a dozen samples; and sample by sample when they are asked for, because a fragment of few bytes may
claim many.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, compress, pairwise, repeat
from math import nan

import numpy as np

from asrserver.audio.demux import mp4_index
from asrserver.audio.demux.base import Track
from asrserver.audio.demux.mp4_index import Edit, Row, SampleTable

#: Most samples in a fragment: minutes of audio.
MAX_SAMPLES = 100_000


class WithoutTimes(ValueError):
    """Raised when an edit list says which times are kept, and the fragment does not say its own."""


@dataclass(frozen=True, slots=True)
class Run:
    """Samples that lie together.

    Attributes:
        position: Of the first, in bytes of the stream.
        sizes: Bytes of each.
        ticks: Ticks of each.
        start: The tick at which the first begins; None: unknown.
    """

    position: int
    sizes: Sequence[int]
    ticks: Sequence[int]
    start: int | None

    @property
    def offsets(self) -> Iterator[int]:
        """The position of each sample, and the one behind the last."""
        return accumulate(self.sizes, initial=self.position)

    def rows(self, clock: int) -> Iterator[Row]:
        """The samples that have bytes, in the order of these."""
        times: Iterator[float] = repeat(nan)
        if self.start is not None and clock:
            times = (tick / clock for tick in accumulate(self.ticks, initial=self.start))
        rows = zip(self.offsets, self.sizes, times, repeat(0.0), repeat(-1.0), strict=False)
        return rows if all(self.sizes) else compress(rows, self.sizes)


def count(runs: Sequence[Run]) -> int:
    """The number of samples."""
    return sum(len(run.sizes) for run in runs)


def rows(runs: Sequence[Run], clock: int, edits: list[Edit]) -> Iterator[Row]:
    """What is to be read of a fragment, in the order of its bytes.

    Args:
        runs: The samples of the track.
        clock: Ticks per second of the track; 0: unknown.
        edits: What of it is played; empty: all.

    Raises:
        WithoutTimes: The edits cannot be applied.
        ValueError: They repeat or reorder the audio.
    """
    if edits:
        return _edited(runs, clock, edits)
    found = chain.from_iterable(run.rows(clock) for run in runs)
    if all(one.position + sum(one.sizes) <= other.position for one, other in pairwise(runs)):
        return found
    return iter(sorted(found))


def _edited(runs: Sequence[Run], clock: int, edits: list[Edit]) -> Iterator[Row]:
    found = []
    for run in runs:
        if run.start is None:
            raise WithoutTimes
        sizes, ticks = np.array(run.sizes, np.int64), np.array(run.ticks, np.int64)
        ends = run.start + ticks.cumsum()
        plan = SampleTable.of(run.position + sizes.cumsum() - sizes, sizes)
        found.append(mp4_index.edited(plan, ends - ticks, ticks, clock, edits).ordered())
    return iter(sorted(chain.from_iterable(plan.rows() for plan in found)))


def runs(body: bytes, at: int, track: Track, begin: int) -> list[Run]:
    """The samples of a track in a fragment.

    Args:
        body: Content of the box moof.
        at: Position of the box in the stream, in bytes.
        track: The track.
        begin: Position of the file in the stream.

    Raises:
        OverflowError: It claims too many samples.
        struct.error, KeyError: It is truncated.
    """
    found: list[Run] = []
    left = MAX_SAMPLES
    end = at  # of the previous track fragment: the next one counts from there unless it says otherwise
    for kind, traf in mp4_index.boxes(body):
        if kind != b"traf":
            continue
        boxes = list(mp4_index.boxes(traf))
        found_boxes = dict(boxes)
        number, base, size, ticks = _defaults(found_boxes[b"tfhd"], end, at, track, begin)
        start, end = _start(found_boxes.get(b"tfdt", b"")), base
        for name, trun in boxes:
            if name != b"trun":
                continue
            run = _run(trun, base, end, (size, ticks), left, start)
            left -= len(run.sizes)
            end = run.position + sum(run.sizes)
            if start is not None:
                start += sum(run.ticks)
            if number == track.number:
                found.append(run)
    return found


def _start(tfdt: bytes) -> int | None:
    """The tick at which a track fragment begins; None: unknown."""
    if len(tfdt) < 8:
        return None
    return min(int(struct.unpack_from(">Q" if tfdt[0] else ">I", tfdt, 4)[0]), 1 << 60)


def _defaults(tfhd: bytes, base: int, moof: int, track: Track, begin: int) -> tuple[int, int, int, int]:
    """(track, position from which data offsets count, bytes and ticks of every sample) of a track fragment."""
    (flags, number), at = struct.unpack_from(">II", tfhd), 8
    size, ticks = track.frame, track.ticks
    if flags & 0x20000:
        base = moof
    if flags & 0x1:
        base = begin + struct.unpack_from(">Q", tfhd, at)[0]
        at += 8
    at += 4 * bool(flags & 0x2)
    if flags & 0x8:
        (ticks,) = struct.unpack_from(">I", tfhd, at)
        at += 4
    if flags & 0x10:
        (size,) = struct.unpack_from(">I", tfhd, at)
    return number, base, size, ticks


def _run(trun: bytes, base: int, position: int, defaults: tuple[int, int], most: int, start: int | None) -> Run:
    """A run of samples.

    Args:
        trun: The box's content.
        base: Position from which its data offset counts.
        position: Where it begins unless it says otherwise.
        defaults: Bytes and ticks of its samples unless it says otherwise.
        most: Most samples; raises OverflowError if it claims more.
        start: The tick at which it begins.
    """
    (flags, samples), at = struct.unpack_from(">II", trun), 8
    if samples > most:
        raise OverflowError
    if flags & 0x1:
        position = base + struct.unpack_from(">i", trun, at)[0]
        at += 4
    at += 4 * bool(flags & 0x4)
    columns = [bit for bit in (0x100, 0x200, 0x400, 0x800) if flags & bit]
    entries = struct.unpack_from(f">{samples * len(columns)}I", trun, at)
    found = {bit: entries[number :: len(columns)] for number, bit in enumerate(columns)}
    size, ticks = defaults
    sizes, lasts = found.get(0x200, (size,) * samples), found.get(0x100, (ticks,) * samples)
    return Run(position, sizes, lasts, start if all(lasts) else None)
