"""The transcriber of one session: audio entries in, durable events out, in order.

A chunk is an utterance of its own, a file, or a piece of a live stream (audio/chunking.py). Utterances and files are
decoded and recognised whole (utterances.py). The pieces of a live stream go through one decoder and one endpointer, and
its segments are recognised as they end, with partial results while they grow (stream.py, segment_recogniser.py). A file
may turn out to be the beginning of a live stream, and a live stream may be an earlier owner's (open_audio.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any

from asrserver.audio import SAMPLE_RATE, sniff
from asrserver.audio.chunking import COMPRESSED_BYTES_PER_SECOND, Chunking, Role
from asrserver.audio.decoders import open_decoder
from asrserver.audio.selection import Selection
from asrserver.broker.replies import Claim, Entry
from asrserver.broker.worker_side import MAX_STRIKES
from asrserver.errors import AsrError, AudioError, Unavailable
from asrserver.inference.checkpoint import BEGINNING, Checkpoint, StreamState
from asrserver.inference.decoding import Request
from asrserver.inference.event_log import Coverage, EventLog, EventSink, Fenced
from asrserver.inference.inbox import Inbox
from asrserver.inference.open_audio import OpenAudio, OpenFile
from asrserver.inference.poison import PoisonTracker
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.segment_recogniser import SegmentRecogniser
from asrserver.inference.segments import PartialHypothesis, SegmentOutcome
from asrserver.inference.stream import LiveStream, Piece, PieceOutcome
from asrserver.inference.utterances import RecognisedFile, UtteranceRecogniser
from asrserver.protocol import codec
from asrserver.shares import Share

log = logging.getLogger("asrserver.transcriber")

#: Seconds of a live stream, or bytes, without an event, after which a checkpoint is written so that audio is released.
CHECKPOINT_SECONDS = 10.0
CHECKPOINT_BYTES = 4 << 20

#: Longest gap in seconds across which the text of a segment is context for the next one.
MAX_CONTEXT_GAP = 3.0

#: Most pieces of a live stream, and bytes of them, that are processed in one go.
MAX_PIECES = 64
MAX_PIECES_BYTES = 1 << 20


class Transcriber:
    """Turns the entries of one session into events.

    Attributes:
        claim: The session, as it was claimed.
        sid: Its id.
        model: The model that it names, if any.
        share: Its API key, and the weight of the key.
        number: Its number among the worker's sessions; set by the consumer.
        inbox: Its entries; filled by the consumer.
        over: Whether the session is finished.
        trace: Takes notes for the spans of its events; None: it is not traced.
    """

    def __init__(self, claim: Claim, recogniser: Recogniser, broker: EventSink) -> None:
        """Continue a session where its earlier owners stopped.

        Args:
            claim: The session.
            recogniser: What all sessions of the worker share.
            broker: Takes the events.
        """
        self.claim = claim
        self.sid = claim.sid
        self.number = 0
        self.over = False
        self._broker = broker
        self._options = options = codec.decode_options(claim.fields["options"])
        self.model = options.model
        self.share = Share(claim.fields.get("owner", ""), float(claim.fields.get("weight", 1.0)))
        self._poison = PoisonTracker(claim.fields)
        self._event_log = EventLog(claim, broker, recogniser.model_name, options)
        self.trace = self._event_log.trace
        self._selection = Selection(options.track, options.separate)
        self.recognise_with(recogniser)
        self._chunking = Chunking(options.mode, options.format, options.sample_rate, options.channels)
        self._wake = asyncio.Event()
        checkpoint = self._event_log.checkpoint
        self.inbox = Inbox(checkpoint.after, self._wake.set)
        self._open = OpenAudio(checkpoint, self._make_stream)

    # -- for the consumer ----------------------------------------------------------------------------------------

    def recognise_with(self, recogniser: Recogniser) -> None:
        """Use another recogniser: that of the model that the session names. Only before `run`."""
        self._recogniser = recogniser
        self._silence = float(self._options.silence or recogniser.silence)
        self._utterances = UtteranceRecogniser(recogniser, self._silence, self._selection)
        self._event_log.model = recogniser.model_name

    @property
    def is_streaming(self) -> bool:
        """Whether a live stream is open."""
        return self._open.stream is not None

    @property
    def wants_audio(self) -> bool:
        """Whether more entries may be put into the inbox."""
        return not self.over and not self.inbox.is_full

    @property
    def is_busy(self) -> bool:
        """Whether audio that was read is still to be recognised."""
        return bool(self.inbox) or self._open.is_waiting

    @property
    def backlog(self) -> float:
        """Seconds of audio that wait, of all channels, estimated from their bytes."""
        rate = COMPRESSED_BYTES_PER_SECOND if self._open.in_container else self._options.cost_rate
        return self.inbox.unread / rate + self._open.backlog

    def expedite(self) -> None:
        """Move the session forward: it is finished, and its client waits for the final result."""
        if self._open.stream is not None:
            self._open.stream.expedite()

    async def run(self) -> None:
        """Work until the session is over.

        Raises:
            Fenced: Another worker owns the session now.
            Unavailable: Redis cannot be reached.
        """
        await self._event_log.prepare()
        try:
            while not self.over:
                self._wake.clear()
                if not await self._advance():
                    await self._wake.wait()
        finally:
            if self._open.stream is not None:
                self._open.stream.close()

    async def fail(self, error: AsrError) -> None:
        """End the session with an error, in place of `run`: it cannot be recognised. Raises what `run` raises."""
        self.over = True
        await self._event_log.append_error(error, self._coverage())
        await self._event_log.append_final("error", self._coverage())

    async def _advance(self) -> bool:
        """Do the next thing that can be done now; False if there is nothing."""
        stream = self._open.stream
        if stream is not None and (outcome := stream.take_outcome()):
            await self._deliver(outcome)
            return True
        if not self.inbox or (stream is not None and stream.is_full):
            return False
        entry = self.inbox.first
        if self.trace is not None:
            self.trace.take(entry)
        if entry.data is not None:
            await self._process_chunk(entry, entry.data)
            return True
        if entry.status is not None:
            await self._finish(entry, entry.status)
        elif entry.flush > self._event_log.flushed:
            await self._flush(entry)
        elif entry.options is not None:
            self._options = codec.decode_options(entry.options)
        self.inbox.pop()
        return True

    # -- chunks --------------------------------------------------------------------------------------------------

    async def _process_chunk(self, entry: Entry, data: bytes) -> None:
        """Process the first entry; of a live stream, also those after it that continue it."""
        index = entry.index
        self._event_log.count(index, entry.chunks)
        try:
            await self._reject_poison(entry)
            first = self.inbox.processed == BEGINNING
            kind = None if self._open.is_left else self._chunking.container(data, first=first)
            if kind is None and self._options.format == "file" and not self._open.is_stream:
                raise AudioError("not_audio", "the file is in no audio format that is known")
            if kind is None and self._options.format == "auto":
                sniff.reject_non_audio(data, first=not self._open)
            if self._is_piece(kind, data):
                await self._process_pieces(kind)
                return
            await self._close_open(entry)
            await self._process_utterance(entry, index, data, kind)
        except (Fenced, Unavailable):
            raise
        except AsrError as exc:
            await self._answer_error(entry, exc)
        except Exception as exc:
            log.exception("session=%s chunk=%d failed", self.sid, index)
            error = AsrError("recognition_failed", f"the chunk could not be recognised: {type(exc).__name__}")
            await self._answer_error(entry, error)
        if self.inbox and self.inbox.first is entry:
            self.inbox.pop()

    def _is_piece(self, kind: str | None, data: bytes) -> bool:
        """Whether a chunk begins or continues a live stream."""
        return self._open.is_left or self._chunking.role(kind, len(data), self._open.in_container) is Role.PIECE

    async def _process_utterance(self, entry: Entry, index: int, data: bytes, kind: str | None) -> None:
        """Recognise a chunk by itself. In auto mode a file stays open: the next chunk may continue it."""
        stays_open = kind is not None and self._options.mode == "auto"
        label = entry.label(self.sid)
        if stays_open and kind is not None and index <= self._event_log.answered:  # needed only if it is continued
            self._open.file = OpenFile(self.inbox.processed, index, kind, data, None)
            return
        if kind is not None:
            try:
                found = await self._utterances.recognise_file(data, kind, self._request, label, self._is_suspect)
            except AudioError as exc:
                may_begin = stays_open and exc.code != "utterance_too_long"
                if not may_begin or not await self._utterances.begins_stream(data, kind, label, self._is_suspect):
                    raise
                found = RecognisedFile()  # a recorder's first slice is often only a header
        else:
            found = await self._utterances.recognise_pcm(data, self._chunking, self._request, label, self._is_suspect)
        if found.damage is not None:
            log.info("session=%s chunk=%d error=%s", self.sid, index, found.damage.code)
            await self._event_log.append_damage(found.damage, self._coverage(), index)
        found.lies_in(index)
        if self.trace is not None:
            self.trace.utterance(self._utterances.call)
        self._event_log.heard(found.channels)
        if stays_open and kind is not None:
            self._open.file = OpenFile(self.inbox.processed, index, kind, data, found)
            text = self._event_log.join(found.segments)
        else:
            text = self._event_log.add(found.segments)
            self._event_log.close(found.seconds, found.further)
        await self._answer(entry, text, found.seconds)

    # -- live streams --------------------------------------------------------------------------------------------

    async def _process_pieces(self, kind: str | None) -> None:
        """Process the next entries as pieces of one live stream: as many as have come."""
        entries = self._next_pieces()
        if kind is not None:
            await self._close_open(entries[0])
        file = self._open.file
        stream = self._open.begin_stream(kind)
        befores = [self.inbox.processed, *(entry.id for entry in entries)]
        pieces = [Piece(before, entry.data or b"") for before, entry in zip(befores, entries, strict=False)]
        position, began = stream.position, time.time()
        opening = Piece(file.before, file.data) if file is not None else None
        # The client of a finished session waits for it; those of the sessions that are read with it go on talking.
        closing = self.inbox.has_end
        last = closing and len(entries) == len(self.inbox) - 1
        try:
            outcomes = await stream.feed(pieces, [e.label(self.sid) for e in entries], opening, closing, last)
        except AudioError:  # the open file is no beginning of a stream: it stays as it is
            self._open.reopen(file)
            raise
        if self.trace is not None:
            self.trace.fed(entries, [outcome.position for outcome in outcomes], began, stream.ended_by)
        self._event_log.heard(len(stream.channels) if self._selection.separate else 0)
        for entry in entries:
            self._event_log.count(entry.index, entry.chunks)
            if self._poison.is_suspect(entry.id):
                self._poison.suspect_until = stream.position
        self.inbox.pop(len(entries))
        await self._answer_pieces(stream, entries, outcomes, position)

    def _next_pieces(self) -> list[Entry]:
        """The first entry, and those after it that continue the same live stream. A suspected entry comes alone."""
        first = self.inbox.first
        entries, size = [first], len(first.data or b"")
        if self._poison.is_suspect(first.id):
            return entries
        auto = self._options.format == "auto"
        for entry in self.inbox.following(MAX_PIECES - 1):
            data = entry.data
            if data is None or size + len(data) > MAX_PIECES_BYTES or not self._is_piece(None, data):
                break
            other = auto and (sniff.container(data, first=False) or sniff.is_text(data))
            if other or self._poison.is_suspect(entry.id):
                break
            entries.append(entry)
            size += len(data)
        return entries

    def _make_stream(self, state: StreamState | None, kind: str | None) -> LiveStream:
        """Continue an earlier owner's live stream; or begin one in a container (None: headerless PCM)."""
        options, event_log = self._options, self._event_log

        def segments_of(channel: int | None) -> SegmentRecogniser:
            return SegmentRecogniser(
                self._recogniser,
                self._recogniser.partials,
                self.sid,
                request=partial(self._request, channel),
                changed=self._wake.set,
                publish=event_log.publish_partial if options.partials else None,
                started=partial(event_log.publish_speech, channel) if options.speech_events else None,
                interval=options.partial_interval,
                channel=channel,
            )

        how: dict[str, Any] = {"silence": self._silence, "is_suspect": lambda: self._is_suspect}
        if state is not None:
            return LiveStream.resume(self._recogniser, segments_of, state, self._selection, **how)
        chunking = self._chunking
        decoder = open_decoder(kind or chunking.codec, chunking.sample_rate, chunking.channels, self._selection)
        return LiveStream(self._recogniser, segments_of, kind, decoder, self._selection, **how)

    async def _answer_pieces(
        self, stream: LiveStream, entries: list[Entry], outcomes: list[PieceOutcome], position: int
    ) -> None:
        """Answer each piece: in auto mode with the words that are final by now; in stream mode only with errors."""
        for entry, outcome in zip(entries, outcomes, strict=True):
            if outcome.error is not None:
                await self._answer_error(entry, outcome.error)
            elif self._options.mode == "auto":
                seconds = (outcome.position - position) / SAMPLE_RATE
                await self._answer(entry, self._event_log.pending_text, seconds)
            position = outcome.position
        if self._options.mode == "stream":
            self._event_log.report_progress(stream.seconds, stream.further, stream.received)
        uncovered = (stream.needed - stream.checkpointed) / SAMPLE_RATE
        waits = stream.is_waiting or self._event_log.has_pending
        if (uncovered >= CHECKPOINT_SECONDS or stream.bytes_since_checkpoint >= CHECKPOINT_BYTES) and not waits:
            await self._event_log.append_checkpoint(self._coverage())

    async def _deliver(self, outcome: SegmentOutcome) -> None:
        """Report an ended segment: in stream mode by an event, in auto mode in the result of the next chunk."""
        if self.trace is not None:
            known_at = outcome.speech.end + int(self._silence * SAMPLE_RATE)
            self.trace.segment(outcome.speech.ended_by, known_at, outcome.call)
        if outcome.error is not None:
            name = type(outcome.error).__name__
            log.error("session=%s segment failed: %s", self.sid, name)
            error = AsrError("recognition_failed", f"a segment could not be recognised: {name}")
            await self._event_log.append_error(error, self._coverage())
        elif outcome.recognised is not None:
            text = self._event_log.add([outcome.recognised])
            if self._options.mode == "stream":
                language = outcome.recognised.language
                await self._event_log.append_segment(text, language, self._coverage(), outcome.speech.cut)
        elif self._options.partials and (outcome.had_partials or self._options.speech_events):  # take them back
            speech, channel = outcome.speech, outcome.channel
            language = self._event_log.transcript.language_of(channel) or ""
            self._event_log.publish_partial(PartialHypothesis(speech.start, speech.end, "", "", language, channel))

    # -- ends ----------------------------------------------------------------------------------------------------

    async def _close_open(self, entry: Entry) -> None:
        """End the open file or live stream. One that cannot be recognised is reported and dropped."""
        try:
            file = self._open.file
            if file is not None:
                if file.found is None:
                    file.found = await self._utterances.recognise_file(
                        file.data, file.kind, self._request, entry.label(self.sid), self._is_suspect
                    )
                    file.found.lies_in(file.index)
                self._event_log.add(file.found.segments)
                self._forget_open()
            elif self._open.is_stream:
                await self._close_stream(entry)
        except (Fenced, Unavailable):
            raise
        except Exception as exc:
            if not isinstance(exc, AudioError):
                log.exception("session=%s recording up to entry %s failed", self.sid, self.inbox.processed)
                exc = AudioError("recognition_failed", f"a recording could not be recognised: {type(exc).__name__}")
            self._forget_open()
            # The event covers the dropped audio, so that a next owner does not fail in the same way.
            await self._event_log.append_error(exc, self._coverage())

    async def _close_stream(self, entry: Entry) -> None:
        stream = self._open.begin_stream(None)
        await stream.finish(entry.label(self.sid))
        async for outcome in stream.outcomes():
            await self._deliver(outcome)
        self._forget_open()
        if stream.tail is not None:
            await self._event_log.append_error(stream.tail, self._coverage())

    def _forget_open(self) -> None:
        """Count the open file or live stream, and forget it: it is over."""
        self._event_log.close(*self._open.close())

    async def _flush(self, entry: Entry) -> None:
        """End the growing segment of the live stream, and answer when all before it is recognised."""
        try:
            await self._reject_poison(entry)
            stream = self._open.continue_stream()
            if stream is not None:
                await stream.flush(entry.label(self.sid))
                async for outcome in stream.outcomes():
                    await self._deliver(outcome)
        except AudioError as exc:
            await self._event_log.append_error(exc, self._coverage())
        await self._event_log.append_flushed(entry.flush, self._coverage(entry.id))

    async def _finish(self, entry: Entry, status: str) -> None:
        """End the session."""
        try:
            await self._reject_poison(entry)
            await self._close_open(entry)
        except AudioError as exc:
            self._forget_open()
            await self._event_log.append_error(exc, self._coverage())
        self.over = True
        await self._event_log.append_final(status, Coverage(0.0, Checkpoint(entry.id, None)))

    # -- events --------------------------------------------------------------------------------------------------

    async def _answer(self, entry: Entry, text: str, seconds: float) -> None:
        """Append a chunk's result, unless an earlier owner did."""
        if self._event_log.may_answer(entry.index):
            coverage = self._coverage(entry.id)
            await self._event_log.append_chunk(entry.index, text, seconds, entry.received, coverage)

    async def _answer_error(self, entry: Entry, error: AsrError) -> None:
        """Append a chunk's error, unless an earlier owner did."""
        if self._event_log.may_answer(entry.index):
            log.info("session=%s chunk=%d error=%s", self.sid, entry.index, error.code)
            await self._event_log.append_error(error, self._coverage(entry.id), entry.index, entry.received)

    def _coverage(self, answered: str | None = None) -> Coverage:
        """What audio an event covers that is appended now.

        Args:
            answered: The entry that the event answers; None: those taken out of the inbox.
        """
        return self._open.coverage(Checkpoint(answered or self.inbox.processed, None))

    # -- small things --------------------------------------------------------------------------------------------

    @property
    def _is_suspect(self) -> bool:
        """Whether the audio in hand, or audio before it, is suspected of having killed a worker."""
        if self._poison.has_suspect_after(self.inbox.processed):
            return True
        return self._open.stream is not None and self._open.stream.needed < self._poison.suspect_until

    def _request(self, channel: int | None, start: int | None = None) -> Request:
        """How to recognise an utterance of a channel, or a segment of its live stream that begins at sample `start`.

        A segment gets the previous text as context if it follows it closely.
        """
        options, event_log = self._options, self._event_log
        previous = ""
        if start is not None and self._recogniser.context:
            text, end = event_log.transcript.previous(channel)
            gap = event_log.closed_seconds + start / SAMPLE_RATE - end
            previous = text if gap <= MAX_CONTEXT_GAP else ""
        return Request(
            event_log.transcript.language_of(channel),
            options.task,
            options.prompt,
            options.hotwords,
            previous=previous,
            words=options.word_timestamps,
        )

    async def _reject_poison(self, entry: Entry) -> None:
        """Give up an entry that killed too many workers.

        Raises:
            AudioError: It was given up.
        """
        if not self._poison.is_poison(entry.id):
            return
        await self._broker.dead_letter(self.sid, entry.id, f"a worker died {MAX_STRIKES} times with it in hand")
        stream = self._open.continue_stream()
        if stream is not None:
            # The growing segment may be the poison: with it, every further piece would cost three workers.
            stream.skip(self.inbox.processed, len(entry.data or b""))
        raise AudioError("audio_rejected", f"this audio stopped {MAX_STRIKES} workers and is not tried again")
