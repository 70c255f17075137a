"""PCM, with a WAV header (RFC 2361, whatever length it claims) and without."""

from __future__ import annotations

import struct

from asrserver.audio import PCM_WIDTHS, bounds
from asrserver.audio.demux.base import MAX_HEAD, MAX_SKIP, Demuxer, Packet, Track
from asrserver.errors import AudioError

#: Bytes of a WAV's data from which on the header only says that it does not know: writers put 0, or about the largest.
_UNKNOWN = 0x7FFF0000

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

_EXTENSIBLE = 0xFFFE


class Pcm(Demuxer):
    """Headerless. Its packets are the whole samples that are at hand, a second's at the most. It begins anywhere."""

    name = "PCM"

    def __init__(self, codec: str, rate: int, channels: int) -> None:
        super().__init__()
        bounds.check(channels, rate)
        self._track = Track(codec, rate=rate, channels=channels, frame=PCM_WIDTHS[codec] * channels)

    def _next(self) -> Track | Packet | None:
        if self.track is None:
            self.track = self._track
            return self.track
        return self._samples(len(self._buffer))

    def _samples(self, available: int) -> Packet | None:
        assert self.track is not None
        length = min(available, self.track.frame * self.track.rate)
        length -= length % self.track.frame
        if not length:
            return None
        packet = Packet(bytes(self._buffer[:length]), self.offset)
        self._drop(length)
        return packet


class Wav(Pcm):
    """Chunks around the samples. Its length may be unknown; another RIFF after its end is a new recording."""

    name = "WAV"

    def __init__(self) -> None:
        Demuxer.__init__(self)
        self._format: Track | None = None
        self._in_data = False

    def resume(self, track: Track, offset: int, start: int) -> None:
        super().resume(track, offset, start)
        self._in_data = True

    def _next(self) -> Track | Packet | None:
        if self._in_data:
            return self._data()
        if len(self._buffer) < 12:
            return None
        if self._buffer[:4] == b"RIFF":
            if self._buffer[8:12] != b"WAVE":
                raise self._damaged("it is another kind of RIFF")
            self.start, self._format = self.offset, None
            self._drop(12)
            return None
        kind, size = bytes(self._buffer[:4]), int.from_bytes(self._buffer[4:8], "little")
        if not all(0x20 <= byte < 0x7F for byte in kind):
            raise self._damaged("no chunk begins here")
        if kind == b"data":
            return self._begin(size)
        if size > MAX_SKIP or (kind == b"fmt " and not 16 <= size <= MAX_HEAD):
            raise self._damaged(f"a chunk of {size} bytes")
        if kind == b"fmt " and len(self._buffer) < 8 + size:
            return None
        if kind == b"fmt ":
            self._read_format(bytes(self._buffer[8 : 8 + size]), 8 + size + size % 2)
        self._drop(8 + size + size % 2)
        return None

    def _find(self) -> bool:
        return self._find_any((b"RIFF",))

    def _read_format(self, body: bytes, length: int) -> None:
        tag, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", body)
        if tag == _EXTENSIBLE and len(body) >= 26:
            (tag,) = struct.unpack_from("<H", body, 24)
        self._lost = True  # unless it is believed: what follows is nobody's
        codec = _CODECS.get((tag, bits))
        try:
            bounds.check(channels, rate)
            if codec is None or frame != channels * bits // 8:
                raise self._unsupported(f"its format is {tag}, {bits} bits, {channels} channels, {rate} Hz")
        except AudioError:
            self._drop(length)
            raise
        self._lost = False
        self._format = Track(codec, rate=rate, channels=channels, frame=frame)

    def _begin(self, size: int) -> Track:
        if self._format is None:
            raise self._damaged("its samples come before its format (fmt)")
        self._drop(8)
        end = self.offset + size if 0 < size < _UNKNOWN else 0
        base = self._format
        self.track = Track(base.codec, rate=base.rate, channels=base.channels, frame=base.frame, end=end)
        self._in_data = True
        return self.track

    def _data(self) -> Track | Packet | None:
        assert self.track is not None
        if not self.track.end:
            return self._samples(len(self._buffer))
        left = self.track.end - self.offset
        if left >= self.track.frame:
            return self._samples(min(left, len(self._buffer)))
        self._in_data = False
        self._drop(left + (self.track.end - self.start) % 2)
        return self._next()
