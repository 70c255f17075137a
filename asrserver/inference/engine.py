"""The engine: one queue of windows, one thread that runs the model, batches as the device gains by them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from asrserver.inference.fair import FairQueue
from asrserver.inference.features import Features
from asrserver.inference.partials import WEIGHT, Pace
from asrserver.inference.whisper import Hypothesis, Request, Whisper
from asrserver.telemetry import metrics

log = logging.getLogger("asrserver.engine")

#: Rows in one call on a GPU; gains flatten past 8 to 16.
GPU_BATCH = 8

#: On a CPU four rows gain a fifth with the model in the package. With a larger one the first would wait for the last: a
#: call there is to be no longer than so many seconds.
CPU_BATCH = 4
CPU_CALL = 0.05

#: What waits is taken in this order: what a finished session's last word waits for; what ends another segment; the
#: first guess at one that grows; a further guess.
LAST, FINAL, FIRST, REFRESH = range(4)


@dataclass(slots=True)
class Row:
    """A window to recognise: features, how, seconds of speech in it; `label` is what it is a part of.

    A row that runs `alone` shares no call: its audio is under suspicion of having killed a worker. `newest`, called
    when the row's turn has come, says what to recognise by then: while it waits, its segment grows.
    """

    features: Features
    request: Request
    seconds: float
    label: str
    alone: bool = False
    session: str = ""
    priority: int = FINAL
    newest: Callable[[], tuple[Features, float]] | None = None
    key: tuple[int, int, bool] = (0, 0, False)
    future: asyncio.Future[Hypothesis] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    queued: float = field(default_factory=time.monotonic)


class Engine:
    """Runs rows in a thread, so that the loop never blocks. `hold` is told what is in hand before each native call."""

    def __init__(self, model: Whisper, batch_size: int, hold: Callable[[str, list[str]], None]) -> None:
        self._model = model
        self._batch_size = batch_size
        self._each = CPU_CALL  # seconds that a row takes
        self._hold = hold
        self._rows = FairQueue[Row]()
        self._lock = threading.RLock()
        self._calls = SimpleQueue[None]()  # an item for each row: a Condition wakes the thread before it can go on
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self.pace = Pace()
        self.recognised = metrics.EngineMetrics()
        self.busy_seconds = 0.0
        self.speech_seconds = 0.0
        self.last_batch = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def model(self) -> Whisper:
        return self._model

    @property
    def waiting(self) -> int:
        return len(self._rows)

    @property
    def queue_age(self) -> float:
        """Seconds that the oldest waiting row has waited."""
        with self._lock:
            queued = [row.queued for row in self._rows]
        return time.monotonic() - min(queued) if queued else 0.0

    async def recognise(self, row: Row) -> Hypothesis:
        """What is said in the row; raises what the model raised for it, and for it alone."""
        row.key = self._key(row)  # here, where what it raises is this row's alone and not the thread's end
        with self._lock:
            self._rows.put(row, row.priority, row.session)
        self._calls.put(None)
        return await row.future

    def hurry(self, session: str) -> None:
        """The session is finished: its client waits for what is said in its rows."""
        with self._lock:
            for row in self._rows.promote(session, FINAL, LAST):
                row.priority = LAST

    def stop(self, timeout: float) -> None:
        """Finish the call in hand and end the thread."""
        self._stopping = True
        self._calls.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            self._calls.get()
            if self._stopping:
                return
            with self._lock:  # rows may have gone with an earlier one's call
                batch = [row for row in self._take() if not row.future.cancelled()] if self._rows else []
            if not batch:
                continue
            began = time.monotonic()
            results = self._recognise(batch)
            took = time.monotonic() - began
            self._each += WEIGHT * (took / len(batch) - self._each)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._settle, batch, results, began, took)

    def _settle(self, batch: list[Row], results: list[Hypothesis | Exception], began: float, took: float) -> None:
        """Back in the loop: a call is over."""
        finals = [row for row in batch if row.priority <= FINAL]
        speech = sum(row.seconds for row in finals)
        self.busy_seconds += took
        self.speech_seconds += speech
        self.last_batch = len(batch)
        self.recognised.record(took, [max(0.0, began - row.queued) for row in batch], speech)
        drafts = len(batch) - len(finals)
        waited = max((began - row.queued for row in finals), default=0.0)
        self.pace.spent(took * drafts / len(batch), drafts, took, waited)
        for row, result in zip(batch, results, strict=True):
            if row.future.done():
                continue  # its session was dropped
            if isinstance(result, Exception):
                row.future.set_exception(result)
            else:
                row.future.set_result(result)

    def _most(self) -> int:
        """Rows in one call."""
        if self._batch_size:
            return self._batch_size
        if self._model.device == "cuda":
            return GPU_BATCH
        return min(CPU_BATCH, max(1, int(CPU_CALL / self._each)))

    def _take(self) -> list[Row]:
        """The row whose turn it is and, up to the batch size, rows that may share its call, in their order."""

        def together(first: Row, other: Row) -> bool:
            if first.alone or other.alone or max(first.priority, FINAL) != max(other.priority, FINAL):
                return False  # what ends a segment waits for no guess
            _renew(first)
            _renew(other)
            return other.key == first.key

        batch = self._rows.take(self._most(), together)
        _renew(batch[0])
        return batch

    def _key(self, row: Row) -> tuple[int, int, bool]:
        # generate() wants one window and the start token at one index; a language still to be detected changes the
        # prompt's length only where there is none in it.
        prompt = self._model.prompt(row.request, row.request.language or self._model.languages[0])
        return row.features.shape[1], len(prompt), row.request.language is None

    def _recognise(self, batch: list[Row]) -> list[Hypothesis | Exception]:
        self._hold("engine", [row.label for row in batch])
        try:
            return list(self._model.recognise([(row.features, row.request, row.seconds) for row in batch]))
        except Exception as exc:
            if len(batch) == 1:
                log.exception("recognition failed: %s", batch[0].label)
                return [exc]
            # A row that raises must not fail its neighbours.
            return [result for row in batch for result in self._recognise([row])]
        finally:
            self._hold("engine", [])


def _renew(row: Row) -> None:
    """Make of a row that waited what is newest by now."""
    if row.newest is not None:
        row.features, row.seconds = row.newest()
        row.key = (row.features.shape[1], *row.key[1:])
