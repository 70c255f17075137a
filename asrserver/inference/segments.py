"""What a recording's segments say: the ended ones in full and in order, the growing one as a guess that settles."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from asrserver.audio import SAMPLE_RATE
from asrserver.inference.agreement import Agreement
from asrserver.inference.engine import DecodeJob, Priority
from asrserver.inference.features import Features
from asrserver.inference.recognise import RecognisedSegment, Recogniser
from asrserver.inference.stream import Recording, Speech
from asrserver.inference.whisper import Hypothesis, Request

#: Seconds of a segment, the padding before its speech included, from which a first guess at it is worth its while.
FIRST_DRAFT = 0.5

#: Segments that have ended and wait for their text: with more, a session's audio waits.
MOST_WAITING = 8


@dataclass(frozen=True, slots=True)
class Guess:
    """At a growing segment, from sample to sample; `stable` is the beginning of `text` that will not change."""

    start: int
    end: int
    text: str
    stable: str
    language: str


@dataclass(frozen=True, slots=True)
class Told:
    """An ended segment with its text, which is None where nothing was said, or with what went wrong.

    `guessed` is whether there was a guess at it.
    """

    speech: Speech
    segment: RecognisedSegment | None
    error: BaseException | None
    guessed: bool


@dataclass(slots=True)
class _Growing:
    """The growing segment's guesses."""

    start: int
    agreement: Agreement = field(default_factory=Agreement)
    asked: float | None = None  # when the last draft was


