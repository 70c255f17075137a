"""The decoder of a recording, by its kind; and that of plain PCM at our own rate, which hardly needs one.

    decoder = open_decoder(kind, sample_rate, channels)
    decoder = resume_decoder(border)

Both are used as decoding.StreamDecoder is.
"""

from __future__ import annotations

from typing import Protocol

from asrserver.audio.demux.base import Track
from asrserver.audio.files import RATE, Pcm, Samples
from asrserver.audio.stream import Border, StreamDecoder

_WIDTHS = {"pcm_s16le": 2, "pcm_f32le": 4}


class Decoder(Protocol):
    """See decoding.StreamDecoder."""

    position: int

    def feed(self, data: bytes) -> Samples: ...

    def flush(self) -> Samples: ...

    def border(self, sample: int) -> Border: ...


def open_decoder(kind: str, sample_rate: int, channels: int) -> Decoder:
    """Of a new recording."""
    return resume_decoder(Border(0, 0, kind, sample_rate, channels))


def resume_decoder(border: Border) -> Decoder:
    """Of one that goes on at a border, whichever of the two decoders made it."""
    if border.kind in _WIDTHS and border.sample_rate == RATE:
        return PlainDecoder(border)
    return StreamDecoder.resume(border)


class PlainDecoder:
    """Headerless PCM at RATE: nine of ten streams. Every sample is a border, and bytes become samples in one step."""

    def __init__(self, border: Border) -> None:
        self._pcm = Pcm(border.kind, RATE, border.channels)
        self._frame = _WIDTHS[border.kind] * border.channels
        self._first = border
        self.position = border.sample

    def feed(self, data: bytes) -> Samples:
        samples = self._pcm.feed(data)
        self.position += len(samples)
        return samples

    def flush(self) -> Samples:
        return self._pcm.flush()

    def border(self, sample: int) -> Border:
        first = self._first
        sample = max(first.sample, min(sample, self.position))
        track = Track(first.kind, rate=RATE, channels=first.channels, frame=self._frame)
        offset = first.offset + (sample - first.sample) * self._frame
        return Border(offset, sample, first.kind, RATE, first.channels, track, first.start, rate=RATE)
