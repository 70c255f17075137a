"""What all sessions of a worker share: its threads, its turns, its engine; and a whole utterance to its segments."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from asrserver.audio import SAMPLE_RATE, files
from asrserver.audio.chunking import COMPRESSED_BYTES_PER_SECOND
from asrserver.audio.pcm import Samples
from asrserver.inference import vad
from asrserver.inference.audio_thread import AudioThread
from asrserver.inference.engine import DecodeJob, Engine
from asrserver.inference.fair import FairPool
from asrserver.inference.features import Features, log_mel
from asrserver.inference.partials import PartialScheduler
from asrserver.inference.whisper import Hypothesis, Request, window_for
from asrserver.protocol.events import Word

#: Segments of one utterance that are worked on at once: bounds the memory that an hour of audio takes.
AHEAD = 8

#: Samples of an utterance in which speech is looked for at a time, so that others need not wait for all of an hour.
SLICE = 10 * SAMPLE_RATE

Span = tuple[int, int]


@dataclass(slots=True)
class RecognisedSegment:
    """A stretch of speech and its text. Times are seconds in the recording that it is a part of."""

    start: float
    end: float
    text: str
    language: str
    language_probability: float
    confidence: float
    words: list[Word] = field(default_factory=list)
    chunk_index: int | None = None  # of the chunk that it is within

    @classmethod
    def of(cls, start: int, end: int, found: Hypothesis) -> RecognisedSegment:
        """From samples, and words whose times are those of the window."""
        begin = start / SAMPLE_RATE
        words = [_moved(word, begin) for word in found.words]
        return cls(
            round(begin, 3),
            round(end / SAMPLE_RATE, 3),
            found.text,
            found.language,
            found.language_probability,
            found.confidence,
            words,
        )

    def moved(self, seconds: float) -> RecognisedSegment:
        """Itself, in a recording that begins so many seconds before."""
        self.start += seconds
        self.end += seconds
        self.words = [_moved(word, seconds) for word in self.words]
        return self


def _moved(word: Word, seconds: float) -> Word:
    return Word(word.word, round(word.start + seconds, 3), round(word.end + seconds, 3), word.confidence)


class Recogniser:
    """Shared by all sessions of a worker. `hold` is told what is in hand before each native call."""

    def __init__(
        self,
        engine: Engine,
        partials: PartialScheduler,
        *,
        window: str,
        silence: float,
        max_seconds: float,
        threads: int,
        hold: Callable[[str, list[str]], None],
        context: bool = False,
    ) -> None:
        self.engine = engine
        self.partials = partials
        self.silence = silence
        self.context = context
        self.stable_words = 0  # in drafts, so far, and how many of them the final text took back
        self.revised_words = 0
        self._window = window
        self._max_seconds = max_seconds
        self._hold = hold
        self._running = 0
        self._suspects = 0  # that run, or wait until nothing does
        self._changed = asyncio.Event()
        self._pool = FairPool(threads, "prepare")
        # Recordings that go on must not wait until an hour of MP3 is decoded.
        self.audio_thread = AudioThread(hold, partials)

    @property
    def model_name(self) -> str:
        return self.engine.model.name

    def expedite(self, session: str) -> None:
        """The session is finished: its client waits for what is said in its audio."""
        self.audio_thread.expedite(session)
        self.engine.expedite(session)

    def window(self, seconds: float) -> int:
        """The window in frames for so much speech."""
        return window_for(seconds, self._window)

    async def file(
        self, data: bytes, kind: str, request: Request, label: str, alone: bool, silence: float
    ) -> tuple[float, list[RecognisedSegment]]:
        """(seconds, segments) of a whole file in memory; raises AudioError."""
        async with self.turn(alone):
            seconds = len(data) / COMPRESSED_BYTES_PER_SECOND
            samples = await self._prepare(label, seconds, files.decode, data, kind, self._max_seconds)
            return len(samples) / SAMPLE_RATE, await self._segments(samples, silence, request, label, alone)

    async def samples(
        self, samples: Samples, request: Request, label: str, alone: bool, silence: float
    ) -> list[RecognisedSegment]:
        """The segments of an utterance."""
        async with self.turn(alone):
            return await self._segments(samples, silence, request, label, alone)

    def close(self) -> None:
        self._pool.close()
        self.audio_thread.close()

    @asynccontextmanager
    async def turn(self, alone: bool) -> AsyncIterator[None]:
        """Audio under suspicion of having killed a worker runs with no other in hand: no innocent is struck with it."""
        self._suspects += alone
        try:
            while self._running if alone else self._suspects:
                await self._changed.wait()
            self._running += 1
            try:
                yield
            finally:
                self._running -= 1
        finally:
            if self._suspects:  # somebody waits
                self._changed.set()
                self._changed = asyncio.Event()
            self._suspects -= alone

    # -- in the threads ------------------------------------------------------------------------------------------

    def _holding(self, labels: Sequence[str], work: Callable[[], Any]) -> Callable[[], Any]:
        """The work, with the labels in hand while it is done."""

        def run() -> Any:
            place = threading.current_thread().name
            self._hold(place, list(labels))
            try:
                return work()
            finally:
                self._hold(place, [])

        return run

    def _features(self, samples: Samples, spans: list[Span]) -> list[Features]:
        n_mels = self.engine.model.n_mels
        return [log_mel(samples[start:end], self.window((end - start) / SAMPLE_RATE), n_mels) for start, end in spans]

    # -- in the loop ---------------------------------------------------------------------------------------------

    async def _prepare(self, label: str, seconds: float, work: Callable[..., Any], *args: Any) -> Any:
        """What `work`, on so many seconds of files, returns: done in a thread when it is the session's turn."""
        held = self._holding([label], lambda: work(*args))
        return await self._pool.run(held, label.partition(" ")[0], seconds)

    async def _cut(self, samples: Samples, silence: float, label: str) -> tuple[list[Span], list[Features]]:
        """The stretches of speech, and the features of the first of them."""
        endpointer = vad.Endpointer(silence)
        spans: list[Span] = []
        first: list[Features] = []

        def listen(piece: Samples, last: bool) -> None:
            events = endpointer.feed(piece) + (endpointer.flush() if last else [])
            spans.extend((event.start, event.end) for event in events if isinstance(event, vad.SegmentEnded))
            if last:
                first.extend(self._features(samples, spans[:AHEAD]))

        for begin in range(0, max(1, len(samples)), SLICE):
            piece = samples[begin : begin + SLICE]
            await self._prepare(label, len(piece) / SAMPLE_RATE, listen, piece, begin + SLICE >= len(samples))
        return spans, first

    async def _segments(
        self, samples: Samples, silence: float, request: Request, label: str, alone: bool
    ) -> list[RecognisedSegment]:
        spans, first = await self._cut(samples, silence, label)
        segments: list[RecognisedSegment] = []
        for begin in range(0, len(spans), AHEAD):
            group = spans[begin : begin + AHEAD]
            features = first
            if begin:
                seconds = sum(end - start for start, end in group) / SAMPLE_RATE
                features = await self._prepare(label, seconds, self._features, samples, group)
            jobs = [
                DecodeJob(item, request, (end - start) / SAMPLE_RATE, label, alone, session=label.partition(" ")[0])
                for item, (start, end) in zip(features, group, strict=True)
            ]
            found = await asyncio.gather(*(self.engine.recognise(job) for job in jobs))
            segments += [
                RecognisedSegment.of(*span, hypothesis)
                for span, hypothesis in zip(group, found, strict=True)
                if hypothesis.text
            ]
        return segments
