"""One recording of a stream: its packets to 16 kHz samples, with points where another process can continue."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.codec import Codec
from asrserver.audio.demux.base import Packet, Track, opus_samples
from asrserver.audio.pcm import Resampler, Samples, joined
from asrserver.audio.selection import MIXED, Selection
from asrserver.audio.timeline import Timeline

#: Codec → (seconds, packets) after which a decoder that started in the middle returns what one from the start returns.
#: Opus: RFC 7845, 4.6. MP3 frames use bits of previous frames: 511 bytes are up to ten frames, of 72 ms at 8 kHz.
_PREROLL = {"opus": (0.08, 4), "mp3": (0.8, 10)}
_PREROLL_OTHERS = (0.1, 3)

#: Output samples after which a resampler that started in the middle is exact; measured: at most 18 (FFmpeg 8's swr).
_RESAMPLER_WARM_UP = 32

#: Most values of all channels that wait to be converted: a second of 32 channels at 384 kHz has 50 MB.
_MAX_VALUES = 1 << 18

#: Most frames that wait: one of a single sample takes a kilobyte.
_MAX_FRAMES = 1024

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
        others: The tracks beside it among which none is chosen yet, because all were silent so far.
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
    others: tuple[Track, ...] = ()


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
        begin: Number of the stream's sample with which it began.
        produced: Number of the stream's sample after the last one returned.
        waiting: Samples at the codec's rate that wait to be resampled.
    """

    def __init__(
        self,
        track: Track,
        sample: int,
        point: ResumePoint | None = None,
        selection: Selection = MIXED,
        time: float | None = None,
    ) -> None:
        """Begin a recording.

        Args:
            track: Its track.
            sample: Number of the stream's sample with which it begins.
            point: Where it continues; None: it begins.
            selection: How channels are decoded.
            time: When the first packet is expected, in seconds of the container's clock; None: whenever it comes.
        """
        self.track = track
        self.rate = 0
        self.ready: PendingPoint | None = None
        self.begin = self.produced = sample
        self.waiting = 0
        self._codec = Codec(track, selection)
        self._converges = _PREROLL.get(track.codec, _PREROLL_OTHERS)
        self._resampler = Resampler(SAMPLE_RATE)
        self._pending: PendingPoint | None = None  # a point whose packets are still to be decoded
        self._anchor = sample
        self._position = 0
        self._preroll = 0  # packets whose samples are dropped
        self._skip = track.skip  # samples at the codec's rate before the first that counts
        self._drop = 0  # samples of the resampler, until it is exact
        self._last = 0  # samples of the last packet
        self._separate = selection.separate
        self._channels = self._codec.channels  # of the samples; 0: not known yet
        self._late = 0  # samples of silence before the first, until its channels are known
        self._kind = 0  # the codec's, of the frames that wait
        self._most = 0  # samples that wait at most: a second, whose floats take more than the result, or less
        self._frames: list[Any] = []  # of the codec: converted together, which costs as much as for one
        self._cuts: dict[int, tuple[int, int]] = {}  # number of a frame that is not all audio: first sample, end
        self._waiting: list[Samples] = []  # from before those frames
        self._done: list[Samples] = []
        self._timeline = Timeline(point.time if point is not None else time)
        if point is not None:
            self._resume(point)
        elif track.delay:
            self._delay(round(track.delay * SAMPLE_RATE))

    def _delay(self, samples: int) -> None:
        """The recording begins with silence."""
        self._anchor += samples
        self.produced += samples
        self._late += samples

    def _resume(self, point: ResumePoint) -> None:
        self._set_rate(point.rate)
        self._preroll = point.packets
        self._position = self._on_grid(point.position)
        self._skip = self._position - point.position
        self._drop = self._warm
        self._anchor = point.sample - self._warm - self._position * SAMPLE_RATE // self.rate

    def shift(self, samples: int) -> None:
        """Insert samples before those of this recording."""
        self._anchor += samples
        self.produced += samples
        self._pending = self.ready = None

    @property
    def seconds(self) -> float:
        """Where in the stream the next packet begins."""
        return self._anchor / SAMPLE_RATE + (self._position / self.rate if self.rate else 0.0)

    @property
    def expected(self) -> float | None:
        """When the next packet is expected, in seconds of the container's clock; None: unknown."""
        return self._timeline.now

    @property
    def channels(self) -> int:
        """The channels of its samples."""
        return self._channels or 1

    @property
    def reason(self) -> str:
        """Why the last packet could not be decoded; empty if that is not known."""
        return self._codec.reason

    # -- in ------------------------------------------------------------------------------------------------------

    def decode(self, packet: Packet) -> bool:
        """Decode a packet; False if it cannot be decoded, and should be concealed."""
        frames = self._codec.decode(packet.data)
        if self._preroll:
            self._preroll -= 1
            self._channels = self._codec.channels
            self._timeline.gap(packet.time)
            self._advance(sum(frame.samples for frame in frames or ()))
            return True
        if packet.restart is not None and self._pending is None and not self._skip:
            self._pending = PendingPoint(packet.restart, self._position, self._timeline.now)
            if self._codec.memoryless:
                self._complete_point()
        if frames is None:
            return False
        if packet.trim or packet.skip or packet.keep is not None:
            kept = self._take_part(frames, packet)
        else:
            kept = 0
            for frame in frames:
                kept += frame.samples
                self._push(frame, 0, frame.samples)
            self._last = kept
        self._advance(kept)
        return True

    def conceal(self, packet: Packet) -> None:
        """Put silence in the place of a packet that cannot be decoded."""
        # Who goes on from here does not know how long such packets are: all that follows would be early.
        self._pending = None
        kept = 0
        if self.rate and self._channels:
            self._last = opus_samples(packet.data) if self.track.codec == "opus" else self._last
            first, end = self._kept(packet, self._last, self.rate)
            kept = max(0, end - first)
            self._push_silence(kept)
        self._advance(kept)

    def _take_part(self, frames: Sequence[Any], packet: Packet) -> int:
        """Take what is audio of a packet; return its samples."""
        self._last = sum(frame.samples for frame in frames)
        first, end = self._kept(packet, self._last, frames[0].sample_rate if frames else 0)
        before = 0
        for frame in frames:
            self._push(frame, max(0, first - before), min(frame.samples, end - before))
            before += frame.samples
        return max(0, end - first)

    def _kept(self, packet: Packet, samples: int, rate: int) -> tuple[int, int]:
        """(first, end) of the samples of a packet that are audio."""
        scale = rate / self.track.rate if self.track.rate else 1.0  # HE-AAC has twice the rate that its header claims
        first, end = round(packet.skip * scale), max(0, samples - packet.trim)
        return first, end if packet.keep is None else min(end, first + round(packet.keep * scale))

    def late(self, packet: Packet) -> float:
        """The seconds by which a packet is later than the end of the one before it."""
        if self._preroll:
            return 0.0  # `decode` counts it
        gap = self._timeline.gap(packet.time)
        if gap and not self.rate:  # it was continued in a gap
            self._delay(round(gap * SAMPLE_RATE))
        return gap if self.rate and self._channels else 0.0

    def fill(self, seconds: float) -> Iterator[Samples]:
        """Put silence of `late` seconds before a packet; return what gets ready."""
        left = round(seconds * self.rate)
        while left > 0:
            count = min(left, PIECE_SECONDS * self.rate)
            self._push_silence(count)
            left -= count
            if left:
                yield from self.take()

    def silence(self, samples: int) -> Samples:
        """Silence of this many samples."""
        return np.zeros((samples, self.channels) if self._separate else samples, np.float32)

    def _advance(self, samples: int) -> None:
        """Count the samples of a packet."""
        if self.rate:
            self._timeline.advance(samples / self.rate)
        pending = self._pending
        if pending is not None:
            pending.packets += 1
            seconds, packets = self._converges
            if pending.packets >= packets and self._position - pending.position >= seconds * self.rate:
                self._complete_point()

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

    def _push(self, frame: Any, first: int, end: int) -> None:
        """Add the samples of a frame from `first` up to `end`."""
        if self._codec.kind != self._kind:
            self._change(frame.sample_rate)
        if self._skip:
            first += self._skipped(end - first)
        if first >= end:
            return
        if first or end < frame.samples:
            self._cuts[len(self._frames)] = first, end
        self._frames.append(frame)
        if len(self._frames) >= _MAX_FRAMES:
            self._collect()
        self._count(end - first)

    def _change(self, rate: int) -> None:
        """The frames that follow are of another kind than those that wait."""
        if rate != self.rate or (self._channels and self._codec.channels != self._channels):
            self._convert(last=True)
            self._set_rate(rate)
            self._anchor, self._position, self._pending, self.ready = self.produced, 0, None, None
        else:
            self._collect()
        self._channels, self._kind = self._codec.channels, self._codec.kind
        self._most = min(rate, _MAX_VALUES // self._codec.width)

    def _push_silence(self, samples: int) -> None:
        samples -= self._skipped(samples)
        self._collect()
        self._waiting.append(self.silence(samples))
        self._count(samples)

    def _skipped(self, samples: int) -> int:
        """How many of some samples are before the first that counts."""
        skipped = max(0, min(self._skip, samples))
        self._skip -= skipped
        return skipped

    def _count(self, samples: int) -> None:
        self._position += samples
        self.waiting += samples
        if self.waiting > self._most:
            self._convert()

    def _collect(self) -> None:
        """Convert the frames that wait."""
        if not self._frames:
            return
        frames, self._frames = self._frames, []
        samples = self._codec.samples(frames)
        if self._cuts:
            ends = accumulate(frame.samples for frame in frames)
            pieces = np.split(samples, list(ends)[:-1])
            for number, (first, end) in self._cuts.items():
                pieces[number] = pieces[number][first:end]
            samples = joined(pieces)
            self._cuts.clear()
        self._waiting.append(samples)

    def _set_rate(self, rate: int) -> None:
        self.rate = self._most = rate
        self._warm = 0 if rate == SAMPLE_RATE else _RESAMPLER_WARM_UP
        self._drop = 0
        self._resampler = Resampler(rate)

    # -- out -----------------------------------------------------------------------------------------------------

    def take(self) -> list[Samples]:
        """Return the samples that are ready."""
        self._convert()
        done, self._done = self._done, []
        if self._late and self._channels:
            whole, rest = divmod(self._late, PIECE_SECONDS * SAMPLE_RATE)
            piece = self.silence(PIECE_SECONDS * SAMPLE_RATE)
            self._late, done = 0, [piece] * whole + [piece[:rest]] + done
        return done

    def flush(self) -> list[Samples]:
        """End the recording and return its rest, including what codec and resampler hold."""
        for frame in self._codec.decode(None) or ():
            self._push(frame, 0, frame.samples)
        self._convert(last=True)
        return self.take()

    def _convert(self, last: bool = False) -> None:
        """Resample what waits, in one go: swr's output is bit-identical however its input is cut."""
        self._collect()
        samples = self._resampler.feed(joined(self._waiting))
        self._waiting.clear()
        self.waiting = 0
        if last:
            samples = joined([samples, self._resampler.flush()])
        if self._drop:
            dropped = min(self._drop, len(samples))
            self._drop -= dropped
            samples = samples[dropped:]
        if len(samples):
            self.produced += len(samples)
            self._done.append(samples)
