"""The report of a load test: Markdown with plots, and the numbers as JSON beside it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import orjson
from matplotlib.figure import Figure

from asrserver.loadtest.runner import Capacity, Outcome
from asrserver.loadtest.stats import FAILURES, TIMES, Stats

#: Size of a plot in inches, and its resolution in dots per inch.
SIZE, DPI = (9.0, 3.6), 110

#: Minimum number of samples for a memory trend.
MIN_TREND_SAMPLES = 12

#: MiB that an allocator takes from the system at once (Python since 3.10; others about the same): a heap whose contents
#: do not grow may still take one more.
ARENA = 1.0


def write(path: Path, outcome: Outcome, about: dict[str, Any], command: str, capacity: Capacity | None = None) -> None:
    """Write the report to `path`, the numbers beside it as .json, and the plots as -NAME.png.

    Raises:
        OSError: A file cannot be written.
    """
    pictures = {name: path.with_name(f"{path.stem}-{name}.png") for name in ("load", "latency", "cpu", "memory")}
    _draw(outcome, pictures)
    numbers = {
        "verdict": verdict(outcome, capacity),
        "command": command,
        **about,
        "run": _numbers(outcome, samples=True),
        "capacity": {
            "streams": capacity.streams,
            "too_many": capacity.limit,
            "levels": [_numbers(level, samples=False) for level in capacity.levels],
        }
        if capacity
        else None,
    }
    path.with_suffix(".json").write_bytes(orjson.dumps(numbers, option=orjson.OPT_INDENT_2))
    lines = [
        "# Load test",
        "",
        f"**{verdict(outcome, capacity)}**",
        "",
        *(f"- {line}" for line in notes(outcome)),
        "",
        f"`{command}`, {outcome.begun}",
        "",
    ]
    if capacity:
        lines += _capacity(capacity)
    lines += [*_sessions(outcome), *_times(outcome), *_costs(outcome), *_about(outcome, about)]
    lines += ["## Over time", "", *(f"![{name}]({picture.name})\n" for name, picture in pictures.items())]
    path.write_text("\n".join(lines) + "\n")


def verdict(outcome: Outcome, capacity: Capacity | None = None) -> str:
    """The verdict in one line, beginning with PASS or FAIL."""
    if capacity:
        last = capacity.levels[-1]
        if last.interrupted:
            return "FAIL: the search was interrupted"
        if not capacity.streams:
            return f"FAIL: even {last.plan.connections} streams are too many: {'; '.join(last.why_not)}"
        found = f"PASS: {capacity.streams} live streams"
        if not capacity.limit:
            return f"{found}, the most that were tried"
        first = min((one for one in capacity.levels if not one.passed), key=lambda one: one.plan.connections)
        return f"{found}; {capacity.limit} are too many: {'; '.join(first.why_not)}"
    if outcome.why_not:
        return f"FAIL: {'; '.join(outcome.why_not)}"
    stats = outcome.stats
    return f"PASS: {stats.right} of {stats.sessions} sessions correct, on {stats.connected} connections"


def notes(outcome: Outcome) -> list[str]:
    """The notes that a reader needs to judge the figures, one line each."""
    stats = outcome.stats
    found = [
        f"throughput: {outcome.throughput:.1f} s of audio per second, in correct sessions",
        f"a session is correct if its text has at most {outcome.plan.max_word_errors:.0%} word errors, every chunk was "
        "acknowledged and answered once and in order, and all audio was counted",
    ]
    if outcome.saturated:
        found.append(f"**the tester was saturated**: {outcome.saturated}; the times include its own delays")
    else:
        lag = _time(outcome.lag.percentile(0.99))
        found.append(
            f"the tester was not saturated: {outcome.busiest:.2f} cores in the busiest process, loop lag {lag} (p99)"
        )
    if stats.refusals:
        kinds = ", ".join(f"{count} {kind}" for kind, count in stats.refusals.most_common())
        found.append(f"refused temporarily and retried: {kinds}")
    before, after = (each.get("lasting_keys") for each in outcome.redis)
    if before is not None and after is not None:
        more = "none left over" if after <= before else f"**{after - before} left over**"
        found.append(f"Redis keys without expiry: {before} before, {after} after: {more}")
    grows = [name for name in _names(outcome) if memory_trend(outcome, name).word == "**grows**"]
    if grows:
        found.append(f"memory grew by more than its noise: {', '.join(grows)} (in a short run perhaps warm-up)")
    if outcome.unseen:
        found.append(f"the server's processes were not measured: {outcome.unseen}")
    return found + [f"tester error: `{error.strip().splitlines()[-1]}`" for error in outcome.errors]


# -- the parts -------------------------------------------------------------------------------------------------------


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    cells = [list(head)]
    lines = [f"| {' | '.join(cells[0])} |", f"|{'|'.join('---' if n == 0 else '---:' for n in range(len(cells[0])))}|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return [*lines, ""]


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return "–"
    return (
        f"{seconds * 1000:.1f} ms"
        if seconds < 0.1
        else f"{seconds * 1000:.0f} ms"
        if seconds < 1
        else f"{seconds:.2f} s"
    )


def _sessions(outcome: Outcome) -> list[str]:
    stats = outcome.stats
    lines = ["## Sessions", ""]
    lines += _table(
        ("", "count"),
        [
            ("connections established / requested", f"{stats.connected} / {outcome.plan.connections}"),
            ("sessions", stats.sessions),
            ("correct", stats.right),
            ("failed", stats.failed),
            ("words", stats.words),
            ("word errors (of a failed session, at most its first ten or so)", stats.word_errors),
            ("chunks", stats.chunks),
            ("partial results", stats.partials),
            ("seconds of audio sent", f"{stats.audio_sent:.0f}"),
            ("duration of the test in seconds", f"{outcome.seconds:.1f}"),
        ],
    )
    if stats.failures:
        lines += ["Failures (a session may fail in several ways):", ""]
        lines += _table(("kind", "meaning", "sessions"), [(k, FAILURES[k], n) for k, n in stats.failures.most_common()])
    if stats.errors:
        lines += ["Errors of the server, by code:", ""]
        lines += _table(("code", "count"), stats.errors.most_common())
    if stats.examples:
        lines += ["First failed sessions:", ""]
        rows = [
            (x["session_id"], ", ".join(x["failed"]), str(x["why"]).replace("|", "/")[:300]) for x in stats.examples
        ]
        lines += _table(("session", "failure", "reason"), rows)
    return lines


def _times(outcome: Outcome) -> list[str]:
    rows = []
    for name, what in TIMES.items():
        found = outcome.stats.times[name].summary()
        if found["count"]:
            values = [_time(found[key]) for key in ("mean", "p50", "p90", "p95", "p99", "max")]
            rows.append((f"{name.replace('_', ' ')}: {what}", found["count"], *values))
    return ["## Times", "", *_table(("", "count", "mean", "p50", "p90", "p95", "p99", "max"), rows)]


def _costs(outcome: Outcome) -> list[str]:
    """CPU and memory of each process, and the trend of memory in the second half of the run."""
    lines = ["## Processes", ""]
    rows = []
    for place, cores in enumerate(outcome.tester, 1):
        rows.append((f"tester {place}", f"{sum(cores) / len(cores):.2f}", f"{max(cores):.2f}", "", "", "", ""))
    for name in _names(outcome):
        _, cores_, memory = _series(outcome, name)
        trend = memory_trend(outcome, name)
        values = (f"{sum(cores_) / len(cores_):.2f}", f"{max(cores_):.2f}", f"{memory[0]:.0f}", f"{max(memory):.0f}")
        rows.append((name, *values, f"{trend.slope * 60:+.2f} ± {trend.noise * 60:.2f}", trend.word))
    head = ("", "cores, mean", "max", "MiB, first", "max", "MiB per minute (second half)", "memory")
    lines += _table(head, rows)
    if outcome.unseen:
        lines += [f"The server's processes were not measured: {outcome.unseen}.", ""]
    else:
        lines += [
            "Memory is private resident memory: mapped files and PostgreSQL's shared buffers are not counted. It is "
            "flat if its slope is within the noise, which is twice the slope's standard error, corrected for the "
            "autocorrelation of the samples. It is flat to a MiB if the slope is no more than one step of a MiB makes "
            "of it, the unit of allocation. Redis keeps a session for ten minutes after its end by default: in runs of "
            "less than twenty minutes its memory grows.",
            "",
        ]
    before, after = outcome.redis
    if before and after:
        names = {"keys": "keys", "lasting_keys": "keys without expiry", "memory_bytes": "MiB of memory"}
        scale = {"memory_bytes": 2**20}
        held = [
            (what, *(f"{each[name] / scale.get(name, 1):.0f}" for each in outcome.redis))
            for name, what in names.items()
        ]
        lines += _table(("Redis", "before", "after the last session was stored"), held)
    return lines


def _about(outcome: Outcome, about: dict[str, Any]) -> list[str]:
    lines = ["## Machine, versions, settings", ""]
    rows = [
        (name.removesuffix("_bytes").replace("_", " "), _plain(name, value))
        for part in about.values()
        for name, value in part.items()
    ]
    lines += _table(("", "value"), rows)
    return lines + _table(("setting", "value"), _settings(outcome).items())


def _plain(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{value / 2**30:.1f} GiB"
    return (
        ", ".join(map(str, value)) if isinstance(value, list) else f"{value:.2f}" if isinstance(value, float) else value
    )


def _settings(outcome: Outcome) -> dict[str, Any]:
    """The settings of the run, without the API key."""
    plan = dataclasses.asdict(outcome.plan)
    del plan["key"]
    plan["urls"] = ", ".join(plan["urls"])
    plan["audio"] = ", ".join(path for path, _ in plan["audio"]) or "packaged recordings"
    plan["processes"] = outcome.plan.clients
    return plan


def _capacity(capacity: Capacity) -> list[str]:
    lines = ["## Capacity", "", "The rest of this report describes the run with the most streams that passed.", ""]
    rows = []
    for level in capacity.levels:
        tester = f"{level.busiest:.2f}" + (" (saturated)" if level.saturated else "")
        correct = f"{level.stats.right} of {level.stats.sessions}"
        rows.append(
            (level.plan.connections, correct, _time(level.finalisation), tester, "; ".join(level.why_not) or "pass")
        )
    return lines + _table(("streams", "correct", "finalisation p95", "tester, cores", "verdict"), rows)


def _numbers(outcome: Outcome, samples: bool) -> dict[str, Any]:
    stats = {each.name: getattr(outcome.stats, each.name) for each in dataclasses.fields(Stats)}
    stats["times"] = {name: times.summary() for name, times in outcome.stats.times.items()}
    stats["failed"] = outcome.stats.failed
    return {
        "passed": outcome.passed,
        "why_not": outcome.why_not,
        "begun": outcome.begun,
        "seconds": outcome.seconds,
        "throughput": outcome.throughput,
        "settings": _settings(outcome),
        **stats,
        "tester": {"busiest_cores": outcome.busiest, "saturated": outcome.saturated, "lag": outcome.lag.summary()},
        "errors_of_the_tester": outcome.errors,
        "redis": dict(zip(("before", "after"), outcome.redis, strict=True)),
        "memory_mib_a_minute": {
            name: {"slope": found.slope * 60, "noise": found.noise * 60, "memory": found.word.strip("*")}
            for name in _names(outcome)
            for found in (memory_trend(outcome, name),)
        },
        "samples": [dataclasses.asdict(sample) for sample in outcome.samples] if samples else None,
    }


# -- the pictures ----------------------------------------------------------------------------------------------------


def _names(outcome: Outcome) -> list[str]:
    """The names of the server's processes."""
    return sorted({name for sample in outcome.samples for name in sample.server})


