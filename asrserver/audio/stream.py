"""Streaming decoder: a recording that is still going on, its bytes cut anywhere, to 16 kHz samples.

    decoder = StreamDecoder(kind)              # a container as sniff.container names it, or pcm_s16le, pcm_f32le
    samples = decoder.feed(data)               # the samples that are complete; slicing changes nothing
    samples = decoder.flush()                  # at the end
    point = decoder.resume_point(sample)       # where another process can continue
    decoder = StreamDecoder.resume(point)      # there: feed it the stream's bytes from point.offset on

Every byte is decoded once. A resumed decoder's first sample has number `point.sample` in the recording. From there on
it returns the samples of the first decoder: the same numbers for PCM, WAV and FLAC; nearly the same for Opus, AAC, MP3
and Vorbis (measured on the first 0.1 s of speech: correlation over 0.999), whose decoders converge on audio before the
point that is not returned (`_PREROLL`). A point contains the codec's parameters: 20 bytes for Opus, a few KiB for
Vorbis. So nothing of the stream before `point.offset` need be kept.

Known limits: the end of an Ogg stream that was resumed in its last page may be a packet longer; gaps in time stamps
are not filled.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.codec import Codec
from asrserver.audio.demux import demuxer
from asrserver.audio.demux.base import Packet, Track, opus_samples
from asrserver.audio.pcm import Resampler, Samples, repaired
from asrserver.errors import AudioError

#: Codec → (seconds, packets) after which a decoder that started in the middle returns what one from the start returns.
#: Opus: RFC 7845, 4.6. MP3 frames use bits of previous frames: 511 bytes are up to ten frames, of 72 ms at 8 kHz.
_PREROLL = {"opus": (0.08, 4), "mp3": (0.8, 10)}
_PREROLL_OTHERS = (0.1, 3)

#: Output samples after which a resampler that started in the middle is exact; measured: at most 18 (FFmpeg 8's swr).
_RESAMPLER_WARM_UP = 32

#: Samples between two resume points.
_POINT_SPACING = SAMPLE_RATE // 4

#: Most resume points kept: with more, every second one is dropped and the spacing doubled.
_MAX_POINTS = 1024

#: Most seconds of audio from one feed. Opus can encode two minutes of silence in a kilobyte.
_MAX_FEED_SECONDS = 1800


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


class StreamDecoder:
    """Decodes one stream. It blocks for up to 5 ms per second of audio and holds a few hundred KiB.

    Attributes:
        position: Number of the next sample.
    """

    def __init__(self, kind: str, sample_rate: int = SAMPLE_RATE, channels: int = 1) -> None:
        """Begin a stream.

        Args:
            kind: A container as `sniff.container` names it, or pcm_s16le or pcm_f32le.
            sample_rate: Samples per second of headerless PCM.
            channels: Channels of headerless PCM.
        """
        self._start = ResumePoint(0, 0, kind, sample_rate, channels)
        self._demuxer = demuxer(kind, sample_rate, channels)
        self._recording: _TrackDecoder | None = None
        self._points = deque([self._start])
        self._spacing = _POINT_SPACING
        self._held: list[Samples] = []  # decoded before the damage that was reported; the next call returns it
        self._finished = 0  # samples of earlier recordings in the stream
        self._silent = True  # no recording has begun
        self.position = 0

    @classmethod
    def resume(cls, point: ResumePoint) -> StreamDecoder:
        """Continue at a point: the next bytes fed must be those of the stream from `point.offset` on."""
        decoder = cls(point.kind, point.sample_rate, point.channels)
        decoder._points = deque([point])
        decoder.position = decoder._finished = point.sample
        if point.track is None:
            decoder._demuxer.offset = point.offset
        else:
            decoder._demuxer.resume(point.track, point.offset, point.start)
            decoder._recording = _TrackDecoder(point.track, point.sample, point)
            decoder._silent = False
        return decoder

    def feed(self, data: bytes) -> Samples:
        """Return the samples that these bytes complete.

        Raises:
            AudioError: Bytes cannot be decoded. Only they are lost: samples before them are returned by the next call,
                and later bytes are decoded from the next place where that is possible. The code is undecodable_audio,
                not_streamable (nothing of this recording can be decoded) or utterance_too_long.
        """
        self._demuxer.push(data)
        return self._counted(self._drain())

    def flush(self) -> Samples:
        """End the stream and return the rest. The decoder cannot be used after it.

        Raises:
            AudioError: The stream never held audio.
        """
        self._demuxer.end()
        try:
            samples = self._drain()
        except AudioError:  # a truncated end, as when a recorder is killed, is no error
            samples, self._held = self._held, []
        if self._silent:
            raise AudioError("undecodable_audio", f"the {self._start.kind} data ends before any audio")
        return self._counted(samples + self._close())

    def resume_point(self, sample: int) -> ResumePoint:
        """Return the last point from which all samples from `sample` on can be decoded. Earlier points are dropped."""
        while len(self._points) > 1 and self._points[1].sample <= sample:
            self._points.popleft()
        if len(self._points) < _MAX_POINTS // 4:
            self._spacing = _POINT_SPACING
        return self._points[0]

    def _drain(self) -> list[Samples]:
        pieces, self._held = self._held, []
        spoiled = 0
        try:
            while (item := self._demuxer.pull()) is not None:
                if isinstance(item, Track):
                    pieces += self._close()
                    self._open(item)
                elif self._recording is not None:
                    spoiled += not self._recording.decode(item)
                    self._take_point(self._recording)
                    if self._recording.waiting > _MAX_FEED_SECONDS * self._recording.rate:
                        self._demuxer.discard()
                        raise AudioError(
                            "utterance_too_long", f"the chunk decodes to more than {_MAX_FEED_SECONDS} s of audio"
                        )
            if spoiled:
                reason = self._recording.reason if self._recording is not None else ""
                message = f"{spoiled} packets of {self._start.kind} cannot be decoded{reason and ': '}{reason}"
                raise AudioError("undecodable_audio", message)
        except AudioError:
            self._held = pieces
            raise
        if self._recording is not None:
            pieces += self._recording.take()
        return pieces

    def _counted(self, pieces: list[Samples]) -> Samples:
        samples = np.concatenate([np.zeros(0, np.float32), *pieces])
        self.position += len(samples)
        return samples

    def _open(self, track: Track) -> None:
        self._recording = _TrackDecoder(track, self._finished)
        if not self._silent:
            self._add(ResumePoint(self._demuxer.start, self._finished, *self._identity))
        self._silent = False

    def _close(self) -> list[Samples]:
        """End the open recording and return its rest."""
        if self._recording is None:
            return []
        recording, self._recording = self._recording, None
        samples = recording.flush()
        self._finished = recording.produced
        return samples

    @property
    def _identity(self) -> tuple[str, int, int]:
        return self._start.kind, self._start.sample_rate, self._start.channels

    def _take_point(self, recording: _TrackDecoder) -> None:
        """Add the recording's newest resume point, unless the last one is near."""
        pending = recording.ready
        if pending is not None:
            recording.ready = None
            if pending.sample - self._points[-1].sample >= self._spacing:
                self._add(
                    ResumePoint(
                        pending.offset,
                        pending.sample,
                        *self._identity,
                        recording.track,
                        self._demuxer.start,
                        pending.packets,
                        pending.position,
                        recording.rate,
                    )
                )

    def _add(self, point: ResumePoint) -> None:
        self._points.append(point)
        if len(self._points) > _MAX_POINTS:  # none was asked for in a long time
            self._points = deque(list(self._points)[::2])
            self._spacing *= 2


