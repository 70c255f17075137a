"""The choice among the audio tracks of a recording: the default one, unless it is silent and another is not.

It is given LOOK_SECONDS, before which nothing of the recording is returned; a default track in which there is sound is
known at its first sample. If it is silent for so long, the first track with sound is chosen: the default one comes
first, then the others in their order. While all are silent silence is returned, and the choice stays open.

All tracks are decoded meanwhile, in the order of their bytes, so that the choice does not depend on how the stream is
cut: a file, which comes at once, gets the same track.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.damage import Damage
from asrserver.audio.demux.base import Demuxer, Packet, Track
from asrserver.audio.pcm import Samples
from asrserver.audio.recording import PIECE_SECONDS, TrackDecoder
from asrserver.audio.selection import Selection
from asrserver.audio.timeline import TOLERANCE
from asrserver.audio.turns import STEPS
from asrserver.errors import AudioError

#: Seconds, and bytes of the container, in which sound is looked for. It is how late the first text of a stream is whose
#: default track is silent; muted longer than that, a microphone loses against another track.
LOOK_SECONDS = 5.0
LOOK_BYTES = 16 << 20

#: Seconds of another track for which the default one is waited for: its bytes may come later. FFmpeg's muxers hold
#: packets of a track back for that long.
WAIT_SECONDS = 2 * LOOK_SECONDS

#: Most tracks that are considered: screen recorders write up to six.
LOOK_TRACKS = 6

#: Loudest sample of a track without sound: half the smallest step of 16 bits.
SILENCE = 2.0**-16


class Candidate:
    """A track that may be chosen.

    Attributes:
        demuxer: Reads this track from the container.
        recording: Decodes it.
        seconds: Duration of what was decoded so far.
        has_sound: Whether there is sound in it.
        damage: What could not be decoded.
        refusal: Why nothing more of it can be decoded; None: it can.
        item: The next item of the demuxer; None: it needs more bytes.
        rest: What is still to come of the packet in work; None: none is.
    """

    def __init__(self, demuxer: Demuxer, recording: TrackDecoder) -> None:
        self.demuxer = demuxer
        self.recording = recording
        self.has_sound = False
        self.damage: list[Damage] = []
        self.refusal: AudioError | None = None
        self.item: Track | Packet | None = None
        self.rest: Iterator[Samples] | None = None
        self._first = recording.produced
        self._samples: list[Samples] = []
        self._count = 0  # samples so far
        self._quiet = 0  # of them, those behind _samples, which are silent and not kept

    @property
    def seconds(self) -> float:
        return self._count / SAMPLE_RATE

    def pull(self) -> bool:
        """Get the next item, unless one is at hand or in work; False if more bytes are needed."""
        while self.item is None and self.rest is None and self.refusal is None:
            try:
                self.item = self.demuxer.pull()
                if not self.demuxer.has_more:
                    break
            except AudioError as exc:
                if exc.code != "undecodable_audio":
                    self.refusal = exc
                else:
                    self._note(exc.message, spoiled=False)
        return self.item is not None or self.rest is not None

    def join(self, samples: int) -> None:
        """Begin this many samples later than the others."""
        self.recording.shift(samples)
        self._quiet = self._count = samples

    def decode(self) -> None:
        """Decode the packet at hand, or some seconds of it: it may come after a long gap."""
        if self.rest is None:
            packet, self.item = self.item, None
            assert isinstance(packet, Packet)
            self.rest = self._pieces(packet)
        begun = self._count
        for piece in self.rest:
            self._take(piece)
            if self._count - begun >= LOOK_SECONDS * SAMPLE_RATE:
                return
        self.rest = None

    def decoded(self, returned: int) -> Iterator[Samples]:
        """What was decoded so far, behind as many samples as were returned of the recording already."""
        if returned > self._count:  # it begins later than the others
            self.recording.shift(returned - self._count)
        skip = returned
        for piece in self._samples:
            yield piece[skip:]
            skip = max(0, skip - len(piece))
        yield from silence(self._quiet - skip, self.recording)

    def _take(self, piece: Samples) -> None:
        if not self.has_sound and onset(piece) is not None:
            self.has_sound = True
            self._samples += silence(self._quiet, self.recording)
            self._quiet = 0
        if self.has_sound or self.seconds < LOOK_SECONDS:
            self._samples.append(piece)
        else:
            self._quiet += len(piece)
        self._count += len(piece)

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


def silence(samples: int, recording: TrackDecoder) -> Iterator[Samples]:
    """Samples of silence, in pieces."""
    for at in range(0, samples, PIECE_SECONDS * SAMPLE_RATE):
        yield recording.silence(min(PIECE_SECONDS * SAMPLE_RATE, samples - at))


class LookAhead:
    """Decodes all tracks of a recording until one is chosen.

    Attributes:
        default: The decoder of the default track.
        seconds: Duration of what was looked at.
        starved: More bytes are needed to go on.
        points: Where another process can continue to look: (position in the stream in bytes, number of the sample,
            time of the container's clock), until they are taken.
    """

    def __init__(self, candidates: list[Candidate], late: bool = False) -> None:
        """Begin to look.

        Args:
            candidates: The tracks; the default one is the first.
            late: Its time has passed.
        """
        self.seconds = 0.0
        self.starved = False
        self.points: list[tuple[int, int, float]] = []
        self._candidates = candidates
        self._default = candidates[0]
        self.default = self._default.recording
        self._begin = self._default.demuxer.offset
        self._late = late
        self._live = late  # others can continue in it
        self._returned = 0

    @classmethod
    def at_begin(cls, demuxer: Demuxer, recording: TrackDecoder, selection: Selection) -> LookAhead:
        """Begin where a recording begins.

        Args:
            demuxer: That of the default track.
            recording: The decoder of the default track.
            selection: How channels are decoded.
        """
        sample, candidates = recording.begin, [Candidate(demuxer, recording)]
        for other in demuxer.others(LOOK_TRACKS - 1):
            assert other.track is not None
            try:
                candidates.append(Candidate(other, TrackDecoder(other.track, sample, selection=selection)))
            except AudioError:  # its header is damaged, or it has too many channels
                continue
        return cls(candidates)

    @property
    def tracks(self) -> tuple[Track, ...]:
        """The tracks of which one will be chosen; the default one is the first."""
        return tuple(one.recording.track for one in self._candidates)

    def push(self, data: bytes) -> None:
        """Append the stream's next bytes for the tracks beside the default one."""
        for candidate in self._candidates[1:]:
            candidate.demuxer.push(data)

    def end(self) -> None:
        """No more bytes will come."""
        for candidate in self._candidates[1:]:
            candidate.demuxer.end()

    def discard(self) -> None:
        """Drop the bytes that are buffered."""
        for candidate in self._candidates:
            candidate.demuxer.discard()
            candidate.item = candidate.rest = None

    def choose(self) -> Candidate | None:
        """Decode some seconds of what is at hand, or some packets; None: there is no choice yet."""
        self.starved = False
        if len(self._candidates) == 1:
            return self._default
        begun, steps = self.seconds, 0
        while ready := [one for one in self._candidates if one.pull()]:
            first = min(ready, key=lambda one: (one.demuxer.offset, one.seconds))
            if isinstance(first.item, Track):  # another recording begins
                return self.best()
            self._decode(first)
            if self._default.has_sound or self._default.refusal:
                return self._default
            if self._late and any(one.has_sound for one in self._candidates):
                return self.best()
            steps += 1
            if self.seconds - begun >= PIECE_SECONDS or steps >= STEPS:
                return None
        self.starved = True
        return self._default if self._default.refusal else None

    def _decode(self, candidate: Candidate) -> None:
        packet = candidate.item
        if isinstance(packet, Packet) and packet.restart is not None:
            self._live = True
            now, time = candidate.recording.expected, packet.time
            # At a gap there is none: the sample is before it, the packet behind it.
            if self._late and now is not None and time is not None and abs(time - now) <= TOLERANCE:
                self.points.append((packet.restart, round(candidate.recording.seconds * SAMPLE_RATE), now))
        if self._late and self._live and not candidate.seconds and candidate.recording.expected is None:
            candidate.join(round(self.seconds * SAMPLE_RATE))
        candidate.decode()
        self.seconds = max(self.seconds, candidate.seconds)
        self._late |= self._default.seconds >= LOOK_SECONDS or self.seconds >= WAIT_SECONDS
        self._late |= candidate.demuxer.offset - self._begin >= LOOK_BYTES

    def quiet(self) -> Iterator[Samples]:
        """Silence that may be returned before there is a choice: nothing that is heard will come in its place.

        In an indexed file the tracks may lie one behind the other, and nobody waits.
        """
        until = round((self.seconds - LOOK_SECONDS) * SAMPLE_RATE)
        if self._late and self._live and until > self._returned:
            count, self._returned = until - self._returned, until
            yield from silence(count, self._default.recording)

    def take_damage(self) -> list[Damage]:
        """What could not be decoded of the default track, as far as it lies in what was returned."""
        found, returned = self._default.damage, (self.default.begin + self._returned) / SAMPLE_RATE
        taken = [damage for damage in found if damage.since < returned]
        self._default.damage = found[len(taken) :]
        return taken

    def rest(self, chosen: Candidate) -> Iterator[Samples]:
        """What of the chosen track was decoded and not returned."""
        return chosen.decoded(self._returned)

    def best(self) -> Candidate:
        """The default track, unless it is silent so far and another is not."""
        if self._default.refusal is not None:
            return self._default
        return next((one for one in self._candidates if one.has_sound), self._default)


def earliest(onsets: Sequence[float]) -> int:
    """The index of the track to choose, by the seconds at which sound begins in each; the default one is the first."""
    return min(range(len(onsets)), key=lambda number: (max(onsets[number], LOOK_SECONDS), number))


def onset(samples: Samples) -> int | None:
    """The first sample with sound; None if there is none."""
    loud = np.flatnonzero(np.abs(samples).reshape(-1) > SILENCE)
    return int(loud[0]) // (samples.shape[1] if samples.ndim == 2 else 1) if len(loud) else None
