"""The base of all demuxers: a buffer of bytes, and its position in the stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from asrserver.audio import bounds
from asrserver.audio.bounds import ImplausibleAudio, TooMuchWork
from asrserver.audio.selection import Selection
from asrserver.errors import AudioError

T = TypeVar("T")

#: Longest packet of audio, in bytes. Opus packets have up to 61,298 (RFC 6716: 48 frames of 1,275 bytes); those of PCM
#: and FLAC may be longer.
MAX_PACKET_BYTES = 1 << 18

#: Most seconds of silence before a recording, as an edit list claims them.
MAX_DELAY = 3600.0

#: Longest header element that is read as a whole, in bytes: a list of tracks, the index of a fragment.
MAX_HEADER_BYTES = 1 << 20

#: Longest element that is skipped, in bytes: a picture in the tags, a key frame of the video. A longer one is damage.
MAX_SKIP_BYTES = 64 << 20

#: Most bytes before the first audio of a recording: a picture and an index have a few million.
MAX_SILENT_BYTES = 32 << 20

#: Steps in a row that a demuxer may take without a packet. The elements before a recording are a few hundred; bytes
#: made to cost time hold an element, or what may be one, every two bytes.
MAX_IDLE_STEPS = 20_000

#: Steps of one `pull`, at most: some milliseconds.
STEPS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Track:
    """The beginning of a recording. Resume points contain it: its fields are kept in Redis.

    Attributes:
        codec: FFmpeg's name.
        extradata: The codec's parameters.
        rate: Samples per second; 0: the codec knows.
        channels: Number of channels; 0: the codec knows.
        skip: Samples at the start that the encoder added.
        number: Number of the track in its container.
        frame: For PCM, bytes of one sample of all channels; for ADPCM, of a block; for other codecs in MP4, bytes of
            every sample if all have the same.
        end: Position in the stream where its audio ends, in bytes; 0: unknown.
        clock: Ticks per second of the container's clock; 0: it has none.
        ticks: For MP4, ticks of every sample if all have the same.
        delay: Seconds of silence before its first sample.
    """

    codec: str
    extradata: bytes = b""
    rate: int = 0
    channels: int = 0
    skip: int = 0
    number: int = 0
    frame: int = 0
    end: int = 0
    clock: float = 0.0
    ticks: int = 0
    delay: float = 0.0


@dataclass(slots=True)
class Packet:
    """A packet for the codec.

    Attributes:
        data: Its bytes.
        restart: Position in the stream, in bytes, at which a demuxer may start to find this packet first; None: none.
        trim: Samples at its end that are not audio.
        skip: Samples at its beginning that are not audio, at the track's rate.
        keep: Samples after them that are; None: all.
        time: When it begins, in seconds of the container's clock; None: unknown. Where a packet is later than the end
            of the one before it, there is a gap.
    """

    data: bytes
    restart: int | None
    trim: int = 0
    skip: int = 0
    keep: int | None = None
    time: float | None = None


class Demuxer(ABC):
    """Push bytes, then pull items until there are none.

    Attributes:
        track: The recording that is open; None: none.
        offset: Position in the stream, in bytes, of the first byte in the buffer.
        start: Position in the stream, in bytes, where the open recording begins.
        steps: The steps that the last `pull` took.
        has_more: Whether it returned None though there is more to look at: it may be called again at once.
        wanted: The number of the audio track to decode, from 0, among those of its container; None: the default one.
        tracks: The number of audio tracks of the open recording.
    """

    #: The container, for error messages.
    name: str

    #: Bytes without audio that allow one step more; 0: none do.
    bytes_per_step: ClassVar[int] = 0

    def __init__(self) -> None:
        self.track: Track | None = None
        self.offset = 0
        self.start = 0
        self.steps = 0
        self.has_more = False
        self.wanted: int | None = None
        self.tracks = 1
        self._buffer = bytearray()
        self._skip = 0  # bytes to come that are skipped
        self._lost = False  # after damage, until the next place where it can continue
        self._refused = False  # the open recording is skipped as a whole
        self._ended = False
        self._idle = 0  # steps since the last packet
        self._spent = 0  # times that these were too many
        self._heard = 0  # position after the last packet

    @property
    def is_passing(self) -> bool:
        """Whether bytes are skipped up to the header of another recording, because this one is refused."""
        return self._refused and self.track is None

    def resume(self, track: Track, offset: int, start: int, time: float | None = None) -> None:
        """Continue a recording.

        Args:
            track: Its track.
            offset: Position in the stream of the next bytes pushed, in bytes: it was a packet's `restart`.
            start: Where the recording begins.
            time: The packet's; None: unknown.
        """
        self.track = track
        self.offset = self._heard = offset
        self.start = start

    def push(self, data: bytes) -> None:
        """Append the stream's next bytes."""
        if self._spent > 1:  # it has had its time
            self.offset += len(data)
            return
        if self._skip:
            passed = min(self._skip, len(data))
            self._skip -= passed
            self.offset += passed
            data = data[passed:]
        self._buffer += data

    def pull(self) -> Track | Packet | None:
        """Return the next complete item; None: more bytes are needed, unless it `has_more`.

        Raises:
            AudioError: The data is damaged or not supported. It may be pulled again.
        """
        self.steps, self.has_more = 0, False
        while not self._skip:
            if self.steps >= STEPS_AT_ONCE:
                self.has_more = True
                return None
            self.steps += 1
            self._idle += 1
            if self._idle > MAX_IDLE_STEPS:
                self._spend(0)
            if self._lost:
                if not self._find():
                    break
                self._lost = False
            before = self.offset
            item = self._next()
            if item is not None:
                self._heard = self.offset
                if isinstance(item, Track):
                    self._refused = False
                else:
                    self._idle = self._spent = 0
                return item
            if self.offset == before:
                break
        if self.offset - self._heard > MAX_SILENT_BYTES and not self._refused:
            self.discard()
            raise self._unsupported(f"it has {MAX_SILENT_BYTES >> 20} MiB without audio")
        return None

    def _spend(self, steps: int) -> None:
        """Count steps; raises TooMuchWork and drops the buffer if they were too many since the last packet."""
        self._idle += steps
        allowed = (self.offset - self._heard) // self.bytes_per_step if self.bytes_per_step else 0
        if self._idle > MAX_IDLE_STEPS + allowed:
            self._idle = 0
            self._spent += 1
            self.discard()
            raise TooMuchWork(f"the {self.name} data has too many elements without audio")

    def others(self, most: int) -> list[Demuxer]:
        """Demuxers of the other audio tracks, in their order, where a recording of several has just begun.

        Args:
            most: Most of them. So many are tried, and one more, which may be the default one.

        Returns:
            Each continues from here. None if the container has no others, or cannot be read for several at once.
        """
        found: list[Demuxer] = []
        for number in range(min(self._alternatives(), most + 1) if self.track is not None else 0):
            if len(found) == most or self._idle > MAX_IDLE_STEPS // 2:
                break
            other = copy(self)
            other._buffer = self._buffer.copy()
            try:
                track = other._reopen(number)
            except AudioError:  # of a codec that is not streamed
                continue
            finally:
                self._idle = max(self._idle, other._idle)
            if self.track is not None and track.number != self.track.number:
                found.append(other)
        return found

    def _alternatives(self) -> int:
        """The number of audio tracks, if each can be read by a demuxer of its own; otherwise 0."""
        return 0

    def _reopen(self, number: int) -> Track:
        """Become the demuxer of another audio track of the recording that has just begun.

        It is a copy that shares everything but the buffer that is not replaced here.

        Raises:
            AudioError: The track cannot be streamed.
        """
        raise NotImplementedError

    def end(self) -> None:
        """No more bytes will come: items that only the end completes can be pulled."""
        self._ended = True

    def discard(self) -> None:
        """Drop the buffer, and look for a place to continue."""
        self._drop(len(self._buffer))
        self._lost = True

    @abstractmethod
    def _next(self) -> Track | Packet | None:
        """Do one step: return an item, or drop bytes, or neither because more are needed."""

    def _find(self) -> bool:
        """Drop bytes up to the next place to continue; False if it has not come yet."""
        return True

    def _drop(self, count: int) -> None:
        """Skip bytes, including bytes that have not come yet."""
        here = len(self._buffer)
        if count > here:
            self._skip += count - here
            count = here
        del self._buffer[:count]
        self.offset += count

    def _find_any(self, patterns: tuple[bytes, ...], lead: int = 0) -> bool:
        """`_find` for a place with one of some equally long patterns `lead` bytes after its beginning."""
        found = [at for pattern in patterns if (at := self._buffer.find(pattern, lead)) >= 0]
        length = len(patterns[0])
        self._drop(min(found) - lead if found else max(0, len(self._buffer) - lead - length + 1))
        return bool(found)

    def _damaged(self, what: str) -> AudioError:
        """Make the error for the bytes at hand, and skip the first of them, or it would be found again."""
        error = AudioError("undecodable_audio", f"the {self.name} data is damaged at byte {self.offset}: {what}")
        self._drop(1)
        self._lost = True
        return error

    def _begin_track(self, track: Track) -> Track:
        """Open a recording, unless its header cannot be true. A rate or channels of 0 are left to the codec.

        Raises:
            AudioError: The header cannot be true; the recording is skipped.
        """
        try:
            bounds.check_claim(track.channels, track.rate)
        except ImplausibleAudio:
            self.track, self._refused = None, True
            raise
        if not (
            0 <= track.skip <= 480_000
            and track.number < 1 << 32
            and track.frame <= MAX_PACKET_BYTES
            and 0 <= track.ticks < 1 << 32
            and 0 <= track.clock <= 1e10
            and 0 <= track.delay <= MAX_DELAY
            and len(track.extradata) <= MAX_HEADER_BYTES
        ):
            raise self._unsupported("its header is damaged")
        self.track = track
        return track

    def _chosen(self, tracks: list[T], is_default: Callable[[T], bool]) -> T:
        """Choose among the audio tracks: the wanted one, or the first default one, or the first.

        Raises:
            AudioError: There is no such track.
        """
        if self.wanted is None:
            return next((track for track in tracks if is_default(track)), tracks[0])
        try:
            Selection(self.wanted).check_track(len(tracks))
        except AudioError:
            self.track, self._refused = None, True
            raise
        return tracks[self.wanted]

    def _unsupported(self, what: str) -> AudioError:
        """Make the error for the open recording, which is skipped as a whole."""
        self.track, self._refused = None, True
        return AudioError("not_streamable", f"the {self.name} data cannot be decoded as a stream: {what}")


def opus_samples(packet: bytes) -> int:
    """Samples per channel of an Opus packet, at 48 kHz (RFC 6716, 3.1)."""
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