def _series(outcome: Outcome, name: str) -> tuple[list[float], list[float], list[float]]:
    """The time series of a process: seconds, cores, MiB."""
    found = [(sample.at, sample.server[name]) for sample in outcome.samples if name in sample.server]
    return [at for at, _ in found], [cost.cores for _, cost in found], [cost.memory / 2**20 for _, cost in found]


@dataclasses.dataclass(frozen=True)
class Trend:
    """A least-squares line through values over time, per second: its slope, the noise of the slope (NaN if
    there are too few values), and the slope that a single step of the values would cause."""

    slope: float
    noise: float
    step: float = 0.0

    @property
    def word(self) -> str:
        if math.isnan(self.noise):
            return "too short to say"
        if self.slope <= self.noise:
            return "flat"
        return "flat to a MiB" if self.slope <= math.hypot(self.noise, self.step) else "**grows**"


def trend(times: list[float], values: list[float], step: float = 0.0) -> Trend:
    """Fit a line; the noise of its slope is two standard errors for the effective number of samples.

    With a correlation r between consecutive residuals, n values are worth n (1 - r) / (1 + r) independent ones
    (Bartlett 1935). A line through a single step is steepest if the step is in the middle: 1.5 steps over the whole
    time.

    Args:
        times: Seconds.
        values: Values at these times.
        step: The size of a single step that does not count as growth.
    """
    n = len(times)
    mean_t, mean_v = sum(times) / max(n, 1), sum(values) / max(n, 1)
    spread = sum((t - mean_t) ** 2 for t in times)
    if not spread:
        return Trend(0.0, math.nan)
    slope = sum((t - mean_t) * (v - mean_v) for t, v in zip(times, values, strict=True)) / spread
    left = [v - mean_v - slope * (t - mean_t) for t, v in zip(times, values, strict=True)]
    squares = sum(e * e for e in left)
    if n < MIN_TREND_SAMPLES:
        return Trend(slope, math.nan)
    r = max(0.0, sum(a * b for a, b in itertools.pairwise(left)) / squares) if squares else 0.0
    real = max(3.0, n * (1 - r) / (1 + r))
    error = math.sqrt(squares / (n - 2) / spread * n / real)
    return Trend(slope, 2 * error, 1.5 * step / (times[-1] - times[0]))


