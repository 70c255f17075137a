"""The engine: one queue of windows, one thread that runs the model, batches as large as the device gains from."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from queue import SimpleQueue

from asrserver.inference.decoding import Hypothesis, Request
from asrserver.inference.fair import KeyQueue, Shares
from asrserver.inference.features import FRAMES_PER_SECOND, Features, padded
from asrserver.inference.fifo_lock import FifoLock
from asrserver.inference.partials import SMOOTHING, PartialScheduler
from asrserver.inference.whisper import Whisper
from asrserver.telemetry import metrics
from asrserver.telemetry.worker_traces import Call

log = logging.getLogger("asrserver.engine")

#: Most rows of one call on a GPU: beyond 8 to 16 there is little to gain.
GPU_BATCH = 8

#: Most rows of one call on a CPU: four rows gain a fifth with the packaged model, two fifths with base.
CPU_BATCH = 4

#: Drafts of a key stand back behind this many seconds of other keys' windows: finals go first, whichever key they are
#: of, but no key can keep all others from their drafts.
DRAFT_HANDICAP = 20.0


class Priority(IntEnum):
    """The order of jobs within an API key: lower numbers first."""

    CLOSING = 0  #: the end of a segment of a finished session, whose client waits for the final result
    FINAL = 1  #: the end of a segment
    FIRST_DRAFT = 2  #: the first draft of a growing segment
    DRAFT = 3  #: a further draft


@dataclass(slots=True)
class DecodeJob:
    """A window that waits to be recognised: one row of a batch.

    Attributes:
        features: [n_mels, frames].
        request: How to recognise it.
        seconds: Speech in it.
        label: "session entry", for crash attribution and logs.
        alone: Whether it shares no call, because its audio is suspected of having killed a worker.
        session: Whose it is, for fair queueing.
        priority: See Priority.
        newest: Called when the job's turn comes; returns (features, seconds) as they are then, because the segment of a
            draft grows while the draft waits.
        unused: Called with the engine's time that it took, in seconds, if its result is no longer wanted.
        key: (frames, prompt's tokens, whether the language is to be detected). Only jobs with equal keys may share a
            call, except that windows may be somewhat shorter. Set by the engine.
        future: The result.
        queued: time.monotonic() when it was made.
        begun: Whether it has left the queue.
    """

    features: Features
    request: Request
    seconds: float
    label: str
    alone: bool = False
    session: str = ""
    priority: Priority = Priority.FINAL
    newest: Callable[[], tuple[Features, float]] | None = None
    unused: Callable[[float], None] | None = None
    key: tuple[int, int, bool] = (0, 0, False)
    future: asyncio.Future[Hypothesis] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    queued: float = field(default_factory=time.monotonic)
    begun: bool = False


class Engine:
    """Recognises windows in a thread of its own, so that the event loop never blocks.

    Attributes:
        recognised: Counters of calls and speech.
        busy_seconds: Time spent in calls.
        wasted_seconds: Part of that time that went into decodings whose results were thrown away.
        speech_seconds: Speech in finals recognised.
        last_batch: Rows of the last call.
    """

    def __init__(
        self,
        model: Whisper,
        batch_size: int,
        hold: Callable[[str, list[str]], None],
        partials: PartialScheduler,
        device_lock: FifoLock | None = None,
        shares: Shares | None = None,
    ) -> None:
        """Start the thread. Must be called in the event loop.

        Args:
            model: Used by the engine's thread alone from now on.
            batch_size: Most rows of one call; 0: the engine decides by the device.
            hold: Told the labels in hand before each native call, and none after it (see InFlight).
            partials: Told what each call cost.
            device_lock: Shared by the engines on the same device; None: there is no other.
            shares: The API keys of the sessions.
        """
        self._model = model
        self._batch_size = batch_size
        self._row_seconds = model.profile.cpu_call_seconds  # that one row takes, a moving average
        self._hold = hold
        self._partials = partials
        self._device_lock = device_lock or FifoLock()
        self._jobs = KeyQueue[DecodeJob](shares or Shares(), _handicap)
        self._lock = threading.RLock()
        self._wakeups = SimpleQueue[None]()  # one per job; a Condition would wake the thread while the lock is held
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self.recognised = metrics.EngineMetrics()
        self.busy_seconds = 0.0
        self.wasted_seconds = 0.0
        self.speech_seconds = 0.0
        self.last_batch = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def model(self) -> Whisper:
        """The model; only its constant attributes may be used outside the engine's thread."""
        return self._model

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._jobs)

    @property
    def finals_waiting(self) -> int:
        """Jobs in the queue that are no drafts."""
        with self._lock:
            return sum(job.priority <= Priority.FINAL for job in self._jobs)

    @property
    def queue_age(self) -> float:
        """Seconds that the oldest waiting job has waited; 0 if none waits."""
        with self._lock:
            queued = [job.queued for job in self._jobs]
        return time.monotonic() - min(queued) if queued else 0.0

    async def recognise(self, job: DecodeJob) -> Hypothesis:
        """Queue a job and wait for its result.

        Raises:
            Exception: Whatever the model raised for this job alone.
        """
        job.key = self._key(job)  # here, where an exception fails this job and does not end the thread
        with self._lock:
            self._jobs.put(job, job.priority, job.session, job.features.shape[1] / FRAMES_PER_SECOND)
        self._wakeups.put(None)
        return await job.future

    def expedite(self, session: str) -> None:
        """Move the session's waiting finals forward: the session is finished and its client waits for them."""
        with self._lock:
            for job in self._jobs.promote(session, Priority.FINAL, Priority.CLOSING):
                job.priority = Priority.CLOSING

    def stop(self, timeout: float | None) -> None:
        """Finish the call under way and end the thread, waiting at most `timeout` seconds, or (None) until it ends."""
        self._stopping = True
        self._wakeups.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            self._wakeups.get()
            if self._stopping:
                return
            with self._device_lock:
                with self._lock:  # the job of this wake-up may have gone with an earlier call
                    batch = [job for job in self._next_batch() if not job.future.cancelled()] if self._jobs else []
                if not batch:
                    continue
                began, before = time.monotonic(), self._model.wasted_seconds
                results = self._recognise(batch)
                took, wasted = time.monotonic() - began, self._model.wasted_seconds - before
            self._row_seconds += SMOOTHING * (took / len(batch) - self._row_seconds)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._deliver, batch, results, began, took, wasted)

    def count_waste(self, seconds: float) -> None:
        """Count a decoding whose result is not used.

        Args:
            seconds: The engine's time that it took.
        """
        self.wasted_seconds += seconds
        self.recognised.count_waste(seconds)

    def _deliver(
        self, batch: list[DecodeJob], results: list[Hypothesis | Exception], began: float, took: float, wasted: float
    ) -> None:
        """In the event loop, after a call: count it and hand out its results."""
        finals = [job for job in batch if job.priority <= Priority.FINAL]
        speech = sum(job.seconds for job in finals)
        self.busy_seconds += took
        self.speech_seconds += speech
        self.last_batch = len(batch)
        self.recognised.record(took, [max(0.0, began - job.queued) for job in batch], speech)
        drafts = len(batch) - len(finals)
        waited = max((began - job.queued for job in finals), default=0.0)
        self._partials.call_ended(took * drafts / len(batch), drafts, took, waited)
        self.count_waste(wasted)
        each = (took - wasted) / len(batch)
        for job, result in zip(batch, results, strict=True):
            if job.future.done():
                self.count_waste(each)  # its session was dropped, or its segment went on
                if job.unused is not None:
                    job.unused(each)
            elif isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                result.took, result.call = each, Call(job.queued, began, began + took)
                job.future.set_result(result)

    def _max_batch(self) -> int:
        """Most rows of one call."""
        if self._batch_size:
            return self._batch_size
        if self._model.device == "cuda":
            return GPU_BATCH
        return min(CPU_BATCH, max(1, int(self._model.profile.cpu_call_seconds / self._row_seconds)))

    def _next_batch(self) -> list[DecodeJob]:
        """The job whose turn it is and, up to the batch size, jobs that may share its call, in queue order."""

        def together(first: DecodeJob, other: DecodeJob) -> bool:
            if first.alone or other.alone:
                return False
            if max(first.priority, Priority.FINAL) != max(other.priority, Priority.FINAL):
                return False  # a final never waits for a draft
            _refresh(first)
            _refresh(other)
            shortest = self._model.profile.shared_window * first.key[0]
            return other.key[1:] == first.key[1:] and shortest <= other.key[0] <= first.key[0]

        batch = self._jobs.take(self._max_batch(), together)
        _refresh(batch[0])
        for job in batch:
            job.begun = True
        for job in batch[1:]:
            job.features = padded(job.features, batch[0].features.shape[1])
        return batch

    def _key(self, job: DecodeJob) -> tuple[int, int, bool]:
        # generate() wants one window length, and the start token at one index in all rows. Before the language is
        # detected any language gives the prompt's length: it is one token, or none in an English-only model.
        prompt = self._model.vocabulary.prompt(job.request, job.request.language or self._model.languages[0])
        return job.features.shape[1], len(prompt), job.request.language is None

    def _recognise(self, batch: list[DecodeJob]) -> list[Hypothesis | Exception]:
        self._hold("engine", [job.label for job in batch])
        self._model.hurried = self.finals_waiting > 0
        try:
            return list(self._model.recognise([(job.features, job.request, job.seconds) for job in batch]))
        except Exception as exc:
            if len(batch) == 1:
                log.exception("recognition failed: %s", batch[0].label)
                return [exc]
            # A row that raises must not fail its neighbours.
            return [result for job in batch for result in self._recognise([job])]
        finally:
            self._hold("engine", [])


def _handicap(priority: int) -> float:
    return DRAFT_HANDICAP if priority > Priority.FINAL else 0.0


def _refresh(job: DecodeJob) -> None:
    """Bring a draft that waited up to date."""
    if job.newest is not None:
        job.features, job.seconds = job.newest()
        job.key = (job.features.shape[1], *job.key[1:])
