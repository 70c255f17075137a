"""The command line: run, gateway, worker, transcribe, status, doctor, bench, loadtest, keys, models."""

from __future__ import annotations

import difflib
import errno
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from gettext import ngettext
from importlib import import_module
from typing import Any

import click

from asrserver import __version__
from asrserver.auth.addresses import is_loopback
from asrserver.cli.help import SettingsCommand
from asrserver.cli.language import Program
from asrserver.cli.options import BadSetting, ca_option, key_option, server_option, server_url, settings_options
from asrserver.cli.startup import check_settings
from asrserver.config import Settings
from asrserver.errors import ModelError, SettingError
from asrserver.models import PACKAGED, TOY_NOTICE, find_model
from asrserver.process.limits import raise_file_limit

log = logging.getLogger("asrserver.cli")

#: Connections that the kernel queues until a gateway accepts them.
LISTEN_BACKLOG = 1024


#: Seconds that an embedded server may take to stop.
SERVER_STOP_TIMEOUT = 20.0


#: The commands that other modules of this package define, by name.
ELSEWHERE = {
    "backup": "backup",
    "bench": "bench",
    "db": "db",
    "doctor": "doctor",
    "drain": "drain",
    "import-kikipounamu": "imports",
    "keys": "keys",
    "loadtest": "loadtest",
    "models": "models",
    "recordings": "recordings",
    "restore": "backup",
    "transcribe": "transcribe",
}


