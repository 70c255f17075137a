"""PCM without a header, and in WAV (RFC 2361), whatever length its header claims."""

from __future__ import annotations

from dataclasses import replace

from asrserver.audio import bounds, wav
from asrserver.audio.demux.base import MAX_HEADER_BYTES, MAX_SKIP_BYTES, Demuxer, Packet, Track
from asrserver.errors import AudioError


class Pcm(Demuxer):
    """Headerless PCM. A packet is the complete samples at hand, at most a second of them; it may start anywhere."""

    name = "PCM"

    def __init__(self, codec: str, rate: int, channels: int) -> None:
        super().__init__()
        bounds.check(channels, rate)
        self._track = Track(codec, rate=rate, channels=channels, frame=wav.WIDTHS[codec] * channels)

    def _next(self) -> Track | Packet | None:
        if self.track is None:
            self.track = self._track
            return self.track
        return self._samples(len(self._buffer), self._ended)

    def _samples(self, available: int, last: bool) -> Packet | None:
        """Return a packet of samples.

        Args:
            available: Their bytes at hand.
            last: No more follow in this recording. Otherwise the packet has whole blocks, so that what becomes of two
                channels does not depend on how the stream is cut.
        """
        assert self.track is not None
        plain, frame = self.track.codec in wav.WIDTHS, self.track.frame
        unit = frame * wav.block(self.track.codec, self.track.rate, self.track.channels) if plain else frame
        length = min(available, max(unit, frame * self.track.rate) if plain else unit)
        if length >= unit or not last:
            length -= length % unit
        elif plain:  # while the last block of ADPCM may be a short one
            length -= length % frame
        if not length:
            return None
        packet = Packet(bytes(self._buffer[:length]), self.offset)
        self._drop(length)
        return packet


class Wav(Pcm):
    """WAV. Its length may be unknown; another RIFF after its end is a new recording."""

    name = "WAV"

    def __init__(self) -> None:
        Demuxer.__init__(self)
        self._format: Track | None = None
        self._in_data = False

    def resume(self, track: Track, offset: int, start: int, time: float | None = None) -> None:
        super().resume(track, offset, start, time)
        self._in_data = True

    def _next(self) -> Track | Packet | None:
        if self._in_data:
            return self._data()
        if len(self._buffer) < wav.RIFF_HEADER:
            return None
        if self._buffer[:4] == b"RIFF":
            if not wav.is_riff(self._buffer):
                raise self._damaged("it is another kind of RIFF")
            self.start, self._format = self.offset, None
            self._drop(wav.RIFF_HEADER)
            return None
        found = wav.chunk(self._buffer)
        return None if found is None else self._chunk(*found)

    def _chunk(self, kind: bytes, size: int, length: int) -> Track | None:
        """Process the chunk at the front, which has `length` bytes with its header and padding."""
        if not all(0x20 <= byte < 0x7F for byte in kind):
            raise self._damaged("no chunk begins here")
        if kind == b"data":
            return self._begin(size)
        if size > MAX_SKIP_BYTES or (kind == b"fmt " and not wav.SHORTEST_FORMAT <= size <= MAX_HEADER_BYTES):
            raise self._damaged(f"a chunk of {size} bytes")
        if kind == b"fmt ":
            if len(self._buffer) < wav.CHUNK_HEADER + size:
                return None
            self._read_format(bytes(self._buffer[wav.CHUNK_HEADER : wav.CHUNK_HEADER + size]), length)
        self._drop(length)
        return None

    def _find(self) -> bool:
        return self._find_any((b"RIFF",))

    def _read_format(self, body: bytes, length: int) -> None:
        self._lost = True  # unless the format is accepted: what follows belongs to no recording
        try:
            found = wav.parse_format(body)
            if found.codec is not None:
                self._format = Track(found.codec, rate=found.rate, channels=found.channels, frame=found.frame)
            elif (blocks := wav.parse_blocks(body)) is not None:
                self._format = Track(blocks[0], rate=found.rate, channels=found.channels, frame=blocks[1])
            else:
                raise self._unsupported(f"its audio is {wav.title(body)}; send the whole file as one chunk")
        except AudioError:
            self._drop(length)
            raise
        self._lost = False

    def _begin(self, size: int) -> Track:
        found = self._format
        if found is None:
            raise self._damaged("its samples come before its format (fmt)")
        self._drop(wav.CHUNK_HEADER)
        known = wav.data_size(size)
        end = 0 if known is None else self.offset + known
        self.track = replace(found, end=end)
        self._in_data = True
        return self.track

    def _data(self) -> Track | Packet | None:
        assert self.track is not None
        if not self.track.end:
            return self._samples(len(self._buffer), self._ended)
        left = self.track.end - self.offset
        if left >= self.track.frame or (left > 0 and self.track.codec not in wav.WIDTHS):
            return self._samples(min(left, len(self._buffer)), self._ended or left <= len(self._buffer))
        self._in_data = False
        self._drop(left + (self.track.end - self.start) % 2)
        return self._next()
