"""The choice among the audio tracks of a stream: the default one, unless it is silent and another is not.

Only so much is looked at before anything of it is returned; a default track in which there is sound is known at its
first sample. All tracks are decoded meanwhile, in the order of their bytes, so that the choice does not depend on how
the stream is cut: a file, which comes at once, gets the same track.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.damage import Damage
from asrserver.audio.demux.base import Demuxer, Packet, Track
from asrserver.audio.pcm import Samples
from asrserver.audio.recording import TrackDecoder
from asrserver.audio.selection import Selection
from asrserver.errors import AudioError

#: Seconds, and bytes of the container, in which sound is looked for. It is how late the first text of a stream is whose
#: default track is silent; muted longer than that, a microphone loses against another track.
LOOK_SECONDS = 5.0
LOOK_BYTES = 16 << 20

#: Most tracks that are looked at: screen recorders write up to six.
LOOK_TRACKS = 6

#: Loudest sample of a track without sound: half the smallest step of 16 bits.
SILENCE = 2.0**-16


class Candidate:
    """A track that may be chosen.

    Attributes:
        demuxer: Reads this track from the container.
        recording: Decodes it.
        samples: What was decoded so far.
        seconds: Their duration.
        damage: What could not be decoded.
        refusal: Why nothing more of it can be decoded; None: it can.
        item: The next item of the demuxer; None: it needs more bytes.
        rest: What is still to come of the packet in work.
    """

    def __init__(self, demuxer: Demuxer, recording: TrackDecoder) -> None:
        self.demuxer = demuxer
        self.recording = recording
        self.samples: list[Samples] = []
        self.seconds = 0.0
        self.damage: list[Damage] = []
        self.refusal: AudioError | None = None
        self.item: Track | Packet | None = None
        self.rest: Iterator[Samples] = iter(())
        self.has_sound = False

    def pull(self) -> bool:
        """Get the next item, unless there is one; False if more bytes are needed."""
        while self.item is None and self.refusal is None:
            try:
                self.item = self.demuxer.pull()
                break
            except AudioError as exc:
                if exc.code != "undecodable_audio":
                    self.refusal = exc
                else:
                    self._note(exc.message, spoiled=False)
        return self.item is not None

    def decode(self) -> None:
        """Decode the packet at hand."""
        packet, self.item = self.item, None
        assert isinstance(packet, Packet)
        self.rest = self._pieces(packet)
        self.take()

    def take(self) -> None:
        """Take samples of the packet in work, up to a gap that is too long to be looked through."""
        for piece in self.rest:
            self.samples.append(piece)
            self.seconds += len(piece) / SAMPLE_RATE
            self.has_sound = self.has_sound or (len(piece) > 0 and float(np.abs(piece).max()) > SILENCE)
            if self.seconds >= LOOK_SECONDS:
                break

    def _pieces(self, packet: Packet) -> Iterator[Samples]:
        yield from self.recording.fill(self.recording.late(packet))
        if not self.recording.decode(packet):
            since = self.recording.seconds
            self.recording.conceal(packet)
            self._note(self.recording.reason or "a packet cannot be decoded", spoiled=True, since=since)
        yield from self.recording.take()

    def _note(self, reason: str, spoiled: bool, since: float | None = None) -> None:
        now = self.recording.seconds
        self.damage.append(Damage(now if since is None else since, reason, self.demuxer.offset, spoiled, now))
        del self.damage[100:]


class LookAhead:
    """Decodes all tracks of a recording until one is chosen."""

    def __init__(self, demuxer: Demuxer, recording: TrackDecoder, sample: int, selection: Selection) -> None:
        """Begin where the default track begins.

        Args:
            demuxer: That of the default track.
            recording: The decoder of the default track.
            sample: Number of the recording's first sample in the stream.
            selection: How channels are decoded.
        """
        self._default = Candidate(demuxer, recording)
        self._candidates = [self._default]
        self._begin = demuxer.offset
        for other in demuxer.others(LOOK_TRACKS - 1):
            assert other.track is not None
            try:
                self._candidates.append(Candidate(other, TrackDecoder(other.track, sample, selection=selection)))
            except AudioError:  # its header is damaged, or it has too many channels
                continue

    def push(self, data: bytes) -> None:
        """Append the stream's next bytes for the tracks beside the default one."""
        for candidate in self._candidates[1:]:
            candidate.demuxer.push(data)

    def end(self) -> None:
        """No more bytes will come."""
        for candidate in self._candidates[1:]:
            candidate.demuxer.end()

    def choose(self) -> Candidate | None:
        """Decode what is at hand; None: more bytes are needed."""
        if len(self._candidates) == 1:
            return self._default
        while ready := [one for one in self._candidates if one.pull()]:
            first = min(ready, key=lambda one: one.demuxer.offset)
            if isinstance(first.item, Track):  # another recording begins
                return self.best()
            first.decode()
            looked = first.demuxer.offset - self._begin
            if (
                self._default.has_sound
                or self._default.refusal
                or first.seconds >= LOOK_SECONDS
                or looked >= LOOK_BYTES
            ):
                return self.best()
        return self._default if self._default.refusal else None

    def best(self) -> Candidate:
        """The default track, unless it is silent so far and another is not."""
        if self._default.refusal is not None:
            return self._default
        ranked = [self._default, *self._candidates]
        return next((one for one in ranked if one.has_sound), self._default)
