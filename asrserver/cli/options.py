"""Options that several commands share: those of clients of a server, and the settings of a server."""

from __future__ import annotations

import os
import ssl
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from asrserver.cli.help import Setting
from asrserver.config import COMMANDS, setting_rows

#: The path of the WebSocket.
WEBSOCKET = "/ws/asr"

server_option = click.option(
    "--server",
    envvar="ASRSERVER_SERVER",
    show_envvar=True,
    default="ws://127.0.0.1:8080",
    show_default=True,
    help="URL of the server: ws://, wss://, http:// or https://HOST:PORT. Of several, separated by commas, the next is "
    "used when a connection is lost.",
)


def _trust(_context: click.Context, _option: click.Parameter, path: str | None) -> None:
    """Let every TLS connection of this process, and of those that it starts, trust an authority.

    OpenSSL looks at this variable when it is asked for the default authorities.
    """
    if path:
        os.environ["SSL_CERT_FILE"] = path


ca_option = click.option(
    "--ca",
    envvar="ASRSERVER_CA",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False),
    expose_value=False,
    callback=_trust,
    help="Authority, or self-signed certificate, of a server with https or wss (PEM) [those of the system].",
)

key_option = click.option(
    "--key",
    envvar="ASRSERVER_KEY",
    show_envvar=True,
    default="",
    help="API key, if the server requires one; prefer the environment variable.",
)


#: OpenSSL's numbers for a certificate of another host, and of another address.
_OTHER_NAME = (62, 64)


class BadSetting(click.ClickException):
    """A setting that is refused. As after a wrong option, the same start would fail again: nobody need repeat it."""

    exit_code = click.UsageError.exit_code


def server_url(server: str, scheme: str, path: str) -> str:
    """The URL of a path on the first server that `--server` names.

    Args:
        server: What is named: a host and port, the address of the page, or that of the WebSocket. It may have a path,
            where a reverse proxy has the server below one.
        scheme: http or ws.
        path: A path of the server.

    Raises:
        ClickException: `server` is not a URL.
    """
    first = server.partition(",")[0].strip()
    try:
        parts = urlsplit(first if "//" in first else f"//{first}")
        parts.port  # noqa: B018  # is a number, and not too large
    except ValueError as exc:
        raise click.ClickException(f"--server: {first!r} is not a URL: {exc}") from None
    if not parts.hostname or parts.scheme not in ("", "ws", "wss", "http", "https"):
        raise click.ClickException(f"--server: {first!r} is not a URL of ws://, wss://, http:// or https://")
    if parts.query or parts.fragment:
        raise click.ClickException(f"--server: {first!r} has more than a path; a key is given by --key")
    secure = "s" if parts.scheme in ("wss", "https") else ""
    below = parts.path.rstrip("/").removesuffix(WEBSOCKET)
    return f"{scheme}{secure}://{parts.netloc}{below}{path}"


def websocket_urls(server: str) -> list[str]:
    """The URLs of the WebSockets of all servers that `--server` names; raises ClickException."""
    return [server_url(part, "ws", WEBSOCKET) for part in server.split(",")]


def advice(exc: object, secure: bool, key: str) -> str:
    """What to do, as the end of a message that says why a server cannot be reached.

    Args:
        exc: Why.
        secure: Whether it was asked by https or wss.
        key: The API key that it was shown.
    """
    if isinstance(exc, ConnectionRefusedError):
        return "; is it running (asrserver run), and on this port?"
    if getattr(exc, "status", None) == 401:
        return "; it does not know this key" if key else "; set --key or ASRSERVER_KEY"
    if isinstance(exc, ssl.SSLCertVerificationError):
        if exc.verify_code in _OTHER_NAME:
            return "; --server must name it as the certificate does"
        return "; is its authority, or the certificate itself, one for --ca or ASRSERVER_CA?"
    if getattr(exc, "status", None) == 404:
        return "; is it an asrserver, and its path right?"
    if secure and isinstance(exc, (ssl.SSLError, TimeoutError)):
        return "; does it serve http? then --server http://…"
    if not secure and isinstance(exc, ConnectionError):
        return "; does it serve https? then --server https://…"
    return ""


class _SettingOption(Setting):
    """A click option whose error for a bad value is one line that names the flag, variable or file key it came from."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().process_value(ctx, value)
        except click.BadParameter as exc:
            assert self.name
            source = ctx.get_parameter_source(self.name)
            name = {
                ParameterSource.ENVIRONMENT: str(self.envvar),
                ParameterSource.DEFAULT_MAP: f"{self.name} in the configuration file",
            }.get(source or ParameterSource.COMMANDLINE, self.opts[0])
            raise BadSetting(f"{name}: {exc.message}") from None


def settings_options(command: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds `--config` and the settings of a command's groups to a click command."""
    return group_options(*COMMANDS[command])


def group_options(*groups: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds `--config` and the settings of some groups to a click command."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for row in reversed([row for row in setting_rows() if row.group in groups]):
            function = click.option(
                row.flag,
                row.key,
                cls=_SettingOption,
                group=row.group,
                envvar=row.env,
                type=row.type,
                is_flag=row.type is bool,
                default=row.default,
                show_default=row.default != "" and row.type is not bool,
                show_envvar=True,
                help=row.help,
            )(function)
        return click.option(
            "--config",
            type=click.Path(dir_okay=False),
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            envvar="ASRSERVER_CONFIG",
            show_envvar=True,
            help="TOML file of settings; keys are flag names with underscores instead of hyphens.",
        )(function)

    return decorate


def _read_config(ctx: click.Context, _param: click.Parameter, path: str | None) -> None:
    """Use the values of a TOML file as defaults of the command; an unknown key is refused by name."""
    if path is None:
        return
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise BadSetting(f"--config: {path}: {exc}") from None
    known = {row.key for row in setting_rows()}
    for key, value in values.items():
        if key not in known:
            raise BadSetting(f"--config: {path}: {key} is not a setting")
        if isinstance(value, dict | list):
            raise BadSetting(f"--config: {path}: {key} must be one value")
    # As text, like a flag's value, so that click checks it: TOML's 8080.5 and true are not ports.
    ctx.default_map = {**(ctx.default_map or {}), **{key: str(value) for key, value in values.items()}}
