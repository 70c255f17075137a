"""MP4 (ISO 14496-12) with AAC, Opus, FLAC or MP3: fragmented, as Safari and Chromium record it, and whole files."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator

from asrserver.audio.demux.base import (
    MAX_HEADER_BYTES,
    MAX_PACKET_BYTES,
    MAX_SKIP_BYTES,
    Demuxer,
    Packet,
    Track,
    opus_skip,
)

#: Most samples in one index (three hours of AAC), and most bytes of one.
_MAX_SAMPLES = 500_000
_MAX_INDEX = 8 << 20

#: Most bytes kept of a file whose index is at its end: twenty minutes of AAC.
_MAX_KEPT = 24 << 20


class Mp4(Demuxer):
    """It may start at any fragment (moof), in a file without fragments only at its beginning. The index may be last."""

    name = "MP4"

    def __init__(self) -> None:
        super().__init__()
        self._plan: deque[tuple[int, int]] = deque()  # (offset in the stream, size) of the next samples
        self._fragment: int | None = None  # where the fragment begins, until its first sample is returned
        self._data_end = 0  # where the open mdat ends
        self._kept: list[tuple[int, bytearray]] = []  # data that came before the index: (offset in the stream, bytes)
        self._keep_end = 0

    def _next(self) -> Track | Packet | None:
        if self._kept and self.offset < self._keep_end:
            self._keep()
            return None
        if self._kept and self._plan:
            return self._kept_sample()
        if self.offset < self._data_end:
            return self._sample()
        header = self._header()
        if header is None:
            return None
        kind, size, length = header
        if kind == b"moov" and not self._refused:
            body = self._body(length, size, _MAX_INDEX)
            if body is None:
                return None
            self._drop(size)
            return self._index(body)
        if kind == b"moof":
            at = self.offset
            body = self._body(length, size, MAX_HEADER_BYTES)
            if body is None:
                return None
            self._plan = deque(sorted(self._samples(body, at)))
            self._fragment = at
            self._drop(size)
        elif kind == b"mdat":
            self._drop(length)
            if self.track is None and not self._refused:
                self._keep_end = self.offset + size - length
                self._kept.append((self.offset, bytearray()))
                if sum(len(data) for _, data in self._kept) + size > _MAX_KEPT:
                    self._forget()
                    raise self._unsupported("its index is at its end; send the whole file as one chunk")
            else:
                self._data_end = self.offset + size - length
        else:
            if kind == b"ftyp":
                self.start, self.track, self._refused = self.offset, None, False
                self._forget()
            self._drop(size)
        return None

    def _find(self) -> bool:
        self._forget()
        return self._find_any((b"moof", b"ftyp"), lead=4)

    def _header(self) -> tuple[bytes, int, int] | None:
        """(type, bytes of the box, bytes of its header) of the box at the front; None if cut."""
        if len(self._buffer) < 8:
            return None
        size, kind, length = int.from_bytes(self._buffer[:4], "big"), bytes(self._buffer[4:8]), 8
        if size == 1:
            if len(self._buffer) < 16:
                return None
            size, length = int.from_bytes(self._buffer[8:16], "big"), 16
        if not all(0x20 <= byte < 0x7F or byte == 0xA9 for byte in kind):
            raise self._damaged("no box begins here")
        if not length <= size <= MAX_SKIP_BYTES:
            raise self._damaged(f"a box of {size} bytes")
        return kind, size, length

    def _forget(self) -> None:
        self._plan.clear()
        self._kept.clear()
        self._data_end = self._keep_end = 0

    def _keep(self) -> None:
        """Keep data whose index comes after it."""
        count = min(len(self._buffer), self._keep_end - self.offset)
        self._kept[-1][1].extend(self._buffer[:count])
        self._drop(count)

    def _kept_sample(self) -> Packet | None:
        at, size = self._plan.popleft()
        data = next((data[at - first : at - first + size] for first, data in self._kept if first <= at), b"")
        if not self._plan:
            self._kept.clear()
        return Packet(bytes(data), None)

    def _body(self, length: int, size: int, most: int) -> bytes | None:
        if size > most:
            raise self._damaged("an index is too long")
        if len(self._buffer) < size:
            return None
        return bytes(self._buffer[length:size])

    def _sample(self) -> Packet | None:
        if not self._plan or self._plan[0][0] >= self._data_end:
            self._drop(self._data_end - self.offset)
            return None
        at, size = self._plan[0]
        if at < self.offset or at + size > self._data_end or size > MAX_PACKET_BYTES:
            raise self._damaged("a fragment's index does not fit its data")
        if at > self.offset:
            self._drop(at - self.offset)
            return None
        if len(self._buffer) < size:
            return None
        self._plan.popleft()
        packet = Packet(bytes(self._buffer[:size]), self._fragment)
        self._fragment = None
        self._drop(size)
        return packet

    # -- the index -----------------------------------------------------------------------------------------------

    def _index(self, body: bytes) -> Track:
        moov = list(_boxes(body))
        tracks = [box for kind, box in moov if kind == b"trak"]
        try:
            for trak in tracks:
                if _path(trak, b"mdia", b"hdlr")[8:12] == b"soun":
                    track = self._begin_track(self._audio(trak, dict(moov).get(b"mvex", b"")))
                    table = _table(_path(trak, b"mdia", b"minf", b"stbl"))
                    self._plan = deque(sorted((self.start + at, size) for at, size in table))
                    return track
        except (struct.error, ValueError, IndexError, KeyError, OverflowError):
            raise self._unsupported("its index is damaged") from None
        raise self._unsupported("it has no audio track")

    def _audio(self, trak: bytes, mvex: bytes) -> Track:
        tkhd = _path(trak, b"tkhd")
        (number,) = struct.unpack_from(">I", tkhd, 20 if tkhd[0] else 12)
        entry_size, kind = struct.unpack_from(">I4s", _path(trak, b"mdia", b"minf", b"stbl", b"stsd"), 8)
        entry = _path(trak, b"mdia", b"minf", b"stbl", b"stsd")[16 : 8 + entry_size]
        channels, rate = struct.unpack_from(">H6xH", entry, 16)
        version = int.from_bytes(
            entry[8:10], "big"
        )  # QuickTime's are longer, and have the codec's boxes in another box
        if version == 2:  # its old fields have no meaning
            hertz, channels = struct.unpack_from(">dI", entry, 32)
            rate = int(hertz)
        boxes = dict(_boxes(entry[28 + (0, 16, 36)[version] :]))
        boxes |= dict(_boxes(boxes.get(b"wave", b"")))
        codec, extradata = self._codec(kind, boxes)
        skip = opus_skip(extradata) if codec == "opus" else _edit(trak, rate)
        frame = 0
        for name, trex in _boxes(mvex):
            if name == b"trex" and struct.unpack_from(">I", trex, 4)[0] == number:
                (frame,) = struct.unpack_from(">I", trex, 16)
        return Track(codec, extradata, rate, channels, skip, number, frame)

    def _codec(self, kind: bytes, boxes: dict[bytes, bytes]) -> tuple[str, bytes]:
        if kind == b"Opus":
            dops = boxes[b"dOps"]
            channels, skip, rate, gain, family = struct.unpack_from(">xBHIhB", dops)
            return "opus", b"OpusHead" + struct.pack("<BBHIhB", 1, channels, skip, rate, gain, family) + dops[11:]
        if kind == b"fLaC":
            return "flac", boxes[b"dfLa"][8:42]
        if kind == b"mp4a":
            object_type, config = _descriptor(boxes[b"esds"][4:])
            if object_type in (0x40, 0x67):
                return "aac", config
            if object_type in (0x69, 0x6B):
                return "mp3", b""
        raise self._unsupported(f"its codec is {kind.decode('latin-1')}")

    # -- a fragment ----------------------------------------------------------------------------------------------

    def _samples(self, body: bytes, at: int) -> Iterator[tuple[int, int]]:
        """(offset in the stream, size) of each sample of the audio track in a fragment."""
        if self.track is None:
            return
        end = at  # of the previous track fragment: the next one counts from there unless it says otherwise
        first = True
        try:
            for kind, traf in _boxes(body):
                if kind != b"traf":
                    continue
                number, base, size = self._track_fragment(_path(traf, b"tfhd"), at if first else end, at)
                first, position = False, base
                for name, trun in _boxes(traf):
                    if name == b"trun":
                        samples = list(_run(trun, base, position, size))
                        if number == self.track.number:
                            yield from samples
                        if samples:
                            position = sum(samples[-1])
                end = position
        except (struct.error, IndexError, KeyError):
            raise self._damaged("a fragment's index is truncated") from None
        except OverflowError:
            raise self._damaged("a fragment's index has too many samples") from None

    def _track_fragment(self, tfhd: bytes, base: int, moof: int) -> tuple[int, int, int]:
        """(track, position from which its data offsets count, size of every sample)."""
        assert self.track is not None
        (flags, number), position = struct.unpack_from(">II", tfhd), 8
        size = self.track.frame
        if flags & 0x20000:
            base = moof
        if flags & 0x1:
            base = self.start + struct.unpack_from(">Q", tfhd, position)[0]
            position += 8
        position += 4 * bool(flags & 0x2) + 4 * bool(flags & 0x8)
        if flags & 0x10:
            (size,) = struct.unpack_from(">I", tfhd, position)
        return number, base, size


def _table(stbl: bytes) -> Iterator[tuple[int, int]]:
    """(offset in the file, size) of each sample in the main index; that of a fragmented file has none."""
    stsz, stsc = _path(stbl, b"stsz"), _path(stbl, b"stsc")
    size, count = struct.unpack_from(">II", stsz, 4)
    if count > _MAX_SAMPLES:
        raise OverflowError
    sizes = iter([size] * count if size else struct.unpack_from(f">{count}I", stsz, 12))
    boxes = dict(_boxes(stbl))
    wide = b"co64" in boxes
    offsets = boxes[b"co64" if wide else b"stco"]
    (chunks,) = struct.unpack_from(">I", offsets, 4)
    runs = [struct.unpack_from(">II", stsc, 8 + 12 * n) for n in range(struct.unpack_from(">I", stsc, 4)[0])]
    for chunk, (at,) in enumerate(
        struct.iter_unpack(">Q" if wide else ">I", offsets[8 : 8 + chunks * (8 if wide else 4)]), 1
    ):
        while len(runs) > 1 and runs[1][0] <= chunk:
            runs.pop(0)
        for _ in range(runs[0][1] if runs else 0):
            if (size := next(sizes, 0)) == 0:
                return
            yield at, size
            at += size


def _run(trun: bytes, base: int, position: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of each sample of a run; raises OverflowError if it claims too many."""
    (flags, count), at = struct.unpack_from(">II", trun), 8
    if count > _MAX_SAMPLES:
        raise OverflowError
    if flags & 0x1:
        position = base + struct.unpack_from(">i", trun, at)[0]
        at += 4
    at += 4 * bool(flags & 0x4)
    before = 4 * bool(flags & 0x100)  # bytes of a sample's entry before its size
    step = before + 4 * sum(bool(flags & bit) for bit in (0x200, 0x400, 0x800))
    for number in range(count):
        if flags & 0x200:
            (size,) = struct.unpack_from(">I", trun, at + number * step + before)
        yield position, size
        position += size


