"""The command `asrserver loadtest`: its options and its exit status."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from asrserver.cli.options import ca_option, key_option, server_option, server_url, websocket_urls
from asrserver.errors import SettingError
from asrserver.loadtest.plan import LENGTHS, Plan, duration
from asrserver.process.limits import raise_file_limit

#: Default bound in seconds of the 95th percentile of finalisation in the search for the capacity.
CAPACITY_BOUND = 2.0


def _audio_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--audio",
        nargs=2,
        multiple=True,
        metavar="FILE TEXT",
        type=(click.Path(exists=True, dir_okay=False), str),
        help="A recording and its transcript (@FILE reads it from a file), instead of packaged ones; repeatable.",
    )(function)


@click.command()
@server_option
@key_option
@ca_option
@click.option(
    "-c",
    "--connections",
    type=click.IntRange(1, 100_000),
    default=500,
    show_default=True,
    help="Number of connections.",
)
@click.option(
    "-d",
    "--duration",
    type=duration(1.0),
    default="60s",
    show_default=True,
    help="30s, 5m, 1h, …: then no session starts, and open sessions end after the sentence being sent.",
)
@click.option(
    "--mode",
    type=click.Choice(list(LENGTHS)),
    default="short",
    show_default=True,
    help="Length of the sessions, which follow each other on each connection: 20 s, half an hour, an hour.",
)
@click.option(
    "--protocol-mode",
    type=click.Choice(["stream", "chunk"]),
    default="stream",
    show_default=True,
    help="stream: 100 ms frames of PCM, with pauses. chunk: one WAV per sentence.",
)
@click.option("--partials", is_flag=True, help="Request partial results.")
@click.option(
    "--realtime/--burst",
    default=True,
    show_default=True,
    help="Send in real time, or all audio of a session at once.",
)
@click.option(
    "--ramp", type=duration(), default="5s", show_default=True, help="Time over which the connections are opened."
)
@click.option(
    "--talk-ratio",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Share of the time with speech.",
)
@_audio_option
@click.option("--language", default="", help="Language of the sessions [detected by the server].")
@click.option(
    "--sessions",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Sessions per connection. 0: as many as fit into the duration.",
)
@click.option(
    "--timeout",
    type=duration(1.0),
    default="60s",
    show_default=True,
    help="Time without a pending answer of the server after which a session has failed.",
)
@click.option(
    "--max-word-errors",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    help="Share of a session's words that may be wrong.",
)
@click.option(
    "--max-finalisation",
    type=duration(0.001),
    help="Maximum 95th percentile of the time from finish to final result [with --find-capacity: "
    f"{CAPACITY_BOUND:g}s].",
)
@click.option(
    "--find-capacity",
    is_flag=True,
    help="Find the largest number of streams for which a run of --duration passes, up to --connections.",
)
@click.option(
    "--processes",
    type=click.IntRange(0, 256),
    default=0,
    show_default=True,
    help="Client processes. 0: one per 250 connections, at most one per core.",
)
@click.option(
    "--server-pid",
    type=click.IntRange(1),
    multiple=True,
    help="Process of a server on this host to measure, with its children; repeatable [found by its health].",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the choice of sentences.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    default="loadtest_report.md",
    show_default=True,
    help="File of the report; JSON and plots are written beside it.",
)
def loadtest(**options: Any) -> None:
    """Stream to a server on many connections at once, and check every word of every transcript.

    A session succeeds only if its final text is right and every chunk was acknowledged and answered exactly once. The
    exit status is 0 only if all sessions of all connections succeed. Needs the extra loadtest.
    """
    server, report, pids = options.pop("server"), options.pop("report"), options.pop("server_pid")
    capacity, bound = options.pop("find_capacity"), options.pop("max_finalisation")
    urls = tuple(websocket_urls(server))
    home = server_url(server, "http", "")
    plan = Plan(
        urls=urls,
        audio=tuple((path, _transcript(path, text)) for path, text in options.pop("audio")),
        max_finalisation=bound or (CAPACITY_BOUND if capacity else 0.0),
        **options,
    )
    if not report.absolute().parent.is_dir():
        raise click.ClickException(f"--report: {report.parent} is not a directory")
    for pid in pids:
        if not Path(f"/proc/{pid}").exists():
            raise click.ClickException(f"--server-pid: no process {pid}")
    sys.exit(0 if _run(plan, home, pids, report, capacity) else 1)


def _transcript(path: str, text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise click.ClickException(f"--audio {path}: {text[1:]}: {getattr(exc, 'strerror', None) or exc}") from None


def _run(plan: Plan, home: str, pids: tuple[int, ...], path: Path, search: bool) -> bool:
    """Run the test and write the report; whether it passed. Raises ClickException."""
    try:
        from asrserver.loadtest import host, report, runner
        from asrserver.loadtest.dashboard import screen
    except ImportError as exc:
        raise click.ClickException(
            f"{exc.name} is not installed: asrserver loadtest needs the extra (pip install 'asrserver[loadtest]')"
        ) from None
    import asyncio

    from asrserver.loadtest.speech import Scripts, load

    raise_file_limit()
    try:
        scripts = Scripts(load(plan.audio), plan)
    except SettingError as exc:
        raise click.ClickException(str(exc)) from None
    asyncio.run(_check_connection(plan))
    if not scripts.told_apart:
        click.echo("too few recordings to distinguish sessions: a swapped transcript would go unnoticed", err=True)
    about = host.describe(home, plan.key)
    processes = host.ServerProcesses(home, plan.key, pids)
    shown = screen()
    try:
        found = runner.find_capacity(plan, processes, shown) if search else None
        outcome = found.shown if found else runner.run(plan, processes, shown)
    except RuntimeError as exc:
        raise click.ClickException(str(exc)) from None
    finally:
        shown.close()
    try:
        report.write(path, outcome, about, _command(), found)
    except OSError as exc:
        raise click.ClickException(f"--report {path}: {exc.strerror or exc}") from None
    said = report.verdict(outcome, found)
    click.echo(said)
    for line in report.notes(outcome):
        click.echo(f"  {line}")
    click.echo(f"  report: {path}")
    return said.startswith("PASS")


def _command() -> str:
    """The command line, without the API key."""
    words = ["asrserver", *sys.argv[1:]]
    for place, word in enumerate(words):
        if word == "--key" and place + 1 < len(words):
            words[place + 1] = "…"
        elif word.startswith("--key="):
            words[place] = "--key=…"
    return shlex.join(words)


async def _check_connection(plan: Plan) -> None:
    """Open one connection before there are many, so that a common error is reported once. Raises ClickException."""
    from asrserver.cli.files import connect

    for url in plan.urls:
        client = await connect([url], plan.key)
        await client.close()
