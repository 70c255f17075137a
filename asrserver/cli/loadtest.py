"""The command `asrserver loadtest`: its options, and its exit status."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from asrserver.cli.options import key_option, server_option, server_url
from asrserver.errors import SettingError
from asrserver.loadtest.plan import LENGTHS, Plan, duration
from asrserver.process.limits import raise_file_limit

#: Seconds of finalisation, p95, that the search for the capacity allows where nothing else is said.
CAPACITY_BOUND = 2.0


def _audio_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--audio",
        nargs=2,
        multiple=True,
        metavar="FILE TEXT",
        type=(click.Path(exists=True, dir_okay=False), str),
        help="A recording of your own and what is said in it (@FILE reads that from a file), in place of those of the "
        "package; repeatable.",
    )(function)


@click.command()
@server_option
@key_option
@click.option("-c", "--connections", type=click.IntRange(1, 100_000), default=500, show_default=True, help="Clients.")
@click.option(
    "-d",
    "--duration",
    type=duration(1.0),
    default="60s",
    show_default=True,
    help="30s, 5m, 1h, …: no session begins later, and those that are open end with the sentence that is being said.",
)
@click.option(
    "--mode",
    type=click.Choice(list(LENGTHS)),
    default="short",
    show_default=True,
    help="Length of a session: 20 s, half an hour, an hour. They follow each other on each connection.",
)
@click.option(
    "--protocol-mode",
    type=click.Choice(["stream", "chunk"]),
    default="stream",
    show_default=True,
    help="stream: 100 ms frames of PCM, speech and the quiet between; chunk: a WAV a sentence.",
)
@click.option("--partials", is_flag=True, help="Ask for partial results.")
@click.option(
    "--realtime/--burst",
    default=True,
    show_default=True,
    help="Send as fast as it would be spoken, or all of a session's audio at once.",
)
@click.option(
    "--ramp", type=duration(), default="5s", show_default=True, help="Time over which the connections are made."
)
@click.option(
    "--talk-ratio",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Share of the time in which somebody speaks.",
)
@_audio_option
@click.option("--language", default="", help="Language of the sessions; the server detects it if not given.")
@click.option(
    "--sessions",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Sessions of each connection; 0 is as many as the duration has room for.",
)
@click.option(
    "--timeout",
    type=duration(1.0),
    default="60s",
    show_default=True,
    help="Time without a word from a server that owes one after which a session has failed.",
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
    help="Time in which 95 % of the sessions must have their final result, or the test has failed [with "
    f"--find-capacity: {CAPACITY_BOUND:g}s].",
)
@click.option(
    "--find-capacity",
    is_flag=True,
    help="Look for the most streams with which a run of --duration still passes; --connections is the most tried.",
)
@click.option(
    "--processes",
    type=click.IntRange(0, 256),
    default=0,
    show_default=True,
    help="Processes with clients; 0 is one for 250 connections, and no more than cores.",
)
@click.option(
    "--server-pid",
    type=click.IntRange(1),
    multiple=True,
    help="A process of the server, on this host, to measure with its children; repeatable [found by its health].",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Who says what follows from it.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    default="loadtest_report.md",
    show_default=True,
    help="File of the report; JSON and pictures are written beside it.",
)
def loadtest(**options: Any) -> None:
    """Have many clients talk to a server at once, and judge every word that comes back.

    A session succeeds only when its final text is what was said, and every chunk was acknowledged and answered once.
    The exit status is 0 only then, for all sessions of all connections; a report says the rest. It needs the extra
    loadtest (pip install 'asrserver[loadtest]').
    """
    server, report, pids = options.pop("server"), options.pop("report"), options.pop("server_pid")
    capacity, bound = options.pop("find_capacity"), options.pop("max_finalisation")
    urls = tuple(server_url(part.strip(), "ws", "/ws/asr") for part in server.split(","))
    home = server_url(server.partition(",")[0], "http", "")
    plan = Plan(
        urls=urls,
        audio=tuple((path, _transcript(path, text)) for path, text in options.pop("audio")),
        max_finalisation=bound or (CAPACITY_BOUND if capacity else 0.0),
        **options,
    )
    if not report.absolute().parent.is_dir():
        raise click.ClickException(f"--report: {report.parent} is no directory")
    for pid in pids:
        if not Path(f"/proc/{pid}").exists():
            raise click.ClickException(f"--server-pid: there is no process {pid}")
    sys.exit(0 if _run(plan, home, pids, report, capacity) else 1)


def _transcript(path: str, text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise click.ClickException(f"--audio {path}: {text[1:]}: {getattr(exc, 'strerror', None) or exc}") from None


def _run(plan: Plan, home: str, pids: tuple[int, ...], path: Path, search: bool) -> bool:
    """Whether it passed; raises ClickException."""
    try:
        from asrserver.loadtest import host, report, runner
        from asrserver.loadtest.dashboard import screen
    except ImportError as exc:
        raise click.ClickException(
            f"{exc.name} is not installed: asrserver loadtest needs pip install 'asrserver[loadtest]'"
        ) from None
    from asrserver.loadtest.speech import Scripts, load

    raise_file_limit()
    try:
        scripts = Scripts(load(plan.audio), plan)
    except SettingError as exc:
        raise click.ClickException(str(exc)) from None
    asyncio.run(_knock(plan))
    if not scripts.told_apart:
        click.echo("the recordings are too few to tell sessions apart: a swapped text would not be noticed", err=True)
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
    """As it was typed, without the key."""
    words = ["asrserver", *sys.argv[1:]]
    for place, word in enumerate(words):
        if word == "--key" and place + 1 < len(words):
            words[place + 1] = "…"
        elif word.startswith("--key="):
            words[place] = "--key=…"
    return shlex.join(words)


async def _knock(plan: Plan) -> None:
    """One connection, before there are many: an error that all would have is told once. Raises ClickException."""
    from asrserver.cli.transcribe import connect

    for url in plan.urls:
        client = await connect([url], plan.key)
        await client.close()
