"""The command line: run, gateway, worker, transcribe, status, loadtest, keys."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from asrserver import __version__
from asrserver.cli.loadtest import loadtest
from asrserver.cli.options import key_option, server_option, server_url
from asrserver.config import Settings, check, settings_options
from asrserver.errors import SettingError
from asrserver.process.limits import raise_file_limit

log = logging.getLogger("asrserver.cli")

#: Connections that wait to be accepted while a gateway is busy.
LISTEN_BACKLOG = 1024

#: Files that a gateway has open beside its clients' connections: libraries, Redis, PostgreSQL, recordings.
OTHER_FILES = 200

#: Seconds that an embedded server gets to stop.
SERVER_STOP = 20.0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version")
def main() -> None:
    """Streaming speech recognition: WebSocket in, text out, hundreds of streams on one machine.

    \b
    asrserver run --port 8080          everything on this machine, nothing to set up
    asrserver transcribe hello.wav     the text of a file, from that server
    asrserver status                   how it is
    asrserver loadtest -c 500          how much it can take, and whether all of it is right
    asrserver keys create NAME         an API key, for a server that others can reach
    """


@main.command()
@settings_options("run")
def run(**options: Any) -> None:
    """Run gateways, workers and, where none is configured, a Redis and a PostgreSQL of its own.

    Without REDIS_URL or REDIS_ADDR and without DATABASE_URL or DB_* the embedded servers keep their data in --data-dir.
    SIGTERM or Ctrl+C drains and stops, a second one stops at once; SIGTTIN and SIGTTOU add and remove a worker.
    """
    _supervise("run", options, gateways=True, workers=True)


@main.command()
@settings_options("gateway")
def gateway(**options: Any) -> None:
    """Run gateways only: WebSocket and REST, on a Redis and a PostgreSQL that are there."""
    _supervise("gateway", options, gateways=True, workers=False)


@main.command()
@settings_options("worker")
def worker(**options: Any) -> None:
    """Run workers only: recognition, for the gateways on the same Redis."""
    _supervise("worker", options, gateways=False, workers=True)


def _supervise(command: str, options: dict[str, Any], gateways: bool, workers: bool) -> None:
    from asrserver.supervisor.supervisor import Supervisor, with_device
    from asrserver.telemetry.logs import configure_logging

    try:
        settings = with_device(check(Settings(**options), command))
    except SettingError as exc:
        raise click.ClickException(str(exc)) from None
    configure_logging(settings.log_level, settings.log_format)
    files = raise_file_limit()
    if gateways and settings.max_connections + OTHER_FILES > files:
        log.warning(
            "a process may open %d files here, too few for --max-connections %d: raise the hard limit (ulimit -Hn, "
            "systemd's LimitNOFILE) to %d",
            files,
            settings.max_connections,
            settings.max_connections + OTHER_FILES,
        )
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(settings.host, settings.port)) if gateways else None
        if listener is not None:
            settings = replace(settings, port=listener.getsockname()[1])  # of 0, what the system chose
        _share_metrics(settings, stack)
        servers: list[Any] = []
        if command == "run" and not (settings.has_redis and settings.has_database):
            settings, servers = _start_servers(settings, stack)
        status = Supervisor(settings, listener, workers, servers).run()
    sys.exit(status)


def _share_metrics(settings: Settings, stack: ExitStack) -> None:
    """Where the children count, and the port that tells."""
    from asrserver.telemetry import multiprocess

    try:
        stack.enter_context(multiprocess.directory())
        if settings.metrics_port:
            stack.enter_context(multiprocess.port(settings.metrics_host, settings.metrics_port))
    except OSError as exc:
        place = f"--metrics-host {settings.metrics_host} --metrics-port {settings.metrics_port}"
        raise click.ClickException(f"metrics cannot be offered on {place}: {exc.strerror or exc}") from None


def _start_servers(settings: Settings, stack: ExitStack) -> tuple[Settings, list[Any]]:
    """Start the embedded servers for what is not configured; the settings that name them, and the servers."""
    from asrserver.embedded.data_dir import DataDir
    from asrserver.embedded.locate import EmbeddedError
    from asrserver.embedded.postgres import EmbeddedPostgres
    from asrserver.embedded.redis import EmbeddedRedis

    servers: list[Any] = []

    def start(server: Any) -> Any:
        stack.callback(server.stop, SERVER_STOP)
        server.start()
        servers.append(server)
        return server

    try:
        data_dir = stack.enter_context(DataDir(settings.data_path))
        if not settings.has_redis:
            memory, fsync = settings.embedded_memory << 20, settings.embedded_fsync
            redis = start(EmbeddedRedis(data_dir, maxmemory=memory, appendfsync=fsync))
            settings = replace(settings, redis_url=redis.url)
        if not settings.has_database:
            settings = replace(settings, database_url=start(EmbeddedPostgres(data_dir)).dsn)
    except EmbeddedError as exc:
        raise click.ClickException(str(exc)) from None
    return settings, servers


def _listen(host: str, port: int) -> socket.socket:
    """The socket that all gateways share, bound here: a second server on the port fails at once and by name."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        raise click.ClickException(f"cannot listen on --host {host} --port {port}: {exc.strerror or exc}") from None
    listener.listen(LISTEN_BACKLOG)
    listener.setblocking(False)
    return listener


