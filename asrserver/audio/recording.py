"""One recording of a stream: its packets to 16 kHz samples, with points where another process can continue."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.codec import Codec
from asrserver.audio.demux.base import Packet, Track, opus_samples
from asrserver.audio.pcm import Resampler, Samples, joined, repaired
from asrserver.audio.selection import MIXED, Selection
from asrserver.audio.timeline import Timeline

#: Codec → (seconds, packets) after which a decoder that started in the middle returns what one from the start returns.
#: Opus: RFC 7845, 4.6. MP3 frames use bits of previous frames: 511 bytes are up to ten frames, of 72 ms at 8 kHz.
_PREROLL = {"opus": (0.08, 4), "mp3": (0.8, 10)}
_PREROLL_OTHERS = (0.1, 3)

#: Output samples after which a resampler that started in the middle is exact; measured: at most 18 (FFmpeg 8's swr).
_RESAMPLER_WARM_UP = 32

#: Seconds of audio after which what is ready is taken out.
PIECE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A point in a stream where another process can continue. Its fields are kept in Redis, across releases.

    Attributes:
        offset: Position in the stream from which to feed, in bytes.
        sample: Number of the first sample that a decoder resumed there returns.
        kind: The stream's container, or its codec if it is headerless.
        sample_rate: Samples per second of headerless PCM.
        channels: Channels of headerless PCM.
        track: The track that is open there; None: a header comes next.
        start: Position in the stream where the open recording begins, in bytes.
        packets: Packets after `offset` whose samples are dropped: they only bring the decoder into its state.
        position: Position in the recording after those packets, in samples at the codec's rate.
        rate: The codec's samples per second.
        time: When the first of those packets begins, in seconds of the container's clock; None: unknown.
    """

    offset: int
    sample: int
    kind: str
    sample_rate: int
    channels: int
    track: Track | None = None
    start: int = 0
    packets: int = 0
    position: int = 0
    rate: int = 0
    time: float | None = None


@dataclass(slots=True)
class PendingPoint:
    """A resume point in the making; the fields are those of ResumePoint."""

    offset: int
    position: int
    time: float | None
    packets: int = 0
    sample: int = 0