class Commands(Program):
    """Imports a command's module when it is used: a supervisor runs for months with what it has imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:  # click looks for the nearest one among those that are imported
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            if not near:
                raise
            hint = ngettext("Did you mean {possibility}?", "(Did you mean one of: {possibilities}?)", 1)
            raise click.UsageError(f"{exc.message} {hint.format(possibility=repr(near[0]))}", exc.ctx) from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(
            import_module(f"asrserver.cli.{ELSEWHERE[cmd_name]}"), cmd_name.replace("-", "_")
        )
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version", prog_name="asrserver")
def main() -> None:
    """Streaming speech recognition: WebSocket in, text out, hundreds of streams on one machine.

    \b
    asrserver run --port 8080          run everything on this machine, without configuration
    asrserver transcribe FILE          transcribe an audio or video file with that server
    asrserver status                   show its health
    asrserver doctor                   check this machine and the settings before it is started
    asrserver bench                    measure what a model does on this machine: streams carried, speed, memory
    asrserver loadtest -c 500          measure how many streams it carries, and check every transcript
    asrserver keys create NAME         create an API key, for a server that other machines can reach
    """


@main.command(cls=SettingsCommand)
@settings_options("run")
def run(**options: Any) -> None:
    """Run gateways and workers on this machine, with an embedded Redis and PostgreSQL if none is configured.

    A Redis is configured by REDIS_URL or REDIS_ADDR, a PostgreSQL by DATABASE_URL or DB_*. The embedded servers keep
    their data in --data-dir. SIGTERM or Ctrl+C drains and stops, a second one stops at once; SIGHUP replaces all
    processes one at a time; SIGTTIN adds a worker, SIGTTOU removes one.
    """
    _supervise("run", options, gateways=True, workers=True)


@main.command(cls=SettingsCommand)
@settings_options("gateway")
def gateway(**options: Any) -> None:
    """Run gateways only (WebSocket and REST), on an existing Redis and PostgreSQL."""
    _supervise("gateway", options, gateways=True, workers=False)


@main.command(cls=SettingsCommand)
@settings_options("worker")
def worker(**options: Any) -> None:
    """Run workers only (recognition), for the gateways on the same Redis."""
    _supervise("worker", options, gateways=False, workers=True)


def _supervise(command: str, options: dict[str, Any], gateways: bool, workers: bool) -> None:
    from asrserver.supervisor.devices import with_device
    from asrserver.supervisor.supervisor import Supervisor
    from asrserver.telemetry.logs import configure_logging

    try:
        settings = with_device(check_settings(Settings(**options), command))
    except SettingError as exc:
        raise BadSetting(str(exc)) from None
    configure_logging(settings.log_level, settings.log_format)
    files = raise_file_limit()
    if gateways and settings.wanted_files > files:
        log.warning(
            "open file limit %d is too low for --max-connections %d: raise the hard limit (ulimit -Hn, systemd's "
            "LimitNOFILE) to %d",
            files,
            settings.max_connections,
            settings.wanted_files,
        )
    with ExitStack() as stack:
        listeners = _listen_all(settings, stack) if gateways else {}
        if listeners:
            # With port 0, the one that the system chose.
            settings = replace(settings, port=listeners["http"].getsockname()[1])
        if workers:  # before anything is started, and after the port: a port in use is told before a long download
            settings = replace(settings, model=_find_models(settings.models))
        _share_metrics(settings, stack)
        servers: list[Any] = []
        if command == "run" and not (settings.has_redis and settings.has_database):
            settings, servers = _start_servers(settings, stack)
        on_ready = _announcement(settings, stack) if "wyoming" in listeners else lambda: None
        status = Supervisor(settings, listeners, workers, servers, on_ready).run()
    sys.exit(status)


def _find_models(names: list[str]) -> str:
    """Resolve the setting `model`, and fetch the models if need be, before anything is started."""
    from asrserver.supervisor.children import EXIT_BOOT

    try:
        found = [find_model(name).name for name in names]
    except ModelError as exc:
        log.critical("%s", exc)
        sys.exit(EXIT_BOOT)
    if found[0] in PACKAGED:
        log.warning(TOY_NOTICE)
    return ",".join(found)


def _share_metrics(settings: Settings, stack: ExitStack) -> None:
    """Set up the directory in which the processes share metrics, and the dedicated port if there is one."""
    from asrserver.telemetry import multiprocess

    try:
        stack.enter_context(multiprocess.directory())
        if settings.metrics_port:
            from asrserver.auth.addresses import HostNames
            from asrserver.telemetry.metrics_port import metrics_port

            names = HostNames(settings.allowed_hosts, settings.allowed_origins)
            stack.enter_context(metrics_port(settings.metrics_host, settings.metrics_port, names.allow))
    except OSError as exc:
        place = f"--metrics-host {settings.metrics_host} --metrics-port {settings.metrics_port}"
        raise click.ClickException(f"cannot serve metrics on {place}: {exc.strerror or exc}") from None


def _start_servers(settings: Settings, stack: ExitStack) -> tuple[Settings, list[Any]]:
    """Start embedded servers for what is not configured; return the settings with their URLs, and the servers."""
    from asrserver.embedded.data_dir import DataDir
    from asrserver.embedded.locate import EmbeddedError
    from asrserver.embedded.postgres import EmbeddedPostgres
    from asrserver.embedded.redis import EmbeddedRedis

    servers: list[Any] = []

    def start(server: Any) -> Any:
        stack.callback(server.stop, SERVER_STOP_TIMEOUT)
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


def _announcement(settings: Settings, stack: ExitStack) -> Callable[[], None]:
    """What announces the Wyoming port in the local network, if the setting says so and it can be done."""
    from asrserver.supervisor.announcement import Announcement, is_possible

    host = settings.wyoming_host or settings.host
    if settings.zeroconf == "off" or is_loopback(host) or not is_possible():
        return lambda: None
    announcement = Announcement(host, settings.wyoming_port)
    stack.callback(announcement.close)
    return announcement.publish


def _listen_all(settings: Settings, stack: ExitStack) -> dict[str, socket.socket]:
    """The sockets that all gateways share, by protocol."""
    host, wyoming = settings.host, settings.wyoming_host or settings.host
    wanted = {"http": (host, settings.port, f"--host {host} --port {settings.port}")}
    for port in settings.further_ports:
        wanted[f"http-{port}"] = host, int(port), f"--host {host} --also-ports {port}"
    if settings.wyoming_port:
        place = f"--wyoming-host {wyoming} --wyoming-port {settings.wyoming_port}"
        wanted["wyoming"] = wyoming, settings.wyoming_port, place
    return {name: stack.enter_context(_listen(*which)) for name, which in wanted.items()}


def _listen(host: str, port: int, place: str) -> socket.socket:
    """A listening socket; bound here, so that a port in use fails at once with a clear message.

    Args:
        host: The address.
        port: The port; 0: any free one.
        place: The settings that say so.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        if exc.errno == errno.EADDRINUSE:
            reason += "; stop what listens there, or choose another"
        elif isinstance(exc, PermissionError):
            reason += "; ports below 1024 are for root: choose another, with a proxy in front or CAP_NET_BIND_SERVICE"
        raise click.ClickException(f"cannot listen on {place}: {reason}") from None
    listener.listen(LISTEN_BACKLOG)
    listener.setblocking(False)
    return listener


@main.command()
@server_option
@key_option
@ca_option
@click.option("--json", "as_json", is_flag=True, help="Print the health document as JSON.")
def status(server: str, key: str, as_json: bool) -> None:
    """Show the gateways, workers, queue and health of a server. The exit status is 1 if a part is not healthy."""
    from asrserver.cli.status import show_status

    sys.exit(0 if show_status(server_url(server, "http", "/api/v1/health"), key, as_json) else 1)
