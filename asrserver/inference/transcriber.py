"""One session as its owner sees it: audio entries in, durable events out, in order.

A chunk is an utterance of its own, or a piece of a recording that goes on; which, says the session's mode. Utterances
are decoded and recognised whole (recognise.py). A recording's pieces go through one decoder, one endpointer and one set
of features, and its segments are recognised as they end, and guessed at while they grow (ongoing.py).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from dataclasses import dataclass

import numpy as np

from asrserver.audio import SAMPLE_RATE, sniff
from asrserver.audio.chunking import COMPRESSED_BYTES_PER_SECOND, Chunking, Role
from asrserver.audio.decoders import open_decoder
from asrserver.audio.pcm import PcmDecoder
from asrserver.audio.stream import begins
from asrserver.broker.replies import Claim, Entry
from asrserver.broker.worker_side import MAX_STRIKES
from asrserver.errors import AsrError, AudioError, Unavailable
from asrserver.inference.audio_thread import AudioWork
from asrserver.inference.event_log import Coverage, EventLog, EventSink, Fenced, Place
from asrserver.inference.ongoing import Ongoing
from asrserver.inference.poison import Suspicion
from asrserver.inference.recognise import RecognisedSegment, Recogniser
from asrserver.inference.segments import Captions, Guess, Told
from asrserver.inference.stream import Outcome, Recording
from asrserver.inference.whisper import Request
from asrserver.protocol import codec

__all__ = ["Fenced", "Transcriber"]

log = logging.getLogger("asrserver.transcriber")

#: Seconds of audio without an event after which a recording's place is noted, so that its audio can be let go of.
COVER = 10.0

#: Longest gap in seconds over which the text before is context for the text after.
CONTEXT_GAP = 3.0

#: Pieces of a recording, and bytes of them, that are taken in one go.
MOST_PIECES = 64
MOST_BYTES = 1 << 20

#: Bytes of unread chunks at which a session's stream is read no further until some are done.
MAX_UNREAD = 8 * 2**20


@dataclass(slots=True)
class _File:
    """A file that is answered, and goes on if the next chunk does: a recorder's first slice is a file too."""

    before: str  # the entry before it
    index: int
    kind: str
    data: bytes
    seconds: float
    segments: list[RecognisedSegment] | None  # None: answered by an earlier owner


