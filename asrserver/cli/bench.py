"""The command `asrserver bench`: what a model does on this machine."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from asrserver.cli.options import settings_options
from asrserver.cli.status import format_table
from asrserver.config import setting_rows
from asrserver.errors import AudioError, ModelError
from asrserver.loadtest.plan import Plan, duration
from asrserver.models import find_model
from asrserver.process.limits import available_cpus, raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asrserver.loadtest.sizing import Speed, Streams

#: The bound in seconds of the 95th percentile of finalisation.
BOUND = 2.0

#: The time of --quick in seconds.
QUICK = 60.0

#: The shares of the time after which no further level of the searches begins, without and with partial results; after
#: the second no further layout is measured.
SHARES = (0.45, 0.8)

#: Length of a level: this share of the time, up to a maximum in seconds.
LEVEL_SHARE = 0.08
LONGEST_LEVEL = 15.0

#: The load, as a share of the CPUs, above which the machine is not idle.
BUSY_SHARE = 0.3

#: Another layout of workers and threads is recommended if it is faster by this factor.
FASTER = 1.1


@click.command()
@settings_options("bench")
@click.option(
    "--audio",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A recording of people who speak, a minute or more, instead of the packaged, synthesised sentences.",
)
@click.option(
    "--talk-ratio",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.7,
    show_default=True,
    help="Share of the time in which a live stream has speech.",
)
@click.option(
    "--time",
    "seconds",
    type=duration(10.0),
    default="3m",
    show_default=True,
    help="Time that the measurement may take, about; a longer one is more exact.",
)
@click.option("--quick", is_flag=True, help=f"The same as --time {QUICK:g}s.")
@click.option(
    "--max-streams",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="Most live streams that are tried.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench(
    audio: Path | None, talk_ratio: float, seconds: float, quick: bool, max_streams: int, as_json: bool, **options: Any
) -> None:
    """Measure what a model does on this machine: speed on files, live streams carried, memory.

    Starts a server of its own with these settings, talks to it as clients do, and stops it. A number of streams is
    carried if all sessions succeed and 95 % of the final results come within 2 s. The clients run on this machine too.
    Stop everything else first. Needs the extras embedded and loadtest.
    """
    try:
        import asrserver.loadtest.sizing  # noqa: F401
    except ImportError as exc:
        raise click.ClickException(
            f"{exc.name} is not installed: asrserver bench needs the extra (pip install 'asrserver[loadtest]')"
        ) from None
    if "," in options["model"]:
        raise click.ClickException(f"--model {options['model']}: one model is measured at a time")
    began = time.monotonic()
    raise_file_limit()
    if (load := os.getloadavg()[0]) > BUSY_SHARE * available_cpus():
        click.echo(f"this machine is busy (load {load:.1f}): what is measured now is too low", err=True)
    try:
        model = find_model(options["model"])
        with tempfile.TemporaryDirectory(prefix="asrserver-bench-") as folder:
            os.chmod(folder, 0o755)  # PostgreSQL runs as another user for root
            measurement = _Measurement(
                folder=Path(folder),
                options=options,
                plan=Plan(
                    urls=(),
                    connections=max_streams,
                    talk_ratio=talk_ratio,
                    audio=_recording(audio, Path(folder)) if audio else (),
                    # The packaged sentences are made for the packaged model.
                    compared=audio is None and model.source == "package",
                    max_finalisation=BOUND,
                ),
                began=began,
                seconds=min(seconds, QUICK) if quick else seconds,
                audio=audio,
            )
            click.echo(measurement.heard, err=True)
            measurement.run()
    except (ModelError, RuntimeError) as exc:
        raise click.ClickException(str(exc)) from None
    if as_json:
        click.echo(json.dumps(measurement.numbers(model.name), indent=2))
    else:
        click.echo("\n".join(measurement.report(model.name)))
    sys.exit(130 if measurement.interrupted else 0)


def _recording(path: Path, folder: Path) -> tuple[tuple[str, str], ...]:
    """Cut a recording into sentences, as files in the folder; returns them without transcripts."""
    from asrserver.loadtest.speech import pieces

    found = []
    try:
        for number, piece in enumerate(pieces(path)):
            target = folder / f"{number}.wav"
            target.write_bytes(piece)
            found.append((str(target), ""))
    except (AudioError, OSError) as exc:
        raise click.ClickException(f"--audio {path}: {getattr(exc, 'strerror', None) or exc}") from None
    if not found:
        raise click.ClickException(f"--audio {path}: contains no audio")
    return tuple(found)


class _Measurement:
    """The measurement and its results."""

    def __init__(
        self,
        folder: Path,
        options: dict[str, Any],
        plan: Plan,
        began: float,
        seconds: float,
        audio: Path | None = None,
    ) -> None:
        self._folder = folder
        self._options = options
        self._plan = plan
        self._began = began
        self._seconds = seconds
        self._audio = audio
        self._servers = 0
        self.speeds: list[Speed] = []  # the first is that of the settings, the others are of other layouts
        self.streams: list[Streams] = []

    @property
    def interrupted(self) -> bool:
        return any(level.interrupted for found in self.streams for level in found.capacity.levels)

    @property
    def heard(self) -> str:
        """What it is measured with."""
        return f"measured with {self._audio or 'the synthesised sentences in the package'}"

    @property
    def device(self) -> str:
        return self.speeds[0].device

    @property
    def memory(self) -> int:
        """Private resident bytes of a worker."""
        return max([self.speeds[0].memory, *(found.memory for found in self.streams)])

    def _until(self, share: float) -> float:
        return self._began + share * self._seconds

    def run(self) -> None:
        """Measure the server with the settings, then its speed with other layouts of workers and threads."""
        from asrserver.loadtest.sizing import first_level, measure_streams
        from asrserver.loadtest.speech import load

        sentences = load(self._plan.audio, self._plan.compared)
        level = min(LONGEST_LEVEL, LEVEL_SHARE * self._seconds)
        with self._server(self._options) as home:
            speed = self._measure_speed(home, sentences, self._options["threads"])
            first = first_level(speed, self._plan.talk_ratio)
            for partials, share in zip((False, True), SHARES, strict=True):
                url = home.replace("http", "ws", 1) + "/ws/asr"
                plan = replace(self._plan, urls=(url,), partials=partials, duration=level, ramp=level / 5)
                self.streams.append(measure_streams(home, plan, speed.workers, first, self._until(share)))
                if self.interrupted:
                    return
                first = max(1, self.streams[-1].carried * 2 // 3)
        for workers, threads in self._layouts(speed.workers):
            if time.monotonic() < self._until(SHARES[-1]):
                with self._server({**self._options, "workers": workers, "threads": threads}) as home:
                    self._measure_speed(home, sentences, threads)

    def _layouts(self, workers: int) -> list[tuple[int, int]]:
        """Other layouts on the same CPUs, where the user left the choice to the server."""
        cpus = int(available_cpus())
        if self.device != "cpu" or self._options["workers"] or self._options["threads"] != 1:
            return []
        layouts = [(1, cpus), (cpus // 2, 2)] if cpus >= 4 else [(1, cpus)]
        return [layout for layout in layouts if layout != (workers, 1)]

    def _measure_speed(self, home: str, sentences: Any, threads: int) -> Speed:
        from asrserver.loadtest.sizing import measure_speed

        speed = measure_speed(home, sentences, threads)
        self.speeds.append(speed)
        click.echo(f"files with {_layout(speed)}: {speed.speed:.1f} times real time", err=True)
        return speed

    @contextmanager
    def _server(self, options: dict[str, Any]) -> Iterator[str]:
        """A server with these settings, whatever the environment says of others."""
        from asrserver.loadtest.private_server import private_server

        rows = setting_rows()
        ours = {"ASRSERVER_CONFIG", *(row.env for row in rows)}
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        environment |= {row.env: str(options[row.key]) for row in rows if row.key in options}
        self._servers += 1
        directory = self._folder / f"server-{self._servers}"
        directory.mkdir(mode=0o755)
        with private_server(directory, environment, "--embedded-fsync", "no") as home:
            yield home

    # -- what comes out --------------------------------------------------------------------------------------------

    def numbers(self, model: str) -> dict[str, Any]:
        """All figures."""
        return {
            "model": model,
            "audio": str(self._audio) if self._audio else None,
            "device": self.device,
            "talk_ratio": self._plan.talk_ratio,
            "worker_memory_bytes": self.memory,
            "files": [
                {"workers": speed.workers, "threads": speed.threads, "times_real_time": round(speed.speed, 2)}
                for speed in self.speeds
            ],
            "streams": [
                {
                    "partials": found.partials,
                    "carried": found.carried,
                    "too_many": found.capacity.limit,
                    "busy": _number(found.busy),
                    "thrown_away": _number(found.wasted),
                    "levels": [
                        {
                            "streams": level.plan.connections,
                            "passed": level.passed,
                            "finalisation_p95": _number(level.finalisation),
                        }
                        for level in found.capacity.levels
                    ],
                }
                for found in self.streams
            ],
        }

    def report(self, model: str) -> list[str]:
        """The tables, and the lines for sizing."""
        lines = [f"{model} on {self.device}, {available_cpus():g} CPUs, {self.memory / 2**20:.0f} MiB per worker"]
        lines += [self.heard, ""]
        rows = [(_layout(speed), f"{speed.speed:.1f}") for speed in self.speeds]
        lines += [*format_table(("FILES", "TIMES REAL TIME"), rows), ""]
        head = ("LIVE STREAMS", "CARRIED", "TOO MANY", "FINAL RESULT P95", "ENGINE BUSY", "THROWN AWAY")
        lines += [*format_table(head, [_row(found) for found in self.streams]), ""]
        return [*lines, *self._advice(model)]

    def _advice(self, model: str) -> Iterator[str]:
        if self.interrupted:
            yield "Interrupted: the figures are not complete."
        if not (self._audio or self._plan.compared):
            yield (
                f"No person speaks in it: models like {model} are unsure of many such sentences and search them again. "
                "Clear speech of people mostly costs less, noisy speech may cost more. Measure yours: --audio FILE."
            )
        speed = self.speeds[0]
        yield f"Files: {speed.speed:.1f} hours of speech an hour."
        fastest = max(self.speeds, key=lambda other: other.speed)
        if fastest.speed > FASTER * speed.speed:
            yield f"Faster for files: --workers {fastest.workers} --threads {fastest.threads}."
        for found in self.streams:
            kind = "with partial results" if found.partials else "without partial results"
            if not found.carried:
                yield f"Streams {kind}: none."
                continue
            spare = max(1, found.carried * 3 // 4)
            most = "" if found.capacity.limit else "at least "
            yield (
                f"Streams {kind}: {most}{found.carried} that speak {self._plan.talk_ratio:.0%} of the time. With a "
                f"quarter in reserve, plan for {spare}; 100 streams need {math.ceil(100 / spare)} such machines."
            )


def _layout(speed: Speed) -> str:
    workers = f"{speed.workers} worker{'s' if speed.workers > 1 else ''}"
    return f"{workers} of {speed.threads} thread{'s' if speed.threads > 1 else ''}"


def _row(found: Streams) -> tuple[str, ...]:
    """A line of the table of streams."""
    shown = found.capacity.shown
    late = f"{shown.finalisation:.2f} s" if shown.finalisation == shown.finalisation else "–"
    return (
        "with partial results" if found.partials else "without",
        str(found.carried),
        str(found.capacity.limit or "–"),
        late,
        _share(found.busy),
        _share(found.wasted),
    )


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0%}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
