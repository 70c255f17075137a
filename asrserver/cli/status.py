"""`asrserver status`: a server's health document as tables."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

import click

#: Seconds to wait for the server's answer; it probes its parts for at most two.
TIMEOUT = 5.0


def show_status(url: str, key: str, as_json: bool) -> bool:
    """Print it; whether everything works. Raises ClickException when there is no answer."""
    try:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            body = response.read()
    except urllib.error.HTTPError as exc:
        if exc.code in (401, 403):
            raise click.ClickException(f"{url}: {exc.code} {exc.reason}: give --key or ASRSERVER_KEY") from None
        body = exc.read()
    except (OSError, ValueError) as exc:
        raise click.ClickException(f"no answer from {url}: {getattr(exc, 'reason', exc)}") from None
    try:
        health = json.loads(body)
        ok: bool = health["status"] == "ok"
    except (ValueError, KeyError, TypeError):
        raise click.ClickException(f"{url} is no asrserver") from None
    if as_json:
        click.echo(json.dumps(health, indent=2))
    else:
        click.echo("\n".join(lines(health)))
    return ok


def lines(health: dict[str, Any]) -> list[str]:
    """The tables."""
    result = [f"status    {health['status']}"]
    for part in ("redis", "postgres"):
        state = health[part]
        result.append(f"{part:<9} " + (f"ready, {state['latency_ms']:.1f} ms" if state["ready"] else state["error"]))
    queue = health["queue"]
    if queue:
        result.append("queue     {waiting} sessions waiting, {processing} with a worker, {dead} buried".format(**queue))
    now = time.time()
    result += [
        "",
        *table(
            ("GATEWAY", "PID", "CONNECTIONS", "SESSIONS", "TO STORE", "SEEN"),
            [
                (g["name"], g["pid"], g["connections"], g["sessions"], g["to_store"], f"{now - g['time']:.0f} s ago")
                for g in health["gateways"]
            ],
        ),
    ]
    result += [
        "",
        *table(
            ("WORKER", "PID", "MODEL", "DEVICE", "SESSIONS", "FINISHED", "BACKLOG", "RTF", "SEEN"),
            [
                (
                    w["name"],
                    w["pid"],
                    w["model"],
                    w["device"],
                    w["sessions"],
                    w["finished"],
                    f"{w['backlog']:.1f} s",
                    f"{w['real_time_factor']:.3f}",
                    f"{now - w['time']:.0f} s ago",
                )
                for w in health["workers"]
            ],
        ),
    ]
    return result


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """Rows under their heads, in columns."""
    if not rows:
        return [f"no {head[0].lower()} is alive"]
    cells = [head, *(tuple(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
