"""Options shared by the commands that are clients of a server."""

from __future__ import annotations

from urllib.parse import urlsplit

import click

server_option = click.option(
    "--server",
    envvar="ASRSERVER_SERVER",
    show_envvar=True,
    default="ws://127.0.0.1:8080",
    show_default=True,
    help="URL of the server: ws://, wss://, http:// or https://HOST:PORT. Of several, separated by commas, the next is "
    "used when a connection is lost.",
)

key_option = click.option(
    "--key",
    envvar="ASRSERVER_KEY",
    show_envvar=True,
    default="",
    help="API key, if the server requires one; prefer the environment variable.",
)


def server_url(server: str, scheme: str, path: str) -> str:
    """The URL of a path on the server that `--server` names.

    Raises:
        ClickException: `server` is not a URL.
    """
    parts = urlsplit(server if "//" in server else f"//{server}")
    if not parts.netloc:
        raise click.ClickException(f"--server: {server!r} is not a URL")
    secure = "s" if parts.scheme in ("wss", "https") else ""
    return f"{scheme}{secure}://{parts.netloc}{path}"
