"""MP4 and MOV (ISO 14496-12) with AAC, ALAC, Opus, FLAC, MP3 or PCM: fragmented, as browsers record it, or whole."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from asrserver.audio import bounds, wav
from asrserver.audio.bounds import TooMuchWork
from asrserver.audio.demux import mp4_fragment, mp4_index, mp4_pcm
from asrserver.audio.demux.base import (
    MAX_DELAY,
    MAX_HEADER_BYTES,
    MAX_PACKET_BYTES,
    MAX_SKIP_BYTES,
    Demuxer,
    Packet,
    Track,
    opus_skip,
)
from asrserver.audio.demux.mp4_index import Edit, Row, SampleTable

#: Most bytes of an index.
_MAX_INDEX = 8 << 20

#: Most samples at the start of a fragmented file that are the encoder's, and not cut off.
_MAX_PRIMING = 9600

#: Most tracks that are looked at.
_MAX_TRACKS = 64

#: What damaged tables raise.
_DAMAGE = (struct.error, ValueError, IndexError, KeyError, OverflowError)

#: Most bytes kept of a file whose index is at its end: twenty minutes of AAC.
_MAX_KEPT = 24 << 20


class Mp4(Demuxer):
    """It may start at any fragment (moof), in a file without fragments only at its beginning. The index may be last."""

    name = "MP4"

    def __init__(self) -> None:
        super().__init__()
        self._row: Row | None = None  # the next sample to be read
        self._rows: Iterator[Row] = iter(())  # those after it
        self._clock = 0  # ticks per second of the track; 0: unknown
        self._edits: list[Edit] = []  # that cut more than the encoder's samples at the start of a fragmented file
        self._moov = b""  # the index of a recording of several audio tracks, of which none is named
        self._restart: int | None = None  # where the fragment begins, until its first sample is returned
        self._data_end = 0  # where the open mdat ends
        self._kept: list[tuple[int, bytearray]] = []  # data that came before the index: (offset in the stream, bytes)
        self._keep_end = 0

    def resume(self, track: Track, offset: int, start: int, time: float | None = None) -> None:
        super().resume(track, offset, start, time)
        self._clock = round(track.clock)

    def _next(self) -> Track | Packet | None:
        if self.offset < self._data_end:
            return self._sample()
        if self._kept and self.offset < self._keep_end:
            self._keep()
            return None
        if self._kept and self._row is not None:
            return self._kept_sample(self._row)
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
            self._fragment(body, at)
            self._restart = None if self._edits else at
            self._moov = b""
            self._drop(size)
        elif kind == b"mdat":
            self._drop(length)
            if self.track is None and not self._refused:
                self._keep_end = self.offset + size - length
                self._kept.append((self.offset, bytearray()))
                if sum(len(data) for _, data in self._kept) + size > _MAX_KEPT:
                    self._forget()
                    raise self._unsupported(
                        "its index is at its end: move it (ffmpeg -movflags +faststart), or send the file as one chunk"
                    )
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

    def _follow(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self._row = next(rows, None)

    def _forget(self) -> None:
        self._follow(iter(()))
        self._kept = []
        self._data_end = self._keep_end = 0

    def _keep(self) -> None:
        """Keep data whose index comes after it."""
        count = min(len(self._buffer), self._keep_end - self.offset)
        self._kept[-1][1].extend(self._buffer[:count])
        self._drop(count)

    def _kept_sample(self, row: Row) -> Packet:
        at, size = row[:2]
        data = b""
        for first, kept in self._kept:
            if first <= at < first + len(kept):
                data = bytes(kept[at - first : at - first + min(size, MAX_PACKET_BYTES)])
        packet = self._packet(data, row, None)
        if self._row is None:
            self._kept = []
        return packet

    def _body(self, length: int, size: int, most: int) -> bytes | None:
        if size > most:
            raise self._damaged("an index is too long")
        if len(self._buffer) < size:
            return None
        return bytes(self._buffer[length:size])

    def _sample(self) -> Packet | None:
        row = self._row
        if row is None or row[0] >= self._data_end:
            self._drop(self._data_end - self.offset)
            return None
        at, size = row[:2]
        if at < self.offset or at + size > self._data_end or size > MAX_PACKET_BYTES:
            raise self._damaged("a fragment's index does not fit its data")
        if at > self.offset:
            self._drop(at - self.offset)
            return None
        if len(self._buffer) < size:
            return None
        packet = self._packet(bytes(self._buffer[:size]), row, self._restart)
        self._restart = None
        self._drop(size)
        return packet

    def _packet(self, data: bytes, row: Row, restart: int | None) -> Packet:
        """Make a packet of the sample at hand, and take the next."""
        _, _, time, skip, keep = row
        self._row = next(self._rows, None)
        packet = Packet(data, restart)
        if time == time and keep:  # else it is not known, or not that of what is played
            packet.time = time
        if skip or keep >= 0:
            rate = self.track.rate if self.track is not None else 0
            packet.skip, packet.keep = round(skip * rate), None if keep < 0 else round(keep * rate)
        return packet

    def others(self, most: int) -> list[Demuxer]:
        found = super().others(most)
        self._moov = b""
        return found

    def _alternatives(self) -> int:
        return min(self.tracks, _MAX_TRACKS)

    def _reopen(self, number: int) -> Track:
        self.wanted = number
        track = self._index(self._moov)
        self.wanted, self._moov = None, b""
        return track

    # -- the index -----------------------------------------------------------------------------------------------

    def _index(self, body: bytes) -> Track:
        try:
            moov = list(mp4_index.boxes(body))
            sound = [trak for kind, trak in moov if kind == b"trak" and _is_sound(trak)]
            if not sound:
                raise self._unsupported("it has no audio track")
            self.tracks, self._moov = len(sound), body if len(sound) > 1 and self.wanted is None else b""
            trak = self._chosen(sound, _is_enabled)
            rest = dict(moov)
            track = self._audio(trak, rest.get(b"mvex", b""))
            return self._plan_track(trak, track, _clock(rest.get(b"mvhd", b"")))
        except mp4_index.TooManyBoxes:
            self.track, self._refused = None, True
            raise TooMuchWork("the index of the MP4 data has too many boxes") from None
        except _DAMAGE:
            raise self._unsupported("its index is damaged") from None

    def _plan_track(self, trak: bytes, track: Track, movie_clock: int) -> Track:
        """Open a track, and plan which samples of it are read."""
        stbl = mp4_index.path(trak, b"mdia", b"minf", b"stbl")
        if track.codec.startswith("pcm"):
            bounds.check(track.channels, track.rate)  # of other codecs the decoder's head is asked
            block = wav.block(track.codec, track.rate, track.channels)
            most = max(1, min(track.rate // 4, MAX_PACKET_BYTES // track.frame))
            offsets, sizes, ticks = mp4_index.pcm_table(stbl, track.frame, max(1, most // block) * block)
            if not len(sizes):
                raise self._unsupported("its samples are PCM without an index")
        else:
            offsets, sizes = mp4_index.table(stbl)
            ticks = mp4_index.durations(stbl, len(sizes))
        self._spend(len(sizes) // 256)
        self._clock = _clock(mp4_index.path(trak, b"mdia", b"mdhd"))
        edits = mp4_index.edits(trak, self._clock, max(1, movie_clock))
        plan = SampleTable.of(offsets + self.start, sizes)
        self._edits, skip = [], track.skip
        delay = edits[0].start if edits and edits[0].start <= MAX_DELAY else 0.0
        if len(plan):
            if not ticks.any() and not edits:
                plan = plan.ordered()
            else:
                if skip and edits and edits[0].begin:  # the list counts what Opus says too
                    skip = 0
                try:
                    plan = mp4_index.edited(plan, np.cumsum(ticks) - ticks, ticks, self._clock, edits).ordered()
                except ValueError:
                    raise self._unsupported("its edit list repeats or reorders the audio") from None
        elif edits:
            first = edits[0].begin * track.rate // self._clock
            if first <= _MAX_PRIMING and len(edits) == 1 and edits[0].end is None:
                skip = skip or first
            else:
                self._edits = edits
        track = self._begin_track(replace(track, skip=skip, clock=float(self._clock), delay=delay))
        self._follow(plan.rows())
        return track

    def _audio(self, trak: bytes, mvex: bytes) -> Track:
        tkhd = mp4_index.path(trak, b"tkhd")
        (number,) = struct.unpack_from(">I", tkhd, 20 if tkhd[0] else 12)
        stsd = mp4_index.path(trak, b"mdia", b"minf", b"stbl", b"stsd")
        entry_size, kind = struct.unpack_from(">I4s", stsd, 8)
        entry = stsd[16 : 8 + entry_size]
        channels, rate = struct.unpack_from(">H6xH", entry, 16)
        # QuickTime's versions are longer, and have the codec's boxes in another box.
        version = int.from_bytes(entry[8:10], "big")
        if version == 2:  # its old fields have no meaning
            hertz, channels = struct.unpack_from(">dI", entry, 32)
            rate = int(hertz)
        boxes = dict(mp4_index.boxes(entry[28 + (0, 16, 36)[version] :]))
        boxes |= dict(mp4_index.boxes(boxes.get(b"wave", b"")))
        frame = ticks = 0
        if (bits := mp4_pcm.codec(kind, entry, version, boxes)) is not None:
            codec, extradata, frame = bits[0], b"", bits[1] * channels
        else:
            codec, extradata = self._codec(kind, boxes)
        skip = opus_skip(extradata) if codec == "opus" else 0
        for name, trex in mp4_index.boxes(mvex):
            if name == b"trex" and struct.unpack_from(">I", trex, 4)[0] == number:
                ticks, frame = struct.unpack_from(">II", trex, 12)
        return Track(codec, extradata, 48000 if codec == "opus" else rate, channels, skip, number, frame, ticks=ticks)

    def _codec(self, kind: bytes, boxes: dict[bytes, bytes]) -> tuple[str, bytes]:
        if kind == b"Opus":
            dops = boxes[b"dOps"]
            channels, skip, rate, gain, family = struct.unpack_from(">xBHIhB", dops)
            return "opus", b"OpusHead" + struct.pack("<BBHIhB", 1, channels, skip, rate, gain, family) + dops[11:]
        if kind == b"fLaC":
            return "flac", boxes[b"dfLa"][8:42]
        if kind == b"alac":  # FFmpeg's decoder wants the box with its header
            return "alac", struct.pack(">I4s", 36, b"alac") + boxes[b"alac"][:28]
        if kind == b"mp4a":
            object_type, config = _descriptor(boxes[b"esds"][4:])
            if object_type in (0x40, 0x67):
                return "aac", config
            if object_type in (0x69, 0x6B):
                return "mp3", b""
        raise self._unsupported(f"its codec is {kind.decode('latin-1')}")

    # -- a fragment ----------------------------------------------------------------------------------------------

    def _fragment(self, body: bytes, at: int) -> None:
        """Plan which samples of a fragment are read."""
        if self.track is None:
            self._follow(iter(()))
            return
        try:
            runs = mp4_fragment.runs(body, at, self.track, self.start)
            self._spend(mp4_fragment.count(runs) // 64)
            self._follow(mp4_fragment.rows(runs, self._clock, self._edits))
        except mp4_fragment.WithoutTimes:
            raise self._unsupported("it has an edit list, and fragments without times") from None
        except OverflowError:
            raise self._damaged("a fragment's index has too many samples") from None
        except _DAMAGE:
            raise self._damaged("a fragment's index is truncated") from None


def _clock(header: bytes) -> int:
    """The ticks per second in a media or movie header; 1 if they are 0."""
    return max(1, int(struct.unpack_from(">I", header, 20 if header[0] else 12)[0])) if header else 1


def _is_sound(trak: bytes) -> bool:
    return mp4_index.path(trak, b"mdia", b"hdlr")[8:12] == b"soun"


def _is_enabled(trak: bytes) -> bool:
    """Whether a player plays the track unless it is told otherwise."""
    return bool(mp4_index.path(trak, b"tkhd")[3] & 1)


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