@main.command()
@click.argument("files", nargs=-1, metavar="[FILE…]", type=click.Path(exists=True, dir_okay=False))
@server_option
@key_option
@click.option(
    "--realtime", is_flag=True, help="Send as fast as it would be spoken, not as fast as the server takes it."
)
@click.option(
    "--live", is_flag=True, help="Show the text as it forms; FILEs are sent in real time, without one a microphone is."
)
@click.option("--language", help="Language code such as en or zh; detected if not given.")
@click.option("--user", "user_id", default="", help="User id to store the sessions under.")
@click.option("--json", "as_json", is_flag=True, help="Print every event as a line of JSON instead of the text.")
@click.option("--progress/--no-progress", default=None, help="A progress bar on standard error [if it is a terminal].")
def transcribe(
    files: tuple[str, ...],
    server: str,
    key: str,
    realtime: bool,
    live: bool,
    language: str | None,
    user_id: str,
    as_json: bool,
    progress: bool | None,
) -> None:
    """Stream files to a server and print what was said.

    Any audio or video file that FFmpeg reads; it is decoded here and sent as 16 kHz PCM. Each file is a session. With
    several files each text is headed by its file's name. The exit status is 1 if a file could not be transcribed.

    With --live, what is stable of a text is shown in bold (where there is a terminal), and what is still a guess behind
    it; a microphone needs the extra mic (pip install 'asrserver[mic]').
    """
    options = {name: value for name, value in (("language", language), ("user_id", user_id)) if value}
    paths = [Path(name) for name in files]
    if live:
        from asrserver.cli.live import transcribe_live

        ok = asyncio.run(transcribe_live(paths, server_url(server, "ws", "/ws/asr"), options, key=key, as_json=as_json))
        sys.exit(0 if ok else 1)
    if not files:
        raise click.UsageError("Missing argument 'FILE…'; without one there is --live, from a microphone.")
    from asrserver.cli.transcribe import transcribe_files

    show = sys.stderr.isatty() if progress is None else progress
    ok = asyncio.run(
        transcribe_files(
            paths,
            [server_url(part.strip(), "ws", "/ws/asr") for part in server.split(",")],
            options,
            key=key,
            realtime=realtime,
            as_json=as_json,
            progress=show,
        )
    )
    sys.exit(0 if ok else 1)