class Captions:
    """Of one recording. `request` makes requests; `changed` is called when there is something to tell.

    `guess` gets the guesses at the growing segment; with None in its place there are none.
    """

    def __init__(
        self,
        recogniser: Recogniser,
        session: str,
        request: Callable[[int | None], Request],
        changed: Callable[[], None],
        guess: Callable[[Guess], None] | None,
        interval: float,
    ) -> None:
        self._recogniser = recogniser
        self._session = session
        self._request = request
        self._changed = changed
        self._guess = guess
        self.finished = False  # the session is, and its client waits for the last word
        self._interval = interval
        self._waiting = deque[tuple[Speech, asyncio.Task[Hypothesis]]]()
        self._growing: _Growing | None = None
        self._draft: asyncio.Task[None] | None = None
        self._early: tuple[Speech, asyncio.Task[Hypothesis]] | None = None
        self._agreements: dict[int, Agreement] = {}  # of ended segments that wait, by their start

    @property
    def waiting(self) -> Speech | None:
        """The first ended segment whose text is still to come or to be told."""
        return self._waiting[0][0] if self._waiting else None

    @property
    def full(self) -> bool:
        return len(self._waiting) >= MOST_WAITING

    @property
    def backlog(self) -> float:
        """Seconds of speech that wait for their text."""
        return sum(speech.seconds for speech, _ in self._waiting)

    def ended(self, speeches: list[Speech], label: str, alone: bool) -> None:
        """Segments have ended: recognise them."""
        for speech in speeches:
            if self._growing is not None and self._growing.start == speech.start:
                self._agreements[speech.start] = self._growing.agreement
                self._growing = None
            early, self._early = self._early, None
            if early is not None and (early[0].start, early[0].end) == (speech.start, speech.end):
                task = early[1]
            else:
                if early is not None:
                    early[1].cancel()
                task = self._final(speech, label, alone)
            self._waiting.append((speech, task))

    def hurry(self) -> None:
        """The session is finished: its client waits for what is still to be heard of it, and for its segments' text."""
        if not self.finished:
            self.finished = True
            self._recogniser.expedite(self._session)

    def grow(self, recording: Recording, label: str) -> None:
        """The recording has gone on: guess at its growing segment, if it is time to."""
        speech = recording.growing
        if speech is None:
            self._growing = None
            self._recogniser.partials.closed(self._session)
            return
        if self._growing is None or self._growing.start != speech.start:
            self._growing = _Growing(speech.start)
            self._drop_early()
        self._foresee(recording, label)
        if self._guess is None:
            return
        self._recogniser.partials.opened(self._session)
        growing = self._growing
        now = asyncio.get_running_loop().time()
        if growing.asked is None:
            due = speech.mel.samples >= FIRST_DRAFT * SAMPLE_RATE
        else:
            due = now - growing.asked >= self._recogniser.partials.interval(self._interval)
        if due and (self._draft is None or self._draft.done()):
            first = growing.asked is None
            growing.asked = now
            self._draft = asyncio.get_running_loop().create_task(self._drafted(growing, speech, label, first))

    def tell(self) -> Told | None:
        """The first ended segment, if its text has come; each once, in order."""
        if not self._waiting or not self._waiting[0][1].done():
            return None
        speech, task = self._waiting.popleft()
        agreement = self._agreements.pop(speech.start, None)
        guessed = agreement is not None and bool(agreement.text)
        error = task.exception()
        if error is not None:
            return Told(speech, None, error, guessed)
        found = task.result()
        if agreement is not None:
            revised, stable = agreement.revised(found.text, found.language)
            self._recogniser.stable_words += stable
            self._recogniser.revised_words += revised
        return Told(
            speech, RecognisedSegment.of(speech.start, speech.end, found) if found.text else None, None, guessed
        )

    async def settle(self) -> None:
        """Wait until the text of every ended segment has come."""
        if self._waiting:
            await asyncio.wait([task for _, task in self._waiting])

    def close(self) -> None:
        """Nothing more is wanted."""
        self._recogniser.partials.closed(self._session)
        self._drop_early()
        for task in (self._draft, *(task for _, task in self._waiting)):
            if task is not None:
                task.cancel()

    # -- small things --------------------------------------------------------------------------------------------

    def _final(self, speech: Speech, label: str, alone: bool) -> asyncio.Task[Hypothesis]:
        async def recognise() -> Hypothesis:
            job = DecodeJob(
                speech.mel.window(self._recogniser.window(speech.seconds), speech.end - speech.start),
                self._request(speech.start),
                speech.seconds,
                label,
                alone,
                self._session,
                Priority.CLOSING if self.finished else Priority.FINAL,
            )
            if alone:  # within a turn already
                return await self._recogniser.engine.recognise(job)
            async with self._recogniser.turn(False):
                return await self._recogniser.engine.recognise(job)

        task = asyncio.get_running_loop().create_task(recognise())
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Hypothesis]) -> None:
        if not task.cancelled():
            task.exception()  # seen: it may be one that nobody asks for any more
            self._changed()

    def _foresee(self, recording: Recording, label: str) -> None:
        """It has been quiet for as long as a segment's padding: unless speech goes on, this is how it ends, and by the
        time that is certain its text is there. Only while the engine has nothing else to do, and where the streams are
        read so often that there is time to win."""
        likely, engine = recording.growing, self._recogniser.engine
        if likely is None or not recording.paused:
            self._drop_early()
        elif self._early is None and not engine.waiting and self._recogniser.partials.may_speculate:
            self._early = (likely, self._final(likely, label, False))

    def _drop_early(self) -> None:
        if self._early is not None:
            self._early[1].cancel()
            self._early = None

    async def _drafted(self, growing: _Growing, speech: Speech, label: str, first: bool) -> None:
        end = speech.end

        def newest() -> tuple[Features, float]:
            nonlocal end
            end = speech.start + speech.mel.samples
            seconds = speech.mel.samples / SAMPLE_RATE
            return speech.mel.window(self._recogniser.window(seconds)), seconds

        features, seconds = newest()
        request = replace(self._request(None), words=False, draft=True)
        job = DecodeJob(
            features,
            request,
            seconds,
            label,
            False,
            self._session,
            Priority.FIRST_DRAFT if first else Priority.DRAFT,
            newest,
        )
        try:
            async with self._recogniser.turn(False):
                found = await self._recogniser.engine.recognise(job)
        except Exception:
            return  # the engine has logged it, and it was a guess
        if growing is not self._growing or not found.text or self._guess is None:
            return
        agreement = growing.agreement
        if agreement.update(found.text, found.language, found.confidence, (end - growing.start) / SAMPLE_RATE):
            self._guess(Guess(growing.start, end, agreement.text, agreement.stable, found.language))