def memory_trend(outcome: Outcome, name: str) -> Trend:
    """The trend of a process's memory in MiB over the second half of the run, after warm-up."""
    times, _, memory = _series(outcome, name)
    half = len(times) // 2
    return trend(times[half:], memory[half:], ARENA)


def _draw(outcome: Outcome, pictures: dict[str, Path]) -> None:
    """Draw the plots; without pyplot, which would keep every figure and look for a display."""
    times = [sample.at for sample in outcome.samples]
    with mpl.rc_context({"axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = _figure("sessions and connections")
        for name in ("open", "active", "right", "failed"):
            axes.plot(times, [getattr(sample, name) for sample in outcome.samples], label=name)
        _save(figure, axes, pictures["load"])
        figure, axes = _figure("seconds")
        axes.plot(
            times, [sample.finalisation for sample in outcome.samples], ".-", label="finalisation, p95 of each interval"
        )
        for place, name in enumerate(("finalisation", "ack", "first_result", "result")):
            overall = outcome.stats.times[name].percentile(0.95)
            axes.axhline(
                overall,
                color=f"C{place}",
                ls=":",
                lw=1,
                label=f"{name.replace('_', ' ')}, p95 overall: {_time(overall)}",
            )
        _save(figure, axes, pictures["latency"])
        figure, axes = _figure("cores")
        for place, cores in enumerate(outcome.tester, 1):
            axes.plot(times, cores, "--", label=f"tester {place}")
        for name in _names(outcome):
            at, cores_, _ = _series(outcome, name)
            axes.plot(at, cores_, label=name)
        _save(figure, axes, pictures["cpu"])
        figure, axes = _figure("private resident MiB")
        for name in _names(outcome):
            at, _, memory = _series(outcome, name)
            found = memory_trend(outcome, name)
            axes.plot(at, memory, label=f"{name}: {found.slope * 60:+.2f} ± {found.noise * 60:.2f} per minute")
        _save(figure, axes, pictures["memory"])


def _figure(what: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_ylabel(what)
    axes.set_xlabel("seconds")
    return figure, axes


def _save(figure: Figure, axes: Any, path: Path) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small", frameon=False)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=DPI)
