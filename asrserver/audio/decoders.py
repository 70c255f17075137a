"""The decoder of a recording, by its kind; and that of plain PCM at our own rate, which hardly needs one.

    decoder = open_decoder(kind, sample_rate, channels)
    decoder = resume_decoder(border)

Both are used as stream.StreamDecoder is.
"""

from __future__ import annotations

from typing import Protocol

from asrserver.audio import SAMPLE_RATE, wav
from asrserver.audio.demux.base import Track
from asrserver.audio.pcm import PcmDecoder, Samples
from asrserver.audio.stream import Border, StreamDecoder


class Decoder(Protocol):
    """See stream.StreamDecoder."""

    position: int

    def feed(self, data: bytes) -> Samples: ...

    def flush(self) -> Samples: ...

    def border(self, sample: int) -> Border: ...


def open_decoder(kind: str, sample_rate: int, channels: int) -> Decoder:
    """Of a new recording."""
    return resume_decoder(Border(0, 0, kind, sample_rate, channels))


def resume_decoder(border: Border) -> Decoder:
    """Of one that goes on at a border, whichever of the two decoders made it."""
    if border.kind in wav.WIDTHS and border.sample_rate == SAMPLE_RATE:
        return PlainDecoder(border)
    return StreamDecoder.resume(border)


class PlainDecoder:
    """Headerless PCM at 16 kHz: nine of ten streams. Every sample is a border, and bytes become samples in one step."""

    def __init__(self, border: Border) -> None:
        self._pcm = PcmDecoder(border.kind, SAMPLE_RATE, border.channels)
        self._frame = wav.WIDTHS[border.kind] * border.channels
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
        track = Track(first.kind, rate=SAMPLE_RATE, channels=first.channels, frame=self._frame)
        offset = first.offset + (sample - first.sample) * self._frame
        return Border(offset, sample, first.kind, SAMPLE_RATE, first.channels, track, first.start, rate=SAMPLE_RATE)
