"""What all demuxers share: the bytes that wait, and where they were in the stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from asrserver.audio import bounds
from asrserver.audio.bounds import ImplausibleAudio
from asrserver.errors import AudioError

#: Longest packet of audio, in bytes. Opus can have 61,298 (RFC 6716: 48 frames of 1,275 bytes); PCM and FLAC more.
MAX_PACKET = 1 << 18

#: Longest piece of a head that is looked at as a whole: track lists, indexes of a fragment.
MAX_HEAD = 1 << 20

#: Longest thing passed over unseen: a picture in the tags, a key frame of the video. More is damage.
MAX_SKIP = 64 << 20


@dataclass(frozen=True, slots=True)
class Track:
    """A recording begins: what its codec must know."""

    codec: str  # as FFmpeg names it
    extradata: bytes = b""
    rate: int = 0  # samples a second, and channels: for codecs that do not say it themselves
    channels: int = 0
    skip: int = 0  # samples at its start that the encoder put there and nobody said
    number: int = 0  # of the track in its container
    frame: int = 0  # bytes of one sample of all channels, of PCM; bytes of every MP4 sample, if all have the same
    end: int = 0  # of its audio, in the stream's bytes, if known


@dataclass(slots=True)
class Packet:
    """What a codec takes at once. `restart` is where in the stream a demuxer may begin to find this one first."""

    data: bytes
    restart: int | None
    trim: int = 0  # samples at its end that are not audio


class Demuxer(ABC):
    """Push bytes, then pull until there is nothing."""

    #: Of errors.
    name: str

    def __init__(self) -> None:
        self.track: Track | None = None
        self.offset = 0  # in the stream, of the first byte that waits
        self.start = 0  # in the stream, of the recording's first byte
        self._buffer = bytearray()
        self._skip = 0  # bytes to come that nobody wants
        self._lost = False  # after damage, until the next place to go on at
        self._refused = False  # a recording, as a whole
        self._ended = False

    def resume(self, track: Track, offset: int, start: int) -> None:
        """Go on with a recording: the next bytes pushed are those from `offset` on, a packet's `restart`."""
        self.track = track
        self.offset = offset
        self.start = start

    def push(self, data: bytes) -> None:
        if self._skip:
            passed = min(self._skip, len(data))
            self._skip -= passed
            self.offset += passed
            data = data[passed:]
        self._buffer += data

    def pull(self) -> Track | Packet | None:
        """The next item that is complete; raises AudioError for what cannot be, and can be pulled again."""
        while not self._skip:
            if self._lost and not self._find():
                return None
            self._lost = False
            before = self.offset
            item = self._next()
            if item is not None or self.offset == before:
                return item
        return None

    def end(self) -> None:
        """There are no more bytes: what only the end completes can be pulled."""
        self._ended = True

    def discard(self) -> None:
        """Let go of the bytes that wait, and look for a place to go on at."""
        self._drop(len(self._buffer))
        self._lost = True

    @abstractmethod
    def _next(self) -> Track | Packet | None:
        """One step: an item, or bytes dropped, or neither because more are needed."""

    def _find(self) -> bool:
        """Drop bytes up to a place to go on at; False if it has not come yet."""
        return True

    def _drop(self, count: int) -> None:
        """Pass over bytes, also such as are still to come."""
        here = min(count, len(self._buffer))
        del self._buffer[:here]
        self.offset += here
        self._skip += count - here

    def _find_any(self, patterns: tuple[bytes, ...], lead: int = 0) -> bool:
        """`_find` for a place that begins with one of some patterns, all equally long, after `lead` bytes."""
        found = [at for pattern in patterns if (at := self._buffer.find(pattern, lead)) >= 0]
        length = len(patterns[0])
        self._drop(min(found) - lead if found else max(0, len(self._buffer) - lead - length + 1))
        return bool(found)

    def _damaged(self, what: str) -> AudioError:
        """The error for the bytes at hand. The first of them is passed over, or it would be found again."""
        error = AudioError("undecodable_audio", f"the {self.name} data is damaged at byte {self.offset}: {what}")
        self._drop(1)
        self._lost = True
        return error

    def _begin_track(self, track: Track) -> Track:
        """The recording's, if what it says of itself can be; 0 channels or samples/s are the codec's to say."""
        try:
            bounds.check_claim(track.channels, track.rate)
        except ImplausibleAudio:
            self.track, self._refused = None, True
            raise
        if not (
            0 <= track.skip <= 480_000
            and track.number < 1 << 32
            and track.frame <= MAX_PACKET
            and len(track.extradata) <= MAX_HEAD
        ):
            raise self._unsupported("its head is damaged")
        self.track = track
        return track

    def _unsupported(self, what: str) -> AudioError:
        """The error for a recording that is passed over as a whole."""
        self.track, self._refused = None, True
        return AudioError("not_streamable", f"the {self.name} data cannot be decoded as a stream: {what}")


def opus_samples(packet: bytes) -> int:
    """Of a packet, a channel, at 48 kHz (RFC 6716, 3.1)."""
    if not packet:
        return 0
    config = packet[0] >> 3
    if config < 12:
        size = (480, 960, 1920, 2880)[config & 3]
    elif config < 16:
        size = (480, 960)[config & 1]
    else:
        size = (120, 240, 480, 960)[config & 3]
    code = packet[0] & 3
    if code == 3:
        return size * (packet[1] & 0x3F) if len(packet) > 1 else 0
    return size * (2 if code else 1)


def opus_skip(head: bytes) -> int:
    """Pre-skip of an OpusHead, in samples at 48 kHz (RFC 7845, 5.1)."""
    return int.from_bytes(head[10:12], "little")
