"""The options of the commands that are clients of a server."""

from __future__ import annotations

from urllib.parse import urlsplit

import click

server_option = click.option(
    "--server",
    envvar="ASRSERVER_SERVER",
    show_envvar=True,
    default="ws://127.0.0.1:8080",
    show_default=True,
    help="The server: ws://HOST:PORT or http://HOST:PORT, wss and https likewise. Of several, comma-separated, "
    "the next one is taken when a connection is lost.",
)

key_option = click.option(
    "--key",
    envvar="ASRSERVER_KEY",
    show_envvar=True,
    default="",
    help="API key for the server, if it asks for one; better given by environment.",
)


def server_url(server: str, scheme: str, path: str) -> str:
    """The address of a path at a server, as `--server` names one; raises ClickException."""
    parts = urlsplit(server if "//" in server else f"//{server}")
    if not parts.netloc:
        raise click.ClickException(f"--server: {server!r} is not a URL")
    secure = "s" if parts.scheme in ("wss", "https") else ""
    return f"{scheme}{secure}://{parts.netloc}{path}"
