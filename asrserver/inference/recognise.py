"""From an utterance's bytes or samples to its segments: decode, find speech, features, engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from asrserver.inference import audio, vad
from asrserver.inference.audio import RATE, Samples
from asrserver.inference.engine import Engine, Row
from asrserver.inference.features import Features, log_mel
from asrserver.inference.models import Hypothesis, Request, window_for

#: Segments of one utterance that are worked on at once: bounds the memory that an hour of audio takes.
AHEAD = 8

#: How languages that do not put spaces between words are joined.
UNSPACED = frozenset({"zh", "ja", "yue", "th", "lo", "my", "km", "bo"})

Span = tuple[int, int]


@dataclass(slots=True)
class Segment:
    """A stretch of speech and its text. Times are seconds in the recording that it is a part of."""

    start: float
    end: float
    text: str
    language: str
    language_probability: float
    confidence: float
    chunk_index: int | None = None  # of the chunk that it is within


def join(parts: list[tuple[str, str]]) -> str:
    """(text, language) pairs as one text, spaced as the languages space words."""
    text = ""
    for part, language in parts:
        if part:
            text += part if not text or language in UNSPACED else " " + part
    return text


class Recogniser:
    """Shared by all sessions of a worker. `hold` is told what is in hand before each native call."""

    def __init__(
        self,
        engine: Engine,
        *,
        window: str,
        silence: float,
        max_seconds: float,
        threads: int,
        hold: Callable[[str, list[str]], None],
    ) -> None:
        self._engine = engine
        self._window = window
        self._silence = silence
        self._max_seconds = max_seconds
        self._hold = hold
        self._running = 0
        self._suspects = 0  # that run, or wait until nothing does
        self._changed = asyncio.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")

    @property
    def model_name(self) -> str:
        return self._engine.model.name

    async def file(
        self, data: bytes, kind: str, request: Request, label: str, alone: bool
    ) -> tuple[float, list[Segment]]:
        """(seconds, segments) of a whole file in memory; raises AudioError."""
        async with self._turn(alone):
            samples, spans, first = await self._in_thread(label, self._open, data, kind)
            return len(samples) / RATE, await self._segments(samples, spans, first, request, label, alone)

    async def samples(
        self, samples: Samples, request: Request, label: str, alone: bool, growing: bool = False
    ) -> tuple[int, list[Segment]]:
        """(samples that are done with, segments); of a growing recording, only what no later audio can change."""
        async with self._turn(alone):
            done, spans, first = await self._in_thread(label, self._cut, samples, growing)
            return done, await self._segments(samples, spans, first, request, label, alone)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def _turn(self, alone: bool) -> AsyncIterator[None]:
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
            self._suspects -= alone
            self._changed.set()
            self._changed = asyncio.Event()

    # -- in the threads ------------------------------------------------------------------------------------------

    def _open(self, data: bytes, kind: str) -> tuple[Samples, list[Span], list[Features]]:
        samples = audio.decode(data, kind, self._max_seconds)
        spans = vad.segments(samples, self._silence)
        return samples, spans, self._features(samples, spans[:AHEAD])

    def _cut(self, samples: Samples, growing: bool) -> tuple[int, list[Span], list[Features]]:
        spans = vad.segments(samples, self._silence)
        done = len(samples)
        if growing:
            # The last segment may go on in audio that is not here yet; without one, speech may begin at the very end.
            last = spans.pop()[0] if spans else max(0, done - RATE)
            done = max(spans[-1][1] if spans else 0, min(last, done - RATE))
        return done, spans, self._features(samples, spans[:AHEAD])

    def _features(self, samples: Samples, spans: list[Span]) -> list[Features]:
        n_mels = self._engine.model.n_mels
        return [
            log_mel(samples[start:end], window_for((end - start) / RATE, self._window), n_mels) for start, end in spans
        ]

    # -- in the loop ---------------------------------------------------------------------------------------------

    async def _in_thread(self, label: str, work: Callable[..., Any], *args: Any) -> Any:
        def run() -> Any:
            place = threading.current_thread().name
            self._hold(place, [label])
            try:
                return work(*args)
            finally:
                self._hold(place, [])

        return await asyncio.get_running_loop().run_in_executor(self._pool, run)

    async def _segments(
        self, samples: Samples, spans: list[Span], first: list[Features], request: Request, label: str, alone: bool
    ) -> list[Segment]:
        segments: list[Segment] = []
        for begin in range(0, len(spans), AHEAD):
            group = spans[begin : begin + AHEAD]
            features = first if begin == 0 else await self._in_thread(label, self._features, samples, group)
            rows = [
                Row(features=item, request=request, seconds=(end - start) / RATE, label=label, alone=alone)
                for item, (start, end) in zip(features, group, strict=True)
            ]
            found = await asyncio.gather(*(self._engine.recognise(row) for row in rows))
            segments += [
                _segment(span, hypothesis) for span, hypothesis in zip(group, found, strict=True) if hypothesis.text
            ]
        return segments


def _segment(span: Span, found: Hypothesis) -> Segment:
    return Segment(
        round(span[0] / RATE, 3),
        round(span[1] / RATE, 3),
        found.text,
        found.language,
        found.language_probability,
        found.confidence,
    )
