"""A recording that is still going on: its bytes, cut anywhere, to 16 kHz samples, each byte decoded once.

    decoder = StreamDecoder(kind)              # sniff.container's word, or pcm_s16le, pcm_f32le with rate and channels
    samples = decoder.feed(data)               # whatever is complete; the slicing changes nothing
    samples = decoder.flush()                  # at the end
    border = decoder.border(sample)            # where another process can go on: JSON by asdict()
    decoder = StreamDecoder.resume(border)     # there: feed it the stream's bytes from border.offset on

A resumed decoder's first sample is number `border.sample` of the recording. From there on it returns what the first
one did: the same numbers for PCM, WAV and FLAC, nearly the same for Opus, AAC, MP3 and Vorbis (measured on speech, of
the first 0.1 s: correlation over 0.999), whose decoders converge (`_PREROLL`) on audio before the border that is not
returned. A border carries the head, which is the codec's parameters: 20 bytes for Opus, a few KiB for Vorbis. So
nothing of the stream before `border.offset` need be kept.

Known bounds: the end of an Ogg stream resumed in its last page may be a packet longer; gaps in time stamps are no
audio.
"""

from __future__ import annotations

import base64
import math
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.codec import Codec
from asrserver.audio.demux import demuxer
from asrserver.audio.demux.base import Packet, Track, opus_samples
from asrserver.audio.pcm import Resampler, Samples, repaired
from asrserver.errors import AudioError

#: Seconds, and packets, after which a decoder that began in the middle says what one that began at the start does.
#: Opus: RFC 7845, 4.6. MP3 frames use bits of the frames before: 511 bytes are up to ten frames, of 72 ms at 8 kHz.
_PREROLL = {"opus": (0.08, 4), "mp3": (0.8, 10)}
_PREROLL_OTHERS = (0.1, 3)

#: Output samples after which a resampler that began in the middle is exact; measured: at most 18 (FFmpeg 8's swr).
_WARM = 32

#: Samples from border to border, and borders that are kept before every second one is let go.
_SPACING = SAMPLE_RATE // 4
_BORDERS = 1024

#: Seconds of audio that one feed may decode to. Opus can say two minutes of silence in a kilobyte.
_MOST = 1800


@dataclass(frozen=True, slots=True)
class Border:
    """A place in a stream to go on at: `offset` is where in its bytes, `sample` the first sample that comes then."""

    offset: int
    sample: int
    kind: str
    sample_rate: int
    channels: int
    track: Track | None = None  # None: a header comes next
    start: int = 0  # in the stream, of the recording that is under way in it
    packets: int = 0  # that follow the offset and are decoded for the decoder's sake alone
    position: int = 0  # in that recording, at the codec's rate, after those packets
    rate: int = 0  # the codec's

    def asdict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        fields = asdict(self)
        if self.track is not None:
            fields["track"]["extradata"] = base64.b64encode(self.track.extradata).decode()
        return fields

    @classmethod
    def fromdict(cls, fields: dict[str, Any]) -> Border:
        """What `asdict` gave."""
        track = fields["track"]
        if track is not None:
            track = Track(**{**track, "extradata": base64.b64decode(track["extradata"])})
        return cls(**{**fields, "track": track})


class StreamDecoder:
    """Of one stream. It blocks for up to 5 ms for each second of audio, needs no thread, and a few hundred KiB."""

    def __init__(self, kind: str, sample_rate: int = SAMPLE_RATE, channels: int = 1) -> None:
        self._start = Border(0, 0, kind, sample_rate, channels)
        self._demuxer = demuxer(kind, sample_rate, channels)
        self._recording: _Recording | None = None
        self._borders = deque([self._start])
        self._spacing = _SPACING
        self._held: list[Samples] = []  # decoded before damage was found behind it
        self._finished = 0  # samples of the recordings before this one
        self._silent = True  # no recording has begun
        self.position = 0  # the number of the sample that comes next

    @classmethod
    def resume(cls, border: Border) -> StreamDecoder:
        """One that goes on at the border: the next bytes fed are those of the stream from `border.offset` on."""
        decoder = cls(border.kind, border.sample_rate, border.channels)
        decoder._borders = deque([border])
        decoder.position = decoder._finished = border.sample
        if border.track is None:
            decoder._demuxer.offset = border.offset
        else:
            decoder._demuxer.resume(border.track, border.offset, border.start)
            decoder._recording = _Recording(border.track, border.sample, border)
            decoder._silent = False
        return decoder

    def feed(self, data: bytes) -> Samples:
        """The samples that these bytes complete.

        Raises AudioError for bytes that cannot be decoded. They alone are lost: what came before them is returned by
        the next call, and later bytes are decoded from the next place on at which that is possible. The code is
        undecodable_audio, not_streamable (nothing will come of this recording) or utterance_too_long.
        """
        self._demuxer.push(data)
        return self._counted(self._drain())

    def flush(self) -> Samples:
        """The rest, at the end of the stream, after which it can only be dropped; AudioError if it never held audio."""
        self._demuxer.end()
        try:
            samples = self._drain()
        except AudioError:  # the end is cut short, as it is when a recorder dies: that is no news
            samples, self._held = self._held, []
        if self._silent:
            raise AudioError("undecodable_audio", f"the {self._start.kind} data ends before any audio")
        return self._counted(samples + self._close())

    def border(self, sample: int) -> Border:
        """The last place to go on at so that no sample from this one on is missed. Earlier ones are forgotten."""
        while len(self._borders) > 1 and self._borders[1].sample <= sample:
            self._borders.popleft()
        if len(self._borders) < _BORDERS // 4:
            self._spacing = _SPACING
        return self._borders[0]

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
                    self._mark(self._recording)
                    if self._recording.waiting > _MOST * self._recording.rate:
                        self._demuxer.discard()
                        raise AudioError("utterance_too_long", f"the chunk decodes to more than {_MOST} s of audio")
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
        self._recording = _Recording(track, self._finished)
        if not self._silent:
            self._add(Border(self._demuxer.start, self._finished, *self._identity))
        self._silent = False

    def _close(self) -> list[Samples]:
        """The rest of a recording that is over."""
        if self._recording is None:
            return []
        recording, self._recording = self._recording, None
        samples = recording.flush()
        self._finished = recording.produced
        return samples

    @property
    def _identity(self) -> tuple[str, int, int]:
        return self._start.kind, self._start.sample_rate, self._start.channels

    def _mark(self, recording: _Recording) -> None:
        place = recording.place
        if place is not None:
            recording.place = None
            if place.sample - self._borders[-1].sample >= self._spacing:
                self._add(
                    Border(
                        place.offset,
                        place.sample,
                        *self._identity,
                        recording.track,
                        self._demuxer.start,
                        place.packets,
                        place.position,
                        recording.rate,
                    )
                )

    def _add(self, border: Border) -> None:
        self._borders.append(border)
        if len(self._borders) > _BORDERS:  # nobody asked for a long time
            self._borders = deque(list(self._borders)[::2])
            self._spacing *= 2