class TrackDecoder:
    """Decodes the packets of one recording in the stream.

    A position counts the codec's samples since its rate last changed; position 0 is sample `_anchor` of the stream.

    Attributes:
        track: The recording's track.
        rate: The codec's samples per second; 0 before the first packet.
        ready: The newest resume point, until it is taken.
        produced: Number of the stream's sample after the last one returned.
        waiting: Samples at the codec's rate that wait to be resampled.
    """

    def __init__(
        self, track: Track, sample: int, point: ResumePoint | None = None, selection: Selection = MIXED
    ) -> None:
        self.track = track
        self.rate = 0
        self.ready: PendingPoint | None = None
        self.produced = sample
        self.waiting = 0
        self._codec = Codec(track, selection)
        self._resampler = Resampler(SAMPLE_RATE)
        self._pending: PendingPoint | None = None  # a point whose packets are still to be decoded
        self._anchor = sample
        self._position = 0
        self._preroll = 0  # packets whose samples are dropped
        self._skip = track.skip  # samples at the codec's rate before the first that counts
        self._drop = 0  # samples of the resampler, until it is exact
        self._last = 0  # samples of the last packet
        self._shape: tuple[int, ...] | None = None if selection.separate else ()  # of a sample; None: not known yet
        self._late = 0  # samples of silence before the first, until its channels are known
        self._waiting: list[Samples] = []
        self._done: list[Samples] = []
        self._timeline = Timeline(point.time if point is not None else None)
        if point is not None:
            self._resume(point)
        elif track.delay:
            self._delay(round(track.delay * SAMPLE_RATE))

    def _delay(self, samples: int) -> None:
        """The recording begins with silence."""
        self._anchor += samples
        self.produced += samples
        self._late = samples

    def _resume(self, point: ResumePoint) -> None:
        self._set_rate(point.rate)
        self._preroll = point.packets
        self._position = self._on_grid(point.position)
        self._skip = self._position - point.position
        self._drop = self._warm
        self._anchor = point.sample - self._warm - self._position * SAMPLE_RATE // self.rate

    @property
    def seconds(self) -> float:
        """Where in the stream the next packet begins."""
        return self._anchor / SAMPLE_RATE + (self._position / self.rate if self.rate else 0.0)

    @property
    def channels(self) -> int:
        """The channels of its samples."""
        return self._shape[0] if self._shape else 1

    @property
    def reason(self) -> str:
        """Why the last packet could not be decoded; empty if that is not known."""
        return self._codec.reason

    # -- in ------------------------------------------------------------------------------------------------------

    def decode(self, packet: Packet) -> bool:
        """Decode a packet; False if it cannot be decoded. Silence then takes its place."""
        if self._preroll:
            self._preroll -= 1
            decoded = self._codec.decode(packet.data)
            self._shape = decoded[0][0].shape[1:] if decoded else self._shape
            self._timeline.gap(packet.time)
            self._advance(sum(len(samples) for samples, _ in decoded or ()))
            return True
        if packet.restart is not None and self._pending is None and not self._skip:
            self._pending = PendingPoint(packet.restart, self._position, self._timeline.now)
            if self._codec.memoryless:
                self._complete_point()
        decoded = self._codec.decode(packet.data)
        spoiled = decoded is None
        if decoded is None:
            size = opus_samples(packet.data) if self.track.codec == "opus" else self._last
            decoded = [(self._silence(size), self.rate)] if self.rate and self._shape is not None else []
        self._last = sum(len(samples) for samples, _ in decoded)
        skip, left = self._kept(packet, decoded[0][1] if decoded else 0)
        kept = max(0, left - skip)
        for samples, rate in decoded:
            self._push(samples[skip:left], rate)
            skip, left = max(0, skip - len(samples)), max(0, left - len(samples))
        self._advance(kept)
        if self._pending is not None:
            self._pending.packets += 1
            seconds, packets = _PREROLL.get(self.track.codec, _PREROLL_OTHERS)
            enough = self._position - self._pending.position >= seconds * self.rate
            if enough and self._pending.packets >= packets:
                self._complete_point()
        return not spoiled

    def _kept(self, packet: Packet, rate: int) -> tuple[int, int]:
        """(first, end) of the samples of the packet just decoded that are audio."""
        end = max(0, self._last - packet.trim)
        if not packet.skip and packet.keep is None:
            return 0, end
        scale = rate / self.track.rate if self.track.rate else 1.0  # HE-AAC has twice the rate that its header claims
        skip = round(packet.skip * scale)
        return skip, end if packet.keep is None else min(end, skip + round(packet.keep * scale))

    def fill(self, time: float | None) -> Iterator[Samples]:
        """Put silence where a packet is later than the end of the one before it; return what gets ready."""
        if not self.rate:
            self._timeline.gap(time)  # where the clock begins
        elif not self._preroll and self._shape is not None:
            left = round(self._timeline.gap(time) * self.rate)
            while left > 0:
                count = min(left, PIECE_SECONDS * self.rate)
                self._push(self._silence(count), self.rate)
                left -= count
                if left:
                    yield from self.take()

    def _silence(self, samples: int) -> Samples:
        assert self._shape is not None
        return np.zeros((samples, *self._shape), np.float32)

    def _advance(self, samples: int) -> None:
        if self.rate:
            self._timeline.advance(samples / self.rate)

    def _complete_point(self) -> None:
        """The pending point is ready: a decoder resumed there has converged at this position."""
        pending, self._pending = self._pending, None
        if pending is not None and self.rate:
            pending.position = self._position
            pending.sample = self._anchor + self._on_grid(self._position) * SAMPLE_RATE // self.rate + self._warm
            self.ready = pending

    def _on_grid(self, position: int) -> int:
        """The next position at which an output sample lies."""
        step = self.rate // math.gcd(self.rate, SAMPLE_RATE)
        return -(-position // step) * step

    def _push(self, samples: Samples, rate: int) -> None:
        shape = samples.shape[1:]
        if rate != self.rate or (self._shape is not None and shape != self._shape):
            self._convert(last=True)
            self._set_rate(rate)
            self._anchor, self._position, self._pending, self.ready = self.produced, 0, None, None
        self._shape = shape
        skipped = min(self._skip, len(samples))
        self._skip -= skipped
        self._position += len(samples) - skipped
        self.waiting += len(samples) - skipped
        self._waiting.append(samples[skipped:])
        if self.waiting > self.rate:  # a second: floats at the codec's rate would take more than the result
            self._convert()

    def _set_rate(self, rate: int) -> None:
        self.rate = rate
        self._warm = 0 if rate == SAMPLE_RATE else _RESAMPLER_WARM_UP
        self._drop = 0
        self._resampler = Resampler(rate)

    # -- out -----------------------------------------------------------------------------------------------------

    def take(self) -> list[Samples]:
        """Return the samples available so far."""
        self._convert()
        done, self._done = self._done, []
        if self._late and self._shape is not None:
            whole, rest = divmod(self._late, PIECE_SECONDS * SAMPLE_RATE)
            piece = self._silence(PIECE_SECONDS * SAMPLE_RATE)
            self._late, done = 0, [piece] * whole + [piece[:rest]] + done
        return done

    def flush(self) -> list[Samples]:
        """End the recording and return its rest, including what codec and resampler hold."""
        for samples, rate in self._codec.decode(None) or ():
            self._push(samples, rate)
        self._convert(last=True)
        return self.take()

    def _convert(self, last: bool = False) -> None:
        """Resample what waits, in one go: swr's output is bit-identical however its input is cut."""
        samples = repaired(joined(self._waiting))
        self._waiting.clear()
        self.waiting = 0
        samples = self._resampler.feed(samples)
        if last:
            samples = joined([samples, self._resampler.flush()])
        dropped = min(self._drop, len(samples))
        self._drop -= dropped
        samples = samples[dropped:]
        self.produced += len(samples)
        self._done.append(samples)
