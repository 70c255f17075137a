"""The decoder of a live stream: the general one, or a simple one for headerless PCM that needs no resampling.

    decoder = open_decoder(kind, sample_rate, channels, selection)
    decoder = resume_decoder(point, selection)

Both are used like stream.StreamDecoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from asrserver.audio import SAMPLE_RATE, wav
from asrserver.audio.demux.base import Track
from asrserver.audio.pcm import PcmDecoder, Samples
from asrserver.audio.recording import ResumePoint
from asrserver.audio.selection import MIXED, Selection
from asrserver.audio.stream import StreamDecoder
from asrserver.errors import AudioError


class Decoder(Protocol):
    """The interface of both decoders; see stream.StreamDecoder."""

    position: int
    tail: AudioError | None

    def feed(self, data: bytes) -> Samples: ...

    def pieces(self, data: bytes) -> Iterator[Samples]: ...

    def flush(self) -> Samples: ...

    def ending(self) -> Iterator[Samples]: ...

    def resume_point(self, sample: int) -> ResumePoint: ...


def open_decoder(kind: str, sample_rate: int, channels: int, selection: Selection = MIXED) -> Decoder:
    """Make the decoder of a new stream; the arguments are those of StreamDecoder."""
    return resume_decoder(ResumePoint(0, 0, kind, sample_rate, channels), selection)


def resume_decoder(point: ResumePoint, selection: Selection = MIXED) -> Decoder:
    """Make a decoder that continues at a point, whichever decoder made the point; see StreamDecoder.resume."""
    if point.kind in wav.WIDTHS and point.sample_rate == SAMPLE_RATE and not selection.track:
        return PcmStreamDecoder(point, selection)
    return StreamDecoder.resume(point, selection)


class PcmStreamDecoder:
    """Decodes headerless PCM at 16 kHz, as nine of ten streams are. Every block (wav.block) is a resume point.

    Attributes:
        position: Number of the next sample.
        tail: None: every byte is a sample.
    """

    tail: AudioError | None = None

    def __init__(self, point: ResumePoint, selection: Selection = MIXED) -> None:
        self._pcm = PcmDecoder(point.kind, SAMPLE_RATE, point.channels, selection.separate)
        self._frame = wav.WIDTHS[point.kind] * point.channels
        self._first = point
        self.position = point.sample

    def feed(self, data: bytes) -> Samples:
        """The samples that these bytes complete."""
        samples = self._pcm.feed(data)
        self.position += len(samples)
        return samples

    def pieces(self, data: bytes) -> Iterator[Samples]:
        """The same, in one piece."""
        yield self.feed(data)

    def flush(self) -> Samples:
        """The rest; an incomplete sample is dropped."""
        samples = self._pcm.flush()
        self.position += len(samples)
        return samples

    def ending(self) -> Iterator[Samples]:
        """The same, in one piece."""
        yield self.flush()

    def resume_point(self, sample: int) -> ResumePoint:
        """The point at a sample, or at the nearest one that this decoder has."""
        first = self._first
        sample = max(first.sample, min(sample, self.position))
        sample -= (sample - first.sample) % wav.block(first.kind, SAMPLE_RATE, first.channels)
        track = Track(first.kind, rate=SAMPLE_RATE, channels=first.channels, frame=self._frame)
        offset = first.offset + (sample - first.sample) * self._frame
        return ResumePoint(
            offset, sample, first.kind, SAMPLE_RATE, first.channels, track, first.start, rate=SAMPLE_RATE
        )
