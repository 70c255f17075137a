"""The progress of a load test: a dashboard in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asrserver.loadtest.runner import Outcome
from asrserver.loadtest.stats import TIMES

#: Seconds between lines where there is no terminal.
LINE_EVERY = 5.0


def milliseconds(seconds: float) -> str:
    """A time for humans; a dash for NaN."""
    return "–" if seconds != seconds else f"{seconds * 1000:,.0f} ms"


class Lines:
    """Prints a line every few seconds to standard error, for logs."""

    def __init__(self) -> None:
        self._last = 0.0

    def update(self, outcome: Outcome) -> None:
        if time.monotonic() - self._last < LINE_EVERY:
            return
        self._last = time.monotonic()
        stats = outcome.stats
        click.echo(
            f"{outcome.seconds:6.0f} s  {stats.open} of {outcome.plan.connections} connected  {stats.right} correct  "
            f"{stats.failed} failed  {sum(stats.refusals.values())} refused  {outcome.samples[-1].audio_rate:.1f} s/s  "
            f"finalisation p95 {milliseconds(outcome.finalisation)}",
            err=True,
        )

    def close(self) -> None:
        """Nothing to do."""


class Dashboard:
    """Tables on standard error, redrawn in place."""

    def __init__(self) -> None:
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        self._live.start()

    def update(self, outcome: Outcome) -> None:
        self._live.update(self.drawn(outcome), refresh=True)

    def close(self) -> None:
        """Restore the terminal."""
        self._live.stop()

    @staticmethod
    def drawn(outcome: Outcome) -> Panel:
        """The dashboard."""
        stats, plan, sample = outcome.stats, outcome.plan, outcome.samples[-1]
        head = Table.grid(padding=(0, 3))
        head.add_row("connections", f"{stats.open} of {plan.connections}", "sessions open", str(stats.active))
        head.add_row("sessions correct", f"[green]{stats.right}[/]", "failed", f"[red]{stats.failed}[/]")
        head.add_row("audio", f"{sample.audio_rate:,.1f} s per second", "refused, retried", f"{stats.refusals.total()}")
        times = Table("", "p50", "p95", "p99", "max", box=None)
        for name in TIMES:
            found = stats.times[name]
            if found.count:
                ranks = (found.percentile(0.5), found.percentile(0.95), found.percentile(0.99), found.longest)
                times.add_row(name.replace("_", " "), *map(milliseconds, ranks))
        costs = Table("process", "cores", "memory", box=None)
        for number, cores in enumerate(sample.tester, 1):
            costs.add_row(f"tester {number}", f"{cores:.2f}", "")
        for name, cost in sorted(sample.server.items()):
            costs.add_row(name, f"{cost.cores:.2f}", f"{cost.memory / 2**20:,.0f} MiB")
        tables = Table.grid(padding=(0, 4))
        tables.add_row(times, costs)
        bar = Table.grid()
        bar.add_row(ProgressBar(total=plan.duration, completed=min(outcome.seconds, plan.duration), width=60))
        parts: list[Table | Text] = [bar, head, tables]
        if stats.failures:
            parts.append(Text("  ".join(f"{kind} {count}" for kind, count in stats.failures.most_common()), "red"))
        if outcome.saturated:
            parts.append(Text(f"the tester is saturated: {outcome.saturated}", "yellow"))
        title = f"{plan.connections} connections, {plan.mode}, {plan.protocol_mode}, {outcome.seconds:.0f} s"
        return Panel(Group(*parts), title=title, expand=False)


def screen() -> Dashboard | Lines:
    """The display that suits standard error."""
    return Dashboard() if sys.stderr.isatty() else Lines()
