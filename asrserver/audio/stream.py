"""Streaming decoder: a recording that is still going on, its bytes cut anywhere, to 16 kHz samples.

    decoder = StreamDecoder(kind)              # a container as sniff.container names it, pcm_s16le, opus, …
    samples = decoder.feed(data)               # the samples that are complete; slicing changes nothing, but for opus
    samples = decoder.flush()                  # at the end
    point = decoder.resume_point(sample)       # where another process can continue
    decoder = StreamDecoder.resume(point)      # there: feed it the stream's bytes from point.offset on

Every byte is decoded once. A resumed decoder's first sample has number `point.sample` in the recording. From there on
it returns the samples of the first decoder: the same numbers for PCM, WAV and FLAC; nearly the same for Opus, AAC, MP3
and Vorbis (measured on the first 0.1 s of speech: correlation over 0.999), whose decoders converge on audio before the
point that is not returned (recording.py). A point contains the codec's parameters: 20 bytes for Opus, a few KiB for
Vorbis. So nothing of the stream before `point.offset` need be kept.

Where a packet is later than the end of the one before it, silence takes the place of what is missing (timeline.py).

Known limit: the end of an Ogg stream that was resumed in its last page may be a packet longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np

from asrserver.audio import SAMPLE_RATE, sniff
from asrserver.audio.damage import Damage, described
from asrserver.audio.demux import demuxer as open_demuxer
from asrserver.audio.demux.base import Packet, Track
from asrserver.audio.look_ahead import Candidate, LookAhead
from asrserver.audio.pcm import Samples, joined
from asrserver.audio.recording import PIECE_SECONDS, PendingPoint, ResumePoint, TrackDecoder
from asrserver.audio.selection import MIXED, NOT_THERE, Selection
from asrserver.audio.turns import STEPS, Turns
from asrserver.errors import AudioError

#: Samples between two resume points.
_POINT_SPACING = SAMPLE_RATE // 4

#: Most resume points kept: with more, every second one is dropped and the spacing doubled.
_MAX_POINTS = 1024

#: Most seconds of audio from one feed. Opus can encode two minutes of silence in a kilobyte.
_MAX_FEED_SECONDS = 1800

#: Steps of a demuxer that take as long as one step of a turn.
_DEMUXER_STEPS = 16

#: A piece without samples.
_NOTHING: Samples = np.zeros(0, np.float32)

#: Damage is reported this many bytes after it, even if nothing could be decoded since.
_MAX_LOST = 1 << 16


class StreamDecoder:
    """Decodes one stream. It blocks for up to 5 ms per second of audio and holds a few hundred KiB.

    Attributes:
        position: Number of the next sample.
        tail: After the end: the damage that was not reported before it; None: there was none.
    """

    tail: AudioError | None = None

    def __init__(
        self,
        kind: str,
        sample_rate: int = SAMPLE_RATE,
        channels: int = 1,
        selection: Selection = MIXED,
    ) -> None:
        """Begin a stream.

        Args:
            kind: As `demuxer` takes it.
            sample_rate: Samples per second of headerless PCM.
            channels: Channels of headerless PCM.
            selection: What of it is decoded.
        """
        self._start = ResumePoint(0, 0, kind, sample_rate, channels)
        self._selection = selection
        self._demuxer = open_demuxer(kind, sample_rate, channels, selection.track)
        self._recording: TrackDecoder | None = None
        self._looking: LookAhead | None = None  # while the track is not chosen yet
        self._item: Track | Packet | None = None  # of the demuxer, to be taken first
        self._points = deque([self._start])
        self._spacing = _POINT_SPACING
        self._held: list[Samples] = []  # decoded by a feed that raised an error; the next call returns it
        self._damage: Damage | None = None  # open: nothing could be decoded since
        self._reports: list[Damage] = []  # not reported yet
        self._finished = 0  # samples of earlier recordings in the stream
        self._silent = True  # no recording has begun
        self._refused = False  # a recording as a whole: it is no stream, or what is selected is not there
        self._turns = Turns()
        self.position = 0

    @classmethod
    def resume(cls, point: ResumePoint, selection: Selection = MIXED) -> StreamDecoder:
        """Continue at a point: the next bytes fed must be those of the stream from `point.offset` on.

        The selection must be that of the decoder that made the point.
        """
        decoder = cls(point.kind, point.sample_rate, point.channels, selection)
        decoder._points = deque([point])
        decoder.position = decoder._finished = point.sample
        if point.track is None:
            decoder._demuxer.offset = point.offset
            decoder._silent = not point.sample
        else:
            decoder._demuxer.resume(point.track, point.offset, point.start, point.time)
            decoder._silent = False
            if point.others:
                decoder._look_on(point)
            else:
                decoder._recording = TrackDecoder(point.track, point.sample, point, selection)
        return decoder

    def _look_on(self, point: ResumePoint) -> None:
        """Continue where all tracks were silent: no decoder has anything to remember."""
        candidates = []
        for track in (point.track, *point.others):
            assert track is not None
            demuxer = self._demuxer if track is point.track else open_demuxer(point.kind)
            demuxer.tracks = 1 + len(point.others)
            if demuxer is not self._demuxer:
                demuxer.resume(track, point.offset, point.start, point.time)
            begun = replace(track, skip=0, delay=0.0)
            candidates.append(
                Candidate(demuxer, TrackDecoder(begun, point.sample, selection=self._selection, time=point.time))
            )
        self._recording = candidates[0].recording
        self._looking = LookAhead(candidates, late=True)

    @property
    def tracks(self) -> int:
        """The number of audio tracks of the open recording."""
        return self._demuxer.tracks

    def feed(self, data: bytes) -> Samples:
        """Return the samples that these bytes complete.

        Raises:
            AudioError: As of `pieces`. The samples are returned by the next call.
        """
        for samples in self.pieces(data):
            self._held.append(samples)
        held, self._held = self._held, []
        return joined(held)

    def pieces(self, data: bytes) -> Iterator[Samples]:
        """Return the samples that these bytes complete, in pieces of about PIECE_SECONDS at most.

        An empty piece means that others may have their turn: there was work, but no samples yet.

        Raises:
            AudioError: Bytes could not be decoded. Only they are lost: it is raised after the last piece. The code is
                undecodable_audio, whose message names from when to when; not_streamable (nothing of this recording can
                be decoded); or utterance_too_long.
        """
        self._demuxer.push(data)
        if self._looking is not None:
            self._looking.push(data)
        try:
            yield from self._drain()
        finally:
            self._forget_refused()
        if self._damage is not None and self._demuxer.offset - self._damage.offset > _MAX_LOST:
            self._report()
        if self._reports:
            reports, self._reports = self._reports, []
            raise AudioError("undecodable_audio", described(reports))

    def flush(self) -> Samples:
        """End the stream and return the rest, as a whole; see `ending`."""
        return joined(list(self.ending()))

    def ending(self) -> Iterator[Samples]:
        """End the stream and return the rest, in pieces as those of `pieces`. The decoder cannot be used after it.

        Raises:
            AudioError: There never was any audio in the stream, and no error has said so.
        """
        self._demuxer.end()
        if self._looking is not None:
            self._looking.end()
        held, self._held = self._held, []
        yield from held
        refused = self._refused or self._start.kind == sniff.NOT_AUDIO
        yield from self._rest()
        if self._silent and not refused:
            raise AudioError("undecodable_audio", f"the {self._start.kind} data ends before any audio")
        if self._damage is not None:
            self._report()
        yield from self._counted(self._close())
        if self._reports:
            self.tail = AudioError("undecodable_audio", described(self._reports))

    def _rest(self) -> Iterator[Samples]:
        """Decode what is buffered at the end."""
        with suppress(AudioError):  # a truncated end, as when a recorder is killed, is no error
            yield from self._drain()
        if self._looking is not None:  # what was looked at is kept, whatever is truncated
            with suppress(AudioError):
                yield from self._chosen(self._looking.best())
            with suppress(AudioError):
                yield from self._drain()

    def resume_point(self, sample: int) -> ResumePoint:
        """Return the last point from which all samples from `sample` on can be decoded. Earlier points are dropped."""
        while len(self._points) > 1 and self._points[1].sample <= sample:
            self._points.popleft()
        if len(self._points) < _MAX_POINTS // 4:
            self._spacing = _POINT_SPACING
        return self._points[0]

    def _forget_refused(self) -> None:
        """Keep nothing of the bytes that are skipped up to the next recording's header."""
        if self._demuxer.is_passing:
            last = self._points[-1]
            if last.track is None and last.sample == self.position and len(self._points) > 1:
                self._points.pop()
            self._add(ResumePoint(self._demuxer.offset, self.position, *self._identity))

    def _drain(self) -> Iterator[Samples]:
        """Decode what is buffered. Raises AudioError if nothing of the recording can be decoded."""
        first, refusal = self.position, None
        self._turns.begin()
        while True:
            if self._turns.step(1 + self._demuxer.steps // _DEMUXER_STEPS):
                yield _NOTHING
                self._turns.begin()
            try:
                if self._looking is not None and (yield from self._look(self._looking)):
                    break
                item, self._item = self._item or self._demuxer.pull(), None
            except AudioError as exc:
                if exc.code != "undecodable_audio" or self._recording is None:
                    refusal = refusal or exc
                    if exc.code == "not_streamable":
                        yield from self._counted(self._close())
                else:
                    self._note(exc.message)
                continue
            if item is None:
                if self._demuxer.has_more:
                    continue
                break
            if isinstance(item, Track):
                self._turns.step(STEPS)
                yield from self._counted(self._close())
                try:
                    self._open(item)
                except AudioError as exc:  # its packets are passed over
                    refusal = refusal or exc
            elif (recording := self._recording) is not None:
                if gap := recording.late(item):
                    yield from self._counted(recording.fill(gap))
                self._decode(recording, item)
                if gap or recording.produced - self.position > PIECE_SECONDS * SAMPLE_RATE:
                    yield from self._counted(recording.take())
                    if (self.position - first) * recording.channels > _MAX_FEED_SECONDS * SAMPLE_RATE:
                        self._discard()
        if self._recording is not None and self._looking is None:
            yield from self._counted(self._recording.take())
        if refusal is not None:
            self._refused |= refusal.code in ("not_streamable", *NOT_THERE)
            raise refusal

    def _look(self, looking: LookAhead) -> Generator[Samples, None, bool]:
        """Look for the track to decode, and return silence meanwhile; True if more bytes are needed."""
        begun = looking.seconds
        while (chosen := looking.choose()) is None:
            yield from self._counted(looking.quiet())
            self._reports += looking.take_damage()
            for offset, sample, time in looking.points:
                if sample - self._points[-1].sample >= self._spacing:
                    self._add(self._open_point(looking, offset, sample, time))
            looking.points.clear()
            if looking.starved:
                return True
            if self._turns.step(STEPS):
                yield _NOTHING
                self._turns.begin()
            if looking.seconds - begun > _MAX_FEED_SECONDS:
                looking.discard()
                self._discard()
        yield from self._chosen(chosen)
        return False

    def _open_point(self, looking: LookAhead, offset: int, sample: int, time: float) -> ResumePoint:
        """A point where the choice of the track is open."""
        track, *others = looking.tracks
        return ResumePoint(
            offset,
            sample,
            *self._identity,
            track,
            self._demuxer.start,
            # Releases without `others` continue with the default track, and need it.
            rate=looking.default.rate or 48000,
            time=time,
            others=tuple(others),
        )

    def _discard(self) -> None:
        """Drop what is buffered, because it is too long; raises AudioError."""
        self._demuxer.discard()
        raise AudioError("utterance_too_long", f"the chunk decodes to more than {_MAX_FEED_SECONDS} s of audio")

    def _chosen(self, chosen: Candidate) -> Iterator[Samples]:
        """Continue with a track; return its samples so far.

        Raises:
            AudioError: No more of it can be decoded.
        """
        looking, self._looking = self._looking, None
        self._demuxer, self._recording, self._item = chosen.demuxer, chosen.recording, chosen.item
        self._reports += chosen.damage
        if looking is not None:
            yield from self._counted(looking.rest(chosen))
        yield from self._counted(chosen.rest or ())
        if chosen.refusal is not None:
            raise chosen.refusal

    def _decode(self, recording: TrackDecoder, packet: Packet) -> None:
        """Decode a packet, and note what is damaged."""
        if self._damage is not None and not self._damage.spoiled:
            self._report(recording.seconds)  # what follows may be decoded: the damage ends here
        damage, before = self._damage, 0.0 if self._damage is None else recording.seconds
        if not recording.decode(packet):
            self._note(recording.reason or "a packet cannot be decoded", recording.seconds)
            recording.conceal(packet)
        elif damage is not None:
            self._report(before)
        if recording.ready is not None:
            self._take_point(recording, recording.ready)

    def _note(self, reason: str, since: float | None = None) -> None:
        """Note damage; `since` seconds if it is that of a packet."""
        if self._damage is None and self._recording is not None:
            begin = self._recording.seconds if since is None else since
            self._damage = Damage(begin, reason, self._demuxer.offset, since is not None)

    def _report(self, until: float | None = None) -> None:
        """Damage ends at `until` seconds; None: it may go on."""
        damage, self._damage = self._damage, None
        if damage is not None:
            damage.until = until
            self._reports.append(damage)

    def _counted(self, pieces: Iterable[Samples]) -> Iterator[Samples]:
        for samples in pieces:
            if len(samples):
                self.position += len(samples)
                yield samples

    def _open(self, track: Track) -> None:
        self._selection.check_track(self._demuxer.tracks)
        self._recording = TrackDecoder(track, self._finished, selection=self._selection)
        if self._selection.track is None and self._demuxer.tracks > 1:
            self._looking = LookAhead.at_begin(self._demuxer, self._recording, self._selection)
        if not self._silent:
            self._add(ResumePoint(self._demuxer.start, self._finished, *self._identity))
        self._silent = False

    def _close(self) -> list[Samples]:
        """End the open recording and return its rest."""
        if self._recording is None:
            return []
        self._report(self._recording.seconds)
        recording, self._recording = self._recording, None
        samples = recording.flush()
        self._finished = recording.produced
        return samples

    @property
    def _identity(self) -> tuple[str, int, int]:
        return self._start.kind, self._start.sample_rate, self._start.channels

    def _take_point(self, recording: TrackDecoder, pending: PendingPoint) -> None:
        """Add the recording's newest resume point, unless the last one is near."""
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
                    pending.time,
                )
            )

    def _add(self, point: ResumePoint) -> None:
        self._points.append(point)
        if len(self._points) > _MAX_POINTS:  # none was asked for in a long time
            self._points = deque(list(self._points)[::2])
            self._spacing *= 2


def is_beginning(kind: str, data: bytes, selection: Selection = MIXED) -> bool:
    """Whether bytes may be the beginning of a recorder's container of a kind, even if they hold no audio yet."""
    if kind == "mp4" and b"mdat" in data and b"moov" not in data:
        return False  # recorders write the index first: this is a truncated file, and its sender must know
    try:
        StreamDecoder(kind, selection=selection).feed(data)
    except AudioError:
        return False
    return True