def begins(kind: str, data: bytes) -> bool:
    """Whether the bytes may be a recorder's beginning of a container of that kind, though no audio is in them yet."""
    if kind == "mp4" and b"mdat" in data and b"moov" not in data:
        return False  # recorders write the index first: this is a file that was cut short, and its sender must know
    try:
        StreamDecoder(kind).feed(data)
    except AudioError:
        return False
    return True


@dataclass(slots=True)
class _Place:
    """A border in the making."""

    offset: int
    position: int
    packets: int = 0
    sample: int = 0


class _Recording:
    """Packets of one track to samples.

    A position counts what the codec gave since the rate last changed, at that rate; position 0 is sample `_anchor`.
    """

    def __init__(self, track: Track, sample: int, border: Border | None = None) -> None:
        self.track = track
        self.rate = 0
        self.place: _Place | None = None  # the last one that is ready
        self.produced = sample  # up to this sample of the stream
        self.waiting = 0  # samples, at the codec's rate
        self._codec = Codec(track)
        self._resampler = Resampler(SAMPLE_RATE)
        self._open: _Place | None = None  # whose packets are still coming
        self._anchor = sample
        self._position = 0
        self._preroll = 0  # packets
        self._skip = track.skip  # samples of the codec's, before the first that counts
        self._drop = 0  # samples of the resampler's, until it is warm
        self._last = 0  # samples of the last packet
        self._waiting: list[Samples] = []
        self._done: list[Samples] = []
        if border is not None:
            self._resume(border)

    def _resume(self, border: Border) -> None:
        self._set_rate(border.rate)
        self._preroll = border.packets
        self._position = self._on_grid(border.position)
        self._skip = self._position - border.position
        self._drop = self._warm
        self._anchor = border.sample - self._warm - self._position * SAMPLE_RATE // self.rate

    @property
    def reason(self) -> str:
        """Why the last packet that could not be decoded could not, if that is known."""
        return self._codec.reason

    # -- in ------------------------------------------------------------------------------------------------------

    def decode(self, packet: Packet) -> bool:
        """Whether it could be; silence takes the place of one that cannot."""
        if self._preroll:
            self._preroll -= 1
            self._codec.decode(packet.data)
            return True
        if packet.restart is not None and self._open is None and not self._skip:
            self._open = _Place(packet.restart, self._position)
            if self._codec.memoryless:
                self._ready()
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
        if self._open is not None:
            self._open.packets += 1
            seconds, packets = _PREROLL.get(self.track.codec, _PREROLL_OTHERS)
            enough = self._position - self._open.position >= seconds * self.rate
            if enough and self._open.packets >= packets:
                self._ready()
        return not spoiled

    def _ready(self) -> None:
        """The open place can be gone on at, from the position that is reached by now."""
        place, self._open = self._open, None
        if place is not None and self.rate:
            place.position = self._position
            place.sample = self._anchor + self._on_grid(self._position) * SAMPLE_RATE // self.rate + self._warm
            self.place = place

    def _on_grid(self, position: int) -> int:
        """The next position that falls on one of our samples."""
        step = self.rate // math.gcd(self.rate, SAMPLE_RATE)
        return -(-position // step) * step

    def _push(self, samples: Samples, rate: int) -> None:
        if rate != self.rate:
            self._convert(last=True)
            self._set_rate(rate)
            self._anchor, self._position, self._open, self.place = self.produced, 0, None, None
        skipped = min(self._skip, len(samples))
        self._skip -= skipped
        self._position += len(samples) - skipped
        self.waiting += len(samples) - skipped
        self._waiting.append(samples[skipped:])

    def _set_rate(self, rate: int) -> None:
        self.rate = rate
        self._warm = 0 if rate == SAMPLE_RATE else _WARM
        self._drop = 0
        self._resampler = Resampler(rate)

    # -- out -----------------------------------------------------------------------------------------------------

    def take(self) -> list[Samples]:
        """What can be had by now."""
        self._convert()
        done, self._done = self._done, []
        return done

    def flush(self) -> list[Samples]:
        """All of it, at the end: what codec and resampler hold too."""
        for samples, rate in self._codec.decode(None) or ():
            self._push(samples, rate)
        self._convert(last=True)
        return self.take()

    def _convert(self, last: bool = False) -> None:
        """Resample in one go what is there: swr's output does not depend on how its input is cut (to the bit)."""
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