def _boxes(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of each box."""
    at = 0
    while at + 8 <= len(body):
        size, length = int.from_bytes(body[at : at + 4], "big"), 8
        if size == 1:
            size, length = int.from_bytes(body[at + 8 : at + 16], "big"), 16
        if size < length:
            return
        yield body[at + 4 : at + 8], body[at + length : at + size]
        at += size


def _path(body: bytes, *kinds: bytes) -> bytes:
    """The content of a nested box; raises KeyError if there is none."""
    for kind in kinds:
        body = next((content for name, content in _boxes(body) if name == kind), b"")
        if not body:
            raise KeyError(kind)
    return body


def _edit(trak: bytes, rate: int) -> int:
    """Samples at the start that the edit list leaves out."""
    try:
        elst, mdhd = _path(trak, b"edts", b"elst"), _path(trak, b"mdia", b"mdhd")
    except KeyError:
        return 0
    (timescale,) = struct.unpack_from(">I", mdhd, 20 if mdhd[0] else 12)
    (count,) = struct.unpack_from(">I", elst, 4)
    for number in range(min(count, 2)):  # an empty edit (-1) may come first
        time = (
            struct.unpack_from(">q", elst, 16 + 20 * number)
            if elst[0]
            else struct.unpack_from(">i", elst, 12 + 12 * number)
        )
        if time[0] >= 0:
            return int(time[0]) * rate // max(int(timescale), 1)
    return 0


def _descriptor(data: bytes) -> tuple[int, bytes]:
    """(object type, decoder configuration) of an elementary stream descriptor (ISO 14496-1, 7.2.6)."""
    at, object_type = 0, 0
    while at < len(data):
        tag, at, size = data[at], at + 1, 0
        while True:
            byte, at = data[at], at + 1
            size = size << 7 | byte & 0x7F
            if not byte & 0x80:
                break
        if tag == 0x03:  # enter it, after its optional fields
            flags = data[at + 2]
            at += 3 + 2 * bool(flags & 0x80) + (1 + data[at + 3] if flags & 0x40 else 0) + 2 * bool(flags & 0x20)
        elif tag == 0x04:
            object_type = data[at]
            at += 13
        elif tag == 0x05:
            return object_type, data[at : at + size]
        else:
            at += size
    return object_type, b""