def is_beginning(kind: str, data: bytes) -> bool:
    """Whether bytes may be the beginning of a recorder's container of a kind, even if they hold no audio yet."""
    if kind == "mp4" and b"mdat" in data and b"moov" not in data:
        return False  # recorders write the index first: this is a truncated file, and its sender must know
    try:
        StreamDecoder(kind).feed(data)
    except AudioError:
        return False
    return True


@dataclass(slots=True)
class _PendingPoint:
    """A resume point in the making; the fields are those of ResumePoint."""

    offset: int
    position: int
    packets: int = 0
    sample: int = 0


class _TrackDecoder:
    """Decodes the packets of one recording in the stream.

    A position counts the codec's samples since its rate last changed; position 0 is sample `_anchor` of the stream.

    Attributes:
        track: The recording's track.
        rate: The codec's samples per second; 0 before the first packet.
        ready: The newest resume point, until it is taken.
        produced: Number of the stream's sample after the last one returned.
        waiting: Samples at the codec's rate that wait to be resampled.
    """

    def __init__(self, track: Track, sample: int, point: ResumePoint | None = None) -> None:
        self.track = track
        self.rate = 0
        self.ready: _PendingPoint | None = None
        self.produced = sample
        self.waiting = 0
        self._codec = Codec(track)
        self._resampler = Resampler(SAMPLE_RATE)
        self._pending: _PendingPoint | None = None  # a point whose packets are still to be decoded
        self._anchor = sample
        self._position = 0
        self._preroll = 0  # packets whose samples are dropped
        self._skip = track.skip  # samples at the codec's rate before the first that counts
        self._drop = 0  # samples of the resampler, until it is exact
        self._last = 0  # samples of the last packet
        self._waiting: list[Samples] = []
        self._done: list[Samples] = []
        if point is not None:
            self._resume(point)

    def _resume(self, point: ResumePoint) -> None:
        self._set_rate(point.rate)
        self._preroll = point.packets
        self._position = self._on_grid(point.position)
        self._skip = self._position - point.position
        self._drop = self._warm
        self._anchor = point.sample - self._warm - self._position * SAMPLE_RATE // self.rate

    @property
    def reason(self) -> str:
        """Why the last packet could not be decoded; empty if that is not known."""
        return self._codec.reason

    # -- in ------------------------------------------------------------------------------------------------------

    def decode(self, packet: Packet) -> bool:
        """Decode a packet; False if it cannot be decoded. Silence then takes its place."""
        if self._preroll:
            self._preroll -= 1
            self._codec.decode(packet.data)
            return True
        if packet.restart is not None and self._pending is None and not self._skip:
            self._pending = _PendingPoint(packet.restart, self._position)
            if self._codec.memoryless:
                self._complete_point()
        decoded = self._codec.decode(packet.data)
        spoiled = decoded is None
        if decoded is None:
            size = opus_samples(packet.data) if self.track.codec == "opus" else self._last
            decoded = [(np.zeros(size, np.float32), self.rate)] if self.rate else []
        self._last = sum(len(samples) for samples, _ in decoded)
        left = max(0, self._last - packet.trim)
        for samples, rate in decoded:
            self._push(samples[:left], rate)
            left = max(0, left - len(samples))
        if self._pending is not None:
            self._pending.packets += 1
            seconds, packets = _PREROLL.get(self.track.codec, _PREROLL_OTHERS)
            enough = self._position - self._pending.position >= seconds * self.rate
            if enough and self._pending.packets >= packets:
                self._complete_point()
        return not spoiled

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
        if rate != self.rate:
            self._convert(last=True)
            self._set_rate(rate)
            self._anchor, self._position, self._pending, self.ready = self.produced, 0, None, None
        skipped = min(self._skip, len(samples))
        self._skip -= skipped
        self._position += len(samples) - skipped
        self.waiting += len(samples) - skipped
        self._waiting.append(samples[skipped:])

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
        return done

    def flush(self) -> list[Samples]:
        """End the recording and return its rest, including what codec and resampler hold."""
        for samples, rate in self._codec.decode(None) or ():
            self._push(samples, rate)
        self._convert(last=True)
        return self.take()

    def _convert(self, last: bool = False) -> None:
        """Resample what waits, in one go: swr's output is bit-identical however its input is cut."""
        samples = repaired(np.concatenate([np.zeros(0, np.float32), *self._waiting]))
        self._waiting.clear()
        self.waiting = 0
        samples = self._resampler.feed(samples)
        if last:
            samples = np.concatenate([samples, self._resampler.flush()])
        dropped = min(self._drop, len(samples))
        self._drop -= dropped
        samples = samples[dropped:]
        self.produced += len(samples)
        self._done.append(samples)
