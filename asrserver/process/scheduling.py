"""Tells a process that hangs from one that gets no CPU, or was stopped, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

#: Seconds between two measurements that count at most: if more pass, this process was stopped or starved itself, and so
#: perhaps was the other.
MAX_STEP = 3.0

#: A process that gets no CPU has this many times as long as one that hangs: if it were killed, it would have to start
#: again on the same busy machine. It must end some time, because a thread may hang while another one waits to run.
STARVED_FACTOR = 10


def waits(pid: int) -> dict[str, float]:
    """Seconds for which each thread of a process was ready to run but had no CPU; empty where that is unknown."""
    found: dict[str, float] = {}
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for thread in threads:
        try:
            found[thread.name] = int((thread / "schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):  # it has ended, or the kernel does not count
            continue
    return found


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or a debugger."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in "Tt"


class RunTime:
    """Measures for how long a process could run: without the time for which one of its threads waited for a CPU.

    Args:
        pid: The process.
        now: time.monotonic().
    """

    def __init__(self, pid: int, now: float) -> None:
        self._pid = pid
        self._looked = now
        self._before = waits(pid)
        self._watched = 0.0
        self.waited = 0.0

    def update(self, now: float) -> float:
        """Measure again, and return the seconds so far."""
        step, self._looked = min(now - self._looked, MAX_STEP), now
        before, self._before = self._before, waits(self._pid)
        longest = max((seconds - before.get(name, 0.0) for name, seconds in self._before.items()), default=0.0)
        self._watched += step
        self.waited += longest
        return self.seconds

    @property
    def seconds(self) -> float:
        """Seconds for which it could run: at least a STARVED_FACTORth of the time that was measured."""
        return max(self._watched - self.waited, self._watched / STARVED_FACTOR)

    @property
    def is_starved(self) -> bool:
        """Whether it could run for less than that."""
        return self._watched - self.waited < self._watched / STARVED_FACTOR


class StallMeter:
    """Measures for how long a process has made no progress, though it could have run.

    Attributes:
        since: time.monotonic() when it was last seen to make progress.
        waited: Seconds since then for which it waited for a CPU.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._mark: float | None = None
        self._time: RunTime | None = None  # made when it is needed: mostly there was progress
        self.since = 0.0

    def update(self, mark: float, now: float) -> float:
        """Measure again.

        Args:
            mark: Changes when the process makes progress.
            now: time.monotonic().

        Returns:
            Seconds for which it has made no progress, though it could have run.
        """
        if mark != self._mark:
            self._mark, self._time, self.since = mark, None, now
            return 0.0
        if self._time is None:
            self._time = RunTime(self._pid, now)
        return self._time.update(now)

    @property
    def waited(self) -> float:
        return self._time.waited if self._time is not None else 0.0

    @property
    def is_innocent(self) -> bool:
        """Whether it makes no progress because it starves or is stopped, and not because it hangs."""
        return is_stopped(self._pid) or (self._time is not None and self._time.is_starved)
