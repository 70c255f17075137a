"""What recognition costs on this machine: the time of an engine's call, by what is in it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.config import Settings
from asrserver.inference.decoding import Request
from asrserver.inference.features import FRAMES_PER_SECOND, log_mel
from asrserver.inference.windows import window_for
from asrserver.inference.worker import load_model
from asrserver.loadtest.speech import load

#: Sentences that are timed, and the rows of the calls with them.
SENTENCES = 10
ROWS = (1, 2, 4)

#: The share of a sentence that the timed drafts have.
DRAFT_SHARE = 0.5

#: Seconds that the timing of a slow model may take.
TIMEOUT = 600.0

_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Call:
    """A timed call of the engine: its rows, the window and the speech of each in seconds, and the time it took."""

    rows: int
    window: float
    speech: float
    took: float


@dataclass(frozen=True)
class CallCost:
    """The time of a call with `n` rows, in seconds: `call` + `row` n + `window` n w + `speech` s.

    The encoder's time follows from the window w of all rows; the decoder reads its weights once for each token of the
    longest row, whose speech is s.
    """

    call: float
    row: float
    window: float
    speech: float

    def __call__(self, rows: int, window: float, speech: float) -> float:
        return self.call + rows * (self.row + self.window * window) + self.speech * speech

    @classmethod
    def of_speed(cls, times_real_time: float) -> CallCost:
        """An engine of which only the speed on files is known, whose windows are full: in proportion to the windows."""
        return cls(0.0, 0.0, 1 / times_real_time, 0.0)


def fit(calls: Sequence[Call]) -> CallCost:
    """Least squares without negative costs: what would be negative is left out."""
    terms = np.array([[1.0, call.rows, call.rows * call.window, call.speech] for call in calls])
    took = np.array([call.took for call in calls])
    kept = list(range(terms.shape[1]))
    while True:
        found = np.linalg.lstsq(terms[:, kept], took, rcond=None)[0]
        if (found >= 0).all() or len(kept) == 1:
            break
        del kept[int(found.argmin())]
    costs = np.zeros(terms.shape[1])
    costs[kept] = np.maximum(0.0, found)
    return CallCost(*map(float, costs))


def time_calls(settings: Settings, workers: int) -> list[Call]:
    """Time the calls of as many engines as the machine has workers, at the same time: they share its memory's speed.

    Args:
        settings: Those of the workers.
        workers: How many.

    Raises:
        SystemExit: An engine failed.
    """
    # As in a worker: numpy computes in one thread there.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipes = [_spawn.Pipe() for _ in range(workers)]
    processes = [_spawn.Process(target=_time_calls, args=(settings, there)) for _, there in pipes]
    for process in processes:
        process.start()
    try:
        for (here, there), process in zip(pipes, processes, strict=True):
            there.close()
            if not here.poll(TIMEOUT):
                raise SystemExit(f"an engine was not timed in {TIMEOUT:g} s (exit status {process.exitcode})")
        return [call for here, _ in pipes for call in here.recv()]
    except EOFError:
        raise SystemExit("an engine could not be timed") from None
    finally:
        for process in processes:
            process.kill()
            process.join()


def _time_calls(settings: Settings, pipe: Connection) -> None:
    """CPU time, over the threads that compute: what else runs on the machine does not count."""
    model = load_model(settings)
    calls = []
    for warm_up in (True, False):
        for sentence in load(())[: 1 if warm_up else SENTENCES]:
            samples = np.frombuffer(b"".join(sentence.frames), "<i2").astype(np.float32) / np.float32(32768)
            for share in (DRAFT_SHARE, 1.0):
                part = samples[: int(share * len(samples))]
                seconds = len(part) / SAMPLE_RATE
                frames = window_for(seconds, settings.window, model.profile.margin)
                row = (log_mel(part, frames, model.n_mels), Request("en", draft=share < 1), seconds)
                for rows in ROWS:
                    began = time.process_time()
                    model.recognise([row] * rows)
                    took = (time.process_time() - began) / settings.threads
                    calls.append(Call(rows, frames / FRAMES_PER_SECOND, seconds, took))
        if warm_up:
            calls.clear()
    pipe.send(calls)