@main.command()
@server_option
@key_option
@click.option("--json", "as_json", is_flag=True, help="Print the health document as it came.")
def status(server: str, key: str, as_json: bool) -> None:
    """Show gateways, workers, queue and health of a server; the exit status is 1 if something does not work."""
    from asrserver.cli.status import show_status

    sys.exit(0 if show_status(server_url(server.partition(",")[0], "http", "/api/v1/health"), key, as_json) else 1)


main.add_command(loadtest)


# -- keys ------------------------------------------------------------------------------------------------------------


@main.group()
def keys() -> None:
    """Create, list and revoke the API keys in a file; servers that run with it notice within a second or two."""


_keys_file = click.option(
    "--keys-file",
    "path",
    required=True,
    envvar="ASRSERVER_KEYS_FILE",
    show_envvar=True,
    type=click.Path(dir_okay=False),
    help="The file; made at the first key.",
)


def _limit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for flag, type_, text in (
        ("--audio-per-minute", click.FloatRange(min=0), "Seconds of audio recognised in a minute; 0 is no limit."),
        ("--starts-per-minute", click.IntRange(min=0), "Sessions started in a minute; 0 is no limit."),
        ("--sessions", click.IntRange(min=0), "Sessions open at a time; 0 is no limit."),
        ("--connections", click.IntRange(min=0), "Connections at a time; 0 is no limit."),
    ):
        function = click.option(flag, type=type_, help=text)(function)
    return function


@keys.command("create")
@click.argument("name")
@_keys_file
@_limit_options
@click.option("--operator", is_flag=True, help="Let it see and delete the sessions of all keys.")
def create_key(name: str, path: str, operator: bool, **limits: float | None) -> None:
    """Create a key called NAME and print it: this once, for only its hash is kept."""
    from asrserver.auth import KeyLimits, KeysFile

    given: dict[str, Any] = {limit: value for limit, value in limits.items() if value is not None}
    with _setting_errors():
        key, text = KeysFile(path).create(name, KeyLimits(**given), operator)
    click.echo(f"key {key.id} for {name}; it cannot be shown again:", err=True)
    click.echo(text)


@keys.command("list")
@_keys_file
def list_keys(path: str) -> None:
    """List the keys with their limits, without their secrets."""
    from asrserver.auth import KeysFile
    from asrserver.cli.status import table

    with _setting_errors():
        found = KeysFile(path).read()
    head = ("ID", "NAME", "CREATED", "STATE", "CONNECTIONS", "SESSIONS", "STARTS/MIN", "AUDIO s/MIN")
    rows = []
    for key in found:
        state = f"revoked {key.revoked}" if key.revoked else "operator" if key.operator else "valid"
        limits = (key.limits.connections, key.limits.sessions, key.limits.starts_per_minute)
        rows.append((key.id, key.name, key.created, state, *(n or "-" for n in (*limits, key.limits.audio_per_minute))))
    click.echo("\n".join(table(head, rows)) if rows else "no keys")


@keys.command("limit")
@click.argument("key_id", metavar="ID")
@_keys_file
@_limit_options
def limit_key(key_id: str, path: str, **limits: float | None) -> None:
    """Change limits of the key ID; those not given stay."""
    from asrserver.auth import KeysFile

    with _setting_errors():
        changed = KeysFile(path).limit(key_id, {name: value for name, value in limits.items() if value is not None})
    if changed is None:
        raise click.ClickException(f"there is no key {key_id} in {path}")


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@_keys_file
def revoke_key(key_id: str, path: str) -> None:
    """Revoke the key ID: it opens nothing from now on, and its connections are closed."""
    from asrserver.auth import KeysFile

    with _setting_errors():
        revoked = KeysFile(path).revoke(key_id)
    if revoked is None:
        raise click.ClickException(f"there is no key {key_id} in {path}")
    click.echo(f"key {key_id} is revoked", err=True)


@contextmanager
def _setting_errors() -> Iterator[None]:
    try:
        yield
    except SettingError as exc:
        raise click.ClickException(str(exc)) from None
    except OSError as exc:
        raise click.ClickException(f"{exc.filename}: {exc.strerror}") from None
