"""The segments of one live stream: ended ones are recognised in order, the growing one gets partial hypotheses.

Three kinds of decodings: a *final* of a segment that has ended; a *draft* of the growing segment, for a partial
hypothesis; and a *speculation*, a final that is begun in a pause, before it is certain that the segment has ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from asrserver.audio import SAMPLE_RATE
from asrserver.inference.agreement import Agreement
from asrserver.inference.decoding import Hypothesis, Request
from asrserver.inference.engine import DecodeJob, Priority
from asrserver.inference.features import Features
from asrserver.inference.partials import PartialScheduler, SpeculationBudget
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.segments import PartialHypothesis, RecognisedSegment, SegmentOutcome, SpeechSegment

#: Ended segments that may wait for their text. With more, no further audio of the session is processed.
MAX_WAITING = 8


@dataclass(slots=True)
class _Growing:
    """The drafts of the growing segment."""

    start: int
    agreement: Agreement = field(default_factory=Agreement)
    last_draft: float | None = None  # when the last one was started, by the loop's clock
    paused: bool = False


class SegmentRecogniser:
    """Recognises the segments of one live stream, or of one channel of it.

    Attributes:
        closing: Whether the session is finished, and its client waits for the final result.
    """

    def __init__(
        self,
        recogniser: Recogniser,
        partials: PartialScheduler,
        session: str,
        *,
        request: Callable[[int | None], Request],
        changed: Callable[[], None],
        publish: Callable[[PartialHypothesis], None] | None,
        started: Callable[[int], None] | None,
        interval: float,
        channel: int | None = None,
    ) -> None:
        """Start without segments.

        Args:
            recogniser: What all sessions share.
            partials: Decides how often the growing segment is decoded.
            session: The session's id.
            request: Makes the request for a segment that begins at a sample, or (None) for a draft.
            changed: Called when an outcome may have become available.
            publish: Called with each partial hypothesis; None: there are to be none.
            started: Called with the first sample of each segment when it begins; None: not needed.
            interval: The shortest time between partial hypotheses, in seconds, as the client asked for it.
            channel: The channel, where channels are recognised separately.
        """
        self.closing = False
        self._recogniser = recogniser
        self._partials = partials
        self._session = session
        self._request = request
        self._changed = changed
        self._publish = publish
        self._started = started
        self._interval = interval
        self._channel = channel
        self._name = session if channel is None else f"{session} {channel}"  # for the scheduler
        self._waiting = deque[tuple[SpeechSegment, asyncio.Task[Hypothesis]]]()
        self._growing: _Growing | None = None
        self._draft: asyncio.Task[None] | None = None
        self._draft_job: DecodeJob | None = None  # the decoding that it waits for
        self._speculation: tuple[SpeechSegment, asyncio.Task[Hypothesis]] | None = None
        self._budget = SpeculationBudget()
        self._closed = False
        self._agreements: dict[int, Agreement] = {}  # of waiting segments, by their start

    @property
    def next_start(self) -> int | None:
        """The first sample of the segment whose outcome can be taken; None: there is none."""
        return self._waiting[0][0].start if self._waiting and self._waiting[0][1].done() else None

    @property
    def first_waiting(self) -> SpeechSegment | None:
        """The first ended segment whose outcome has not been taken."""
        return self._waiting[0][0] if self._waiting else None

    @property
    def is_full(self) -> bool:
        """Whether too many segments wait for more audio to be processed."""
        return len(self._waiting) >= MAX_WAITING

    @property
    def backlog(self) -> float:
        """Seconds of speech in ended segments that wait for their text."""
        return sum(speech.seconds for speech, _ in self._waiting)

    def add_ended(self, ended: list[SpeechSegment], label: str, alone: bool, flushed: bool = False) -> None:
        """Recognise segments that have ended.

        Args:
            ended: The segments, in order.
            label: "session entry" of the entry that ended them.
            alone: Recognise them with nothing else in flight; the caller holds the isolation lock.
            flushed: Whether the client waits for them.
        """
        priority = Priority.CLOSING if flushed else Priority.FINAL
        for speech in ended:
            speech.ended_by = label
            prefix = ""
            if self._growing is not None and self._growing.start == speech.start:
                self._agreements[speech.start] = self._growing.agreement
                prefix = self._prefix(self._growing)
                self._growing = None
            speculation, self._speculation = self._speculation, None
            if speculation is not None and (speculation[0].start, speculation[0].end) == (speech.start, speech.end):
                task = speculation[1]
            else:
                if speculation is not None:
                    self._drop(speculation[1])
                task = self._recognise(speech, label, alone, prefix, priority=priority)
            self._waiting.append((speech, task))

    def breaks_off(self, speech: SpeechSegment | None) -> bool:
        """Whether the growing segment was decoded in its present pause, and the text ends in mid-sentence.

        False, too, while the engine is so busy that the end of the segment should not be put off.
        """
        if speech is None or self._speculation is None or self._speculation[0].end != speech.end:
            return False
        task = self._speculation[1]
        if not task.done() or task.cancelled() or task.exception() is not None:
            return False
        return task.result().breaks_off and self._partials.may_wait

    def expedite(self) -> None:
        """Move the session's audio and segments forward: it is finished, and its client waits for the final result."""
        if not self.closing:
            self.closing = True
            self._recogniser.expedite(self._session)

    def update_growing(self, speech: SpeechSegment | None, paused: bool, label: str) -> None:
        """Note how the segment has grown, and start a speculation or a draft of it if one is due.

        Args:
            speech: The growing segment; None if there is none.
            paused: Whether it has been quiet for so long that it may have ended; if so, `speech` is all of it.
            label: "session entry" of the newest entry.
        """
        if speech is None:
            self._growing = None
            self._partials.closed(self._name)
            return
        if self._growing is None or self._growing.start != speech.start:
            self._growing = _Growing(speech.start)
            self._cancel_speculation()
            if self._started is not None:
                self._started(speech.start)
        self._growing.paused = paused
        self._speculate(self._growing, speech, label)
        if self._publish is None:
            return
        self._partials.opened(self._name)
        growing = self._growing
        now = asyncio.get_running_loop().time()
        first = growing.last_draft is None
        if growing.last_draft is None:
            due = speech.mel.samples >= self._recogniser.profile.first_draft * SAMPLE_RATE
        else:
            due = now - growing.last_draft >= self._partials.interval(self._interval)
        drafted = self._speculation is not None and self._speculation_is_draft
        if due and (self._draft is None or self._draft.done()) and not drafted:
            growing.last_draft = now
            self._draft = asyncio.get_running_loop().create_task(
                self._run_draft(growing, speech, label, first), name=f"draft-{self._session}"
            )

    def take_outcome(self) -> SegmentOutcome | None:
        """Return the outcome of the first ended segment if it is available: each one once, in order."""
        if not self._waiting or not self._waiting[0][1].done():
            return None
        speech, task = self._waiting.popleft()
        agreement = self._agreements.pop(speech.start, None)
        had_partials = agreement is not None and bool(agreement.text)
        error = task.exception()
        if error is not None:
            return SegmentOutcome(speech, None, error, had_partials, self._channel)
        found = task.result()
        if agreement is not None:
            revised, stable = agreement.revised(found.text, found.language)
            self._recogniser.words.stable += stable
            self._recogniser.words.revised += revised
        if not self._request(None).words:
            found = replace(found, words=[])
        recognised = RecognisedSegment.of(speech.start, speech.end, found, self._channel) if found.text else None
        return SegmentOutcome(speech, recognised, None, had_partials, self._channel, found.call)

    async def wait(self) -> None:
        """Wait until the outcomes of all ended segments are available."""
        if self._waiting:
            await asyncio.wait([task for _, task in self._waiting])

    def close(self) -> None:
        """Cancel everything under way."""
        self._closed = True
        self._partials.closed(self._name)
        self._cancel_speculation()
        for task in (self._draft, *(task for _, task in self._waiting)):
            if task is not None:
                task.cancel()

    # -- decodings -----------------------------------------------------------------------------------------------

    def _recognise(
        self,
        speech: SpeechSegment,
        label: str,
        alone: bool,
        prefix: str,
        timed: bool = False,
        priority: Priority = Priority.FINAL,
        unused: Callable[[float], None] | None = None,
    ) -> asyncio.Task[Hypothesis]:
        request = self._request(speech.start)
        timestamps = speech.seconds >= self._recogniser.profile.timestamps_from and not prefix
        request = replace(request, prefix=prefix, timestamps=timestamps, words=request.words or timed)

        async def recognise() -> Hypothesis:
            job = DecodeJob(
                speech.mel.window(self._recogniser.window(speech.seconds), speech.end - speech.start),
                request,
                speech.seconds,
                label,
                alone,
                self._session,
                Priority.CLOSING if self.closing else priority,
                unused=unused,
            )
            if alone:  # the caller holds the isolation lock already
                return await self._recogniser.engine.recognise(job)
            async with self._recogniser.isolation.hold(False):
                return await self._recogniser.engine.recognise(job)

        task = asyncio.get_running_loop().create_task(recognise(), name=f"segment-{self._session}")
        task.add_done_callback(self._recognised)
        return task

    def _recognised(self, task: asyncio.Task[Hypothesis]) -> None:
        if not task.cancelled():
            if task.exception() is None:  # it counts as retrieved now: nobody may ask for a speculation's
                self._budget.decode(task.result().took)
            self._changed()

    @property
    def _speculation_is_draft(self) -> bool:
        return self._recogniser.profile.timed_drafts and self._publish is not None

    def _speculate(self, growing: _Growing, speech: SpeechSegment, label: str) -> None:
        """Begin to decode a paused segment before its end is certain.

        Unless speech goes on, its text is ready when the silence has lasted long enough. This is done only while no
        final waits, and only where streams are read so often that it gains time. With timed words the result is a draft
        as well, and replaces one that waits.
        """
        if not growing.paused or (self._speculation is not None and self._speculation[0].end != speech.end):
            self._cancel_speculation()
        if not growing.paused:
            return
        may_speculate = self._partials.may_speculate(self._budget)
        if self._speculation is None and may_speculate and not self._recogniser.engine.finals_waiting:
            is_draft = self._speculation_is_draft
            timed = is_draft or self._recogniser.profile.sure_end > 0
            task = self._recognise(speech, label, False, self._prefix(growing), timed, unused=self._charge_waste)
            self._speculation = (speech, task)
            if is_draft:
                if self._draft is not None and self._draft_job is not None and not self._draft_job.begun:
                    self._draft.cancel()
                task.add_done_callback(lambda task: self._speculated(growing, speech, task))

    def _speculated(self, growing: _Growing, speech: SpeechSegment, task: asyncio.Task[Hypothesis]) -> None:
        if growing is self._growing and not task.cancelled() and task.exception() is None:
            self._take_draft(growing, task.result(), speech.end, True)

    def _cancel_speculation(self) -> None:
        if self._speculation is not None:
            self._drop(self._speculation[1])
            self._speculation = None

    def _drop(self, task: asyncio.Task[Hypothesis]) -> None:
        """Discard a decoding, which may have ended already."""
        if not task.done():
            task.cancel()
        elif not task.cancelled() and task.exception() is None and not self._speculation_is_draft:
            self._recogniser.engine.count_waste(task.result().took)
            self._charge_waste(task.result().took)

    def _charge_waste(self, seconds: float) -> None:
        """Charge a speculation that was for nothing, because speech went on. After `close` that is not known."""
        if not self._closed:
            self._partials.charge_waste(self._budget, seconds)

    async def _run_draft(self, growing: _Growing, speech: SpeechSegment, label: str, first: bool) -> None:
        end, paused = speech.end, growing.paused

        def newest() -> tuple[Features, float]:
            nonlocal end, paused
            paused = growing.paused
            end = speech.start + speech.mel.samples
            seconds = speech.mel.samples / SAMPLE_RATE
            return speech.mel.window(self._recogniser.window(seconds)), seconds

        features, seconds = newest()
        timed = self._recogniser.profile.timed_drafts
        request = replace(self._request(None), words=timed, draft=True, prefix=self._prefix(growing))
        priority = Priority.FIRST_DRAFT if first else Priority.DRAFT
        job = DecodeJob(features, request, seconds, label, False, self._session, priority, newest)
        self._draft_job = job
        try:
            async with self._recogniser.isolation.hold(False):
                found = await self._recogniser.engine.recognise(job)
        except Exception:
            return  # the engine has logged it, and drafts are optional
        self._budget.decode(found.took)
        if growing is self._growing and found.text:
            self._take_draft(growing, found, end, paused)
        else:
            self._recogniser.engine.count_waste(found.took)

    def _take_draft(self, growing: _Growing, found: Hypothesis, end: int, paused: bool) -> None:
        """Publish the text of the growing segment if a decoding of it, up to sample `end`, has changed it."""
        if not found.text or self._publish is None:
            return
        agreement, seconds = growing.agreement, (end - growing.start) / SAMPLE_RATE
        if found.words:
            changed = agreement.update_timed(found.words, found.language, seconds, paused)
        else:
            changed = agreement.update(found.text, found.language, found.confidence, seconds)
        if changed:
            self._publish(
                PartialHypothesis(growing.start, end, agreement.text, agreement.stable, found.language, self._channel)
            )

    def _prefix(self, growing: _Growing) -> str:
        """The text that the decoder must continue: the segment's stable words, if the model's profile says so."""
        return growing.agreement.stable if self._recogniser.profile.timed_drafts else ""
