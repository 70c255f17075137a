"""How long the threads of another process wait for a CPU, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def waits(pid: int) -> dict[str, float]:
    """Seconds for which each thread of a process has been ready to run and did not; none where that is unknown."""
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


class StarvationMeter:
    """Tells a process that gets no CPU from one that hangs: a thread that hangs does not wait to run.

    Args:
        pid: The process.
        now: time.monotonic() of the beginning of the measurement.
    """

    def __init__(self, pid: int, now: float) -> None:
        self._pid = pid
        self._since = now
        self._before = waits(pid)

    def is_starved(self, now: float) -> bool:
        """Whether one of its threads waited for a CPU for half of the time since the beginning."""
        most = max((after - self._before.get(name, 0.0) for name, after in waits(self._pid).items()), default=0.0)
        return most > (now - self._since) / 2