class Transcriber:
    """Turns the entries of one session into events. Made by the feed, which also hands it its entries."""

    def __init__(self, claim: Claim, recogniser: Recogniser, broker: EventSink) -> None:
        self.claim = claim
        self.over = False
        self.number = 0  # of the worker's sessions
        self.unread = 0  # bytes of the entries that wait
        self.largest = MAX_UNREAD  # of its chunks so far, in bytes; unknown is as large as may be
        self._recogniser = recogniser
        self._broker = broker
        self._options = codec.decode_options(claim.fields["options"])
        self._suspicion = Suspicion(claim.fields)
        self._event_log = EventLog(claim, broker, recogniser.model_name, self._options)
        options = self._options
        self._chunking = Chunking(options.mode, options.format, options.sample_rate, options.channels)
        self._pcm = PcmDecoder(self._chunking.codec, options.sample_rate, options.channels)
        self._entries: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self._before, self._resumed = self._event_log.place
        self._file: _File | None = None
        self._ongoing: Ongoing | None = None
        self._final: list[RecognisedSegment] = []  # that the next event tells
        self.cursor = self._before  # the last entry that the feed has read

    # -- for the feed --------------------------------------------------------------------------------------------

    @property
    def sid(self) -> str:
        return self.claim.sid

    @property
    def live(self) -> bool:
        """Whether a recording is going on."""
        return self._ongoing is not None

    @property
    def hungry(self) -> bool:
        """Whether more entries may be read for it."""
        return not self.over and self.unread < MAX_UNREAD

    @property
    def busy(self) -> bool:
        return bool(self._entries) or (self._ongoing is not None and self._ongoing.captions.waiting is not None)

    @property
    def backlog(self) -> float:
        """Seconds of audio that wait, guessed from their bytes."""
        waiting = self.unread / (COMPRESSED_BYTES_PER_SECOND if self._in_container else self._pcm.bytes_per_second)
        return waiting + (self._ongoing.captions.backlog if self._ongoing is not None else 0.0)

    def feed(self, entries: list[Entry]) -> None:
        """Entries that follow those fed before."""
        self.cursor = entries[-1].id
        self._entries.extend(entries)
        self.unread += sum(len(entry.data or b"") for entry in entries)
        sizes = [len(entry.data or b"") // max(1, entry.chunks) for entry in entries]
        self.largest = max(sizes) if self.largest == MAX_UNREAD else max(self.largest, *sizes)
        self._wake.set()

    def hurry(self) -> None:
        """No more audio comes, and the client waits for the last word."""
        if self._ongoing is not None:
            self._ongoing.captions.hurry()

    async def run(self) -> None:
        """Work until the session is over; raises Fenced when it is another's."""
        try:
            while not self.over:
                self._wake.clear()
                if not await self._step():
                    await self._wake.wait()
        finally:
            if self._ongoing is not None:
                self._ongoing.captions.close()

    async def _step(self) -> bool:
        """Do what can be done now; whether there was anything."""
        captions = self._ongoing.captions if self._ongoing is not None else None
        if captions is not None and (told := captions.tell()):
            await self._tell(told)
            return True
        if not self._entries or (captions is not None and captions.full):
            return False
        entry = self._entries[0]
        if entry.data is not None:
            await self._chunk(entry, entry.data)
        elif entry.status is not None:
            await self._end(entry, entry.status)
            self._done([entry])
        else:
            self._done([entry])
        return True

    def _done(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._before = entry.id
            self.unread -= len(entry.data or b"")
            self._entries.popleft()

    # -- chunks --------------------------------------------------------------------------------------------------

    async def _chunk(self, entry: Entry, data: bytes) -> None:
        index = entry.index
        self._event_log.count(index, entry.chunks)
        try:
            await self._check_strikes(entry)
            kind = None if self._resumed else self._chunking.container(data, first=self._before == "0-1")
            if kind is None and self._options.format == "auto":
                sniff.reject_non_audio(data, first=not (self._ongoing or self._file or self._resumed))
            if self._is_piece(kind, data):
                await self._pieces(kind)
                return
            await self._close(entry)
            await self._utterance(entry, index, data, kind)
        except (Fenced, Unavailable):
            raise
        except AsrError as exc:
            await self._refuse(entry, exc)
        except Exception as exc:
            log.exception("session=%s chunk=%d failed", self.sid, index)
            error = AsrError("recognition_failed", f"the chunk could not be recognised: {type(exc).__name__}")
            await self._refuse(entry, error)
        if self._entries and self._entries[0] is entry:
            self._done([entry])

    def _is_piece(self, kind: str | None, data: bytes) -> bool:
        """Whether a chunk begins or goes on with a recording; else it is an utterance."""
        return bool(self._resumed) or self._chunking.role(kind, len(data), self._in_container) is Role.PIECE

    async def _utterance(self, entry: Entry, index: int, data: bytes, kind: str | None) -> None:
        """A chunk that is recognised as it is. In auto mode a file may go on with the next chunk."""
        goes_on = kind is not None and self._options.mode == "auto"
        label, silence = self._label(entry), self._silence
        if goes_on and kind is not None and index <= self._event_log.answered:  # only what follows is missing
            self._file = _File(self._before, index, kind, data, 0.0, None)
            return
        if kind is not None:
            try:
                seconds, segments = await self._recogniser.file(
                    data, kind, self._request(), label, self._alone, silence
                )
            except AudioError:
                if not goes_on or not await self._opens(kind, data, label):
                    raise
                seconds, segments = 0.0, []  # a recorder's first slice is often nothing but a head
        else:
            samples = np.concatenate([self._pcm.feed(data), self._pcm.flush()])
            seconds = len(samples) / SAMPLE_RATE
            segments = await self._recogniser.samples(samples, self._request(), label, self._alone, silence)
        text = self._event_log.join(segments)
        for segment in segments:
            segment.chunk_index = index
        if goes_on and kind is not None:
            self._file = _File(self._before, index, kind, data, seconds, segments)
        else:
            self._final += [segment.moved(self._event_log.total) for segment in segments]
            self._event_log.total += seconds
        await self._answer(entry, text, seconds)

    async def _opens(self, kind: str, data: bytes, label: str) -> bool:
        """Whether the bytes, no file by themselves, may be the beginning of one."""

        def work() -> AudioWork[bool]:
            yield []
            return begins(kind, data)

        async with self._recogniser.turn(self._alone):
            return await self._recogniser.audio_thread.run([label], work())

    # -- a recording ---------------------------------------------------------------------------------------------

    async def _pieces(self, kind: str | None) -> None:
        """The next entries are pieces of one recording: as many as have come, in one go."""
        entries = self._run_of_pieces()
        if kind is not None:
            await self._close(entries[0])
        file = self._file
        ongoing = self._ongoing or self._open_recording(kind)
        befores = [self._before, *(entry.id for entry in entries)]
        pieces = [(before, entry.data or b"") for before, entry in zip(befores, entries, strict=False)]
        labels = [self._label(entry) for entry in entries]
        heard = ongoing.recording.heard
        opening = (file.before, file.data) if file is not None else None
        # Whoever has finished waits for the last word; hundreds of others were read with it, and go on talking.
        ends = self._entries[-1].status is not None
        last = ends and len(entries) == len(self._entries) - 1
        try:
            outcomes = await ongoing.take(pieces, labels, opening, ends, last)
        except AudioError:  # the file is none that can go on: it stays as it is
            self._file, self._ongoing = file, None
            raise
        self._resumed = None
        for entry in entries:
            self._event_log.count(entry.index, entry.chunks)
            if entry.id in self._suspicion:
                self._suspicion.heard = ongoing.recording.heard
        self._done(entries)
        await self._answer_pieces(ongoing, entries, outcomes, heard)

    def _run_of_pieces(self) -> list[Entry]:
        """The first entry, and those after it that go on with the same recording; one alone under suspicion."""
        entries, size = [self._entries[0]], len(self._entries[0].data or b"")
        auto = self._options.format == "auto"
        for entry in itertools.islice(self._entries, 1, MOST_PIECES):
            if entry.data is None or size + len(entry.data) > MOST_BYTES or not self._is_piece(None, entry.data):
                break
            if entry.id in self._suspicion or entries[0].id in self._suspicion:
                break
            if auto and (sniff.container(entry.data, first=False) or sniff.is_text(entry.data)):
                break
            entries.append(entry)
            size += len(entry.data)
        return entries

    def _open_recording(self, kind: str | None) -> Ongoing:
        """A new recording, or the one that an earlier owner had, or a file that goes on."""
        options, file = self._options, self._file
        self._file = None
        n_mels = self._recogniser.engine.model.n_mels
        if self._resumed is not None:
            recording = Recording.resume(self._resumed, self._silence, n_mels)
        else:
            if file is not None:
                kind = file.kind
            chunking = self._chunking
            decoder = open_decoder(kind or chunking.codec, chunking.sample_rate, chunking.channels)
            recording = Recording(kind, decoder, self._silence, n_mels)
        captions = Captions(
            self._recogniser,
            self.sid,
            self._request,
            self._wake.set,
            self._guess if options.partials else None,
            options.partial_interval,
        )
        self._ongoing = Ongoing(recording, captions, self._recogniser, lambda: self._alone)
        return self._ongoing

    async def _answer_pieces(self, ongoing: Ongoing, entries: list[Entry], outcomes: list[Outcome], heard: int) -> None:
        """In auto mode each piece has its result, with the words that are final by now; in stream mode only errors."""
        for entry, (position, error) in zip(entries, outcomes, strict=True):
            if error is not None:
                await self._refuse(entry, error)
            elif self._options.mode == "auto":
                await self._answer(entry, self._event_log.join(self._final), (position - heard) / SAMPLE_RATE)
            heard = position
        if self._options.mode == "stream":
            self._event_log.progress(ongoing.seconds)
        if ongoing.needed - ongoing.covered >= COVER and ongoing.captions.waiting is None and not self._final:
            await self._event_log.checkpoint(self._place(), ongoing.seconds)
            ongoing.covered = ongoing.needed

    async def _tell(self, told: Told) -> None:
        """A segment has its text: in stream mode that is an event, in auto mode it goes with the next result."""
        if told.error is not None:
            log.error("session=%s a segment failed: %s", self.sid, type(told.error).__name__)
            error = AsrError("recognition_failed", f"a segment was lost: {type(told.error).__name__}")
            await self._event_log.append_error(error, self._coverage())
        elif told.segment is not None:
            segment = told.segment.moved(self._event_log.total)
            self._final.append(segment)
            text = self._event_log.join([segment])
            if self._options.mode == "stream":
                await self._event_log.append_segment(text, segment.language, self._coverage())
        elif told.guessed:  # take it back
            self._guess(Guess(told.speech.start, told.speech.end, "", "", self._event_log.language or ""))

    def _guess(self, guess: Guess) -> None:
        begin = self._event_log.total
        start, end = begin + guess.start / SAMPLE_RATE, begin + guess.end / SAMPLE_RATE
        self._event_log.publish_partial(start, end, guess.text, guess.stable, guess.language)

    async def _close(self, entry: Entry) -> None:
        """End the file or the recording that is open. What cannot be recognised is reported and let go."""
        try:
            if self._file is not None:
                await self._close_file(self._file, entry)
            elif self._ongoing is not None or self._resumed is not None:
                await self._close_recording(entry)
        except (Fenced, Unavailable):
            raise
        except Exception as exc:
            if not isinstance(exc, AudioError):
                log.exception("session=%s recording up to entry %s failed", self.sid, self._before)
                exc = AudioError("recognition_failed", f"a recording could not be recognised: {type(exc).__name__}")
            self._forget()
            # With what was final before, and done with: a next owner must not come upon the same failure.
            await self._event_log.append_error(exc, self._coverage())

    async def _close_file(self, file: _File, entry: Entry) -> None:
        if file.segments is None:
            file.seconds, file.segments = await self._recogniser.file(
                file.data, file.kind, self._request(), self._label(entry), self._alone, self._silence
            )
            self._event_log.join(file.segments)
            for segment in file.segments:
                segment.chunk_index = file.index
        self._final += [segment.moved(self._event_log.total) for segment in file.segments]
        self._event_log.total += file.seconds
        self._file = None

    async def _close_recording(self, entry: Entry) -> None:
        ongoing = self._ongoing or self._open_recording(None)
        captions = ongoing.captions
        await ongoing.finish(self._label(entry))
        while captions.waiting is not None:
            await captions.settle()
            while (told := captions.tell()) is not None:
                await self._tell(told)
        self._forget()

    def _forget(self) -> None:
        """The file or the recording is over."""
        if self._ongoing is not None:
            self._event_log.total += self._ongoing.seconds
            self._ongoing.captions.close()
        if self._file is not None:
            self._event_log.total += self._file.seconds
        self._file, self._ongoing, self._resumed = None, None, None

    async def _end(self, entry: Entry, status: str) -> None:
        """The session's last word."""
        try:
            await self._check_strikes(entry)
            await self._close(entry)
        except AudioError as exc:
            self._forget()
            await self._event_log.append_error(exc, self._coverage())
        final, self._final = self._final, []
        self.over = True
        self._event_log.join(final)
        await self._event_log.append_final(status, Coverage(final, 0.0, (entry.id, None)))

    # -- events --------------------------------------------------------------------------------------------------

    async def _answer(self, entry: Entry, text: str, seconds: float) -> None:
        """The result of a chunk, unless an earlier owner gave it."""
        index = entry.index
        if index > self._event_log.answered:
            self._event_log.answered = index
            await self._event_log.append_chunk(index, text, seconds, entry.received, self._coverage(entry.id))

    async def _refuse(self, entry: Entry, error: AsrError) -> None:
        """The error that a chunk met, unless an earlier owner told it."""
        index = entry.index
        if index > self._event_log.answered:
            self._event_log.answered = index
            log.info("session=%s chunk=%d error=%s", self.sid, index, error.code)
            await self._event_log.append_error(error, self._coverage(entry.id), index, entry.received)

    def _coverage(self, done: str | None = None) -> Coverage:
        """What the event that is appended now covers: all segments that are final; `done` is the entry it answers."""
        final, self._final = self._final, []
        ongoing, file = self._ongoing, self._file
        seconds = file.seconds if file is not None else ongoing.seconds if ongoing is not None else 0.0
        if ongoing is not None:
            ongoing.covered = ongoing.needed
        return Coverage(final, seconds, self._place(done))

    def _place(self, done: str | None = None) -> Place:
        """From where a next owner goes on, once everything final is told."""
        if self._ongoing is not None:
            return self._ongoing.place
        if self._resumed is not None:
            return self._event_log.place
        if self._file is not None:
            return self._file.before, None
        return done or self._before, None

    # -- small things --------------------------------------------------------------------------------------------

    @property
    def _silence(self) -> float:
        return float(self._options.silence or self._recogniser.silence)

    @property
    def _in_container(self) -> bool:
        """Whether what is open is a file, or a recording in a container."""
        return self._file is not None or (self._ongoing is not None and self._ongoing.recording.kind is not None)

    @property
    def _alone(self) -> bool:
        """Whether what is in hand, or comes before it, is under suspicion of having killed a worker."""
        if self._suspicion.ahead(self._before):
            return True
        return self._ongoing is not None and self._ongoing.recording.needed < self._suspicion.heard

    def _request(self, start: int | None = None) -> Request:
        """How a segment is recognised; `start`, its first sample, says whether what was said before is context."""
        options, event_log = self._options, self._event_log
        near = start is not None and event_log.total + start / SAMPLE_RATE - event_log.spoken_until <= CONTEXT_GAP
        return Request(
            event_log.language,
            options.task,
            options.prompt,
            options.hotwords,
            previous=event_log.last if near and self._recogniser.context else "",
            words=options.word_timestamps,
        )

    def _label(self, entry: Entry) -> str:
        return f"{self.sid} {entry.id}"

    async def _check_strikes(self, entry: Entry) -> None:
        if self._suspicion.convicts(entry.id):
            await self._broker.dead_letter(self.sid, entry.id, f"a worker died {MAX_STRIKES} times with it in hand")
            ongoing = self._ongoing or (self._open_recording(None) if self._resumed is not None else None)
            if ongoing is not None:
                # Perhaps it is the speech so far that kills: with it, every further piece would take three workers.
                ongoing.recording.let_go(self._before, len(entry.data or b""))
                self._resumed = None
            raise AudioError("audio_rejected", f"this audio stopped {MAX_STRIKES} workers and is not tried again")
