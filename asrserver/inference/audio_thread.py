"""The audio thread: decoding and voice activity detection of all live streams, in batches.

A piece of a live stream is little work, but the overhead around it is not: waking the thread, waking the loop, and a
call of the network, which costs as much as five frames. The more streams there are, the more of them share it.

The work on one stream is a generator: it yields the frames that the network must score, and continues when they are
scored. The thread runs many generators step by step and scores the frames of all of them in one call. After each step
the work waits for its next turn, so that a client that sends hours at once does not hold up the others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from asrserver.inference import silero
from asrserver.inference.fair import KeyQueue, Shares
from asrserver.inference.partials import PartialScheduler
from asrserver.inference.silero import FrameRun

T = TypeVar("T")

#: Work on one stream, in steps: it yields frames, and goes on when the network has scored them. It returns a T.
AudioWork = Generator[list[FrameRun], None, T]

#: Priorities of work.
URGENT, NORMAL = 0, 1

#: Most streams in one batch, so that the first of many does not wait for the last. Batches of 32 or 160 take no less
#: CPU per stream.
MAX_BATCH = 16

#: Seconds of CPU for the steps of a batch after which no further stream takes one: those that are done need not wait
#: for streams whose bytes cost a whole turn each (turns.py).
BATCH_SECONDS = 0.05


@dataclass(slots=True)
class _Job:
    labels: Sequence[str]
    work: AudioWork[Any]
    future: asyncio.Future[Any]
    urgent: bool
    queued: float = field(default_factory=time.monotonic)
    runs: list[FrameRun] = field(default_factory=list)  # to be scored before the next step
    result: Any = None
    error: BaseException | None = None
    begun: bool = False
    done: bool = False

    @property
    def session(self) -> str:
        return self.labels[0].partition(" ")[0] if self.labels else ""


class AudioThread:
    """Runs work in a thread of its own, in turn by key and session; of a key, urgent work first."""

    def __init__(
        self,
        hold: Callable[[str, list[str]], None],
        partials: PartialScheduler,
        shares: Shares | None = None,
    ) -> None:
        """Start the thread. Must be called in the event loop.

        Args:
            hold: Told the labels in hand before each native call, and none after it (see InFlight).
            partials: Told how long work waited.
            shares: The keys of the sessions.
        """
        self._hold = hold
        self._partials = partials
        self._loop = asyncio.get_running_loop()
        self._new: list[_Job] = []  # submitted in this iteration of the loop
        self._waiting = KeyQueue[_Job](shares or Shares())
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="audio", daemon=True)
        self._thread.start()

    async def run(self, labels: Sequence[str], work: AudioWork[T], urgent: bool = False) -> T:
        """Run work and wait for its result.

        Args:
            labels: "session entry" of each entry that it works on, for crash attribution. All are of one session.
            work: The work.
            urgent: Run it before work that is not urgent.

        Returns:
            What the work returns.

        Raises:
            Exception: Whatever the work raises.
        """
        job = _Job(labels, work, self._loop.create_future(), urgent)
        if not self._new:  # hand over at the end of this iteration: all that one read brings shares a batch
            self._loop.call_soon(self._submit)
        self._new.append(job)
        result: T = await job.future
        return result

    def _submit(self) -> None:
        with self._condition:
            self._wait(self._new)
            self._condition.notify()
        self._new.clear()

    def expedite(self, session: str) -> None:
        """Make the session's waiting work urgent: the session is finished and its client waits for the result."""
        for job in self._new:
            job.urgent = job.urgent or job.session == session
        with self._condition:
            for job in self._waiting.promote(session, NORMAL, URGENT):
                job.urgent = True

    def _wait(self, jobs: list[_Job]) -> None:
        for job in jobs:
            self._waiting.put(job, URGENT if job.urgent else NORMAL, job.session)

    def close(self, timeout: float | None) -> None:
        """Start no more work, and wait at most `timeout` seconds, or (None) until it ends, for the step under way."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(timeout)

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._waiting and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
            self._advance()  # a function of its own: its locals must not keep a stream alive while nothing waits

    def _advance(self) -> None:
        """Run the next step of waiting jobs; those not done share a call of the network, and wait for their turn."""
        with self._condition:
            taken = self._waiting.take(MAX_BATCH, lambda one, other: True)
        waiting = deque(job for job in taken if job.begun or not job.future.cancelled())
        jobs, begun = list[_Job](), time.thread_time()
        while waiting and time.thread_time() - begun < BATCH_SECONDS:
            jobs.append(waiting.popleft())
            self._step(jobs[-1])
        done, running = [job for job in jobs if job.done], [job for job in jobs if not job.done]
        runs = [run for job in running for run in job.runs]
        if done and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, done)
        if runs:
            self._hold("audio", [label for job in running for label in job.labels])
            silero.score(runs)
        with self._condition:
            self._wait([*waiting, *running])
            if not self._waiting:
                self._hold("audio", [])

    def _step(self, job: _Job) -> None:
        """Run a job's next step with only that job in hand: native code that decodes a client's bytes may crash."""
        if not job.begun:
            job.begun = True
            self._partials.delayed("vad", time.monotonic() - job.queued)
        self._hold("audio", list(job.labels))
        try:
            job.runs = next(job.work)
        except StopIteration as stop:
            job.result, job.done = stop.value, True
        except Exception as exc:
            job.error, job.done = exc, True


def _deliver(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue  # its session was dropped
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)
