"""The command `asrserver status`: it prints a server's health document as tables."""

from __future__ import annotations

import json
import time
import urllib.error
from typing import Any

import click

from asrserver.broker.fullness import FULL_FOR_SESSIONS
from asrserver.cli.options import advice
from asrserver.models import TOY_NOTICE

#: Seconds to wait for the server's answer; the server checks its parts for two seconds at most.
ANSWER_TIMEOUT = 5.0


def show_status(url: str, key: str, as_json: bool) -> bool:
    """Print the health of a server.

    Args:
        url: The URL of its health document.
        key: The API key, if the server requires one.
        as_json: Print the document itself instead of tables.

    Returns:
        Whether all parts of the server work.

    Raises:
        ClickException: The server does not answer, or refuses.
    """
    from asrserver.client.rest import open_url  # Tornado is behind it, and half of the time that --help takes

    try:
        with open_url(url, key, ANSWER_TIMEOUT) as response:
            body = response.read()
    except urllib.error.HTTPError as exc:
        body = exc.read()
        message = _message(body)
        if message or exc.code in (401, 403):
            cure = advice(exc, url.startswith("https"), key)
            raise click.ClickException(f"{url} refuses access: {message or exc}{cure}") from None
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", exc)
        raise click.ClickException(
            f"{url} does not answer: {reason}{advice(reason, url.startswith('https'), key)}"
        ) from None
    try:
        health = json.loads(body)
        ok: bool = health["status"] == "ok"
    except (ValueError, KeyError, TypeError):
        raise click.ClickException(f"{url} is not an asrserver") from None
    if as_json:
        click.echo(json.dumps(health, indent=2))
    else:
        click.echo("\n".join(format_health(health)))
    return ok


def _message(body: bytes) -> str:
    """What an error of the server says; "" if it is none."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def format_health(health: dict[str, Any]) -> list[str]:
    """The lines that `asrserver status` prints for a health document."""
    result = [f"status    {health['status']}"]
    for part in ("redis", "postgres"):
        state = health[part]
        latency = f", {state['latency_ms']:.1f} ms" if "latency_ms" in state else ""
        result.append(f"{part:<9} " + (f"ready{latency}" if state["ready"] else state.get("error", "not ready")))
        result += [f"  {_format_shard(shard)}" for shard in state.get("shards", ())]
    if error := health.get("recognition", {}).get("error"):
        result.append(f"workers   {error}")
    if queue := health["queue"]:
        result.append(
            f"queue     {queue['waiting']} sessions waiting, {queue['processing']} with a worker, "
            f"{queue['dead']} dead letters"
        )
    result += [f"warning   {text}" for text in health.get("warnings", ())]
    result += [f"warning   Redis: {text}" for text in health["redis"].get("warnings", ())]
    result += [f"help      docs/{page}" for page in pages(health)]
    if "gateways" not in health:
        return [*result, "", "gateways and workers are shown to an operator's key", *_format_models(health["models"])]
    return [
        *result,
        "",
        *_format_gateways(health["gateways"], time.time()),
        "",
        *_format_workers(health["workers"], time.time()),
        *_format_models(health.get("models", [])),
    ]


def pages(health: dict[str, Any]) -> list[str]:
    """The pages of the documentation that say what to do about what is wrong."""
    servers = [health["redis"], *health["redis"].get("shards", ())]
    fullest, warnings = max(server.get("memory_ratio", 0.0) for server in servers), health.get("warnings", ())
    found = {
        "run/troubleshooting.md#redis-is-away": not all(server["ready"] for server in servers),
        "run/troubleshooting.md#redis-is-full": fullest >= FULL_FOR_SESSIONS,
        "reference/redis.md#requirements": bool(health["redis"].get("warnings")),
        "run/troubleshooting.md#postgresql-is-away-or-slow": not health["postgres"]["ready"],
        "run/troubleshooting.md#no-text-at-all": not health.get("recognition", {}).get("ready", True),
        "run/troubleshooting.md#a-worker-dies-again-and-again": health["queue"].get("dead", 0) > 0,
        "models.md": TOY_NOTICE in warnings,
        "run/upgrade.md": any(text != TOY_NOTICE for text in warnings),
    }
    return [page for page, helps in found.items() if helps]


def _format_gateways(gateways: list[dict[str, Any]], now: float) -> list[str]:
    head = ("GATEWAY", "PID", "VERSION", "UP", "CONNECTIONS", "SESSIONS", "TO STORE", "SEEN")
    rows = [
        (g["name"], *_process(g, now), g["connections"], g["sessions"], g["to_store"], f"{now - g['time']:.0f} s ago")
        for g in gateways
    ]
    return format_table(head, rows) if rows else ["no gateway is alive"]


def _format_workers(workers: list[dict[str, Any]], now: float) -> list[str]:
    head = (
        "WORKER", "PID", "VERSION", "UP", "MODEL", "DEVICE", "STATE", "SESSIONS", "FINISHED", "BACKLOG", "RTF", "SEEN",
    )  # fmt: skip
    rows = [
        (
            w["name"],
            *_process(w, now),
            w["model"],
            w["device"],
            "drained" if w.get("drained") else "serving",
            w["sessions"],
            w["finished"],
            f"{w['backlog']:.1f} s",
            f"{w['real_time_factor']:.3f}",
            f"{now - w['time']:.0f} s ago",
        )
        for w in workers
    ]
    return format_table(head, rows) if rows else ["no worker is alive"]


def _process(state: dict[str, Any], now: float) -> tuple[Any, ...]:
    """The cells that are the same for every process; one of an earlier version does not say all of them."""
    return state["pid"], state.get("version", "-"), elapsed(now - state["started"]) if "started" in state else "-"


def elapsed(seconds: float) -> str:
    """A time in its largest two units, such as 3 d 4 h."""
    seconds = max(0.0, seconds)
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"


def _format_shard(shard: dict[str, Any]) -> str:
    if not shard["ready"]:
        return f"{shard['name']}: {shard['error']}"
    return (
        f"{shard['name']}: ready, {shard['latency_ms']:.1f} ms, {shard['waiting']} sessions waiting, "
        f"{shard['processing']} with a worker, {shard['workers']} workers, {shard['memory_ratio']:.0%} of its memory"
    )


def _format_models(models: list[dict[str, Any]]) -> list[str]:
    rows = [
        (
            model["name"],
            model["workers"],
            model["loaded"],
            ", ".join(model["compute_types"]) or "-",
            f"{model['size_bytes'] / 2**20:,.0f} MiB",
            ", ".join(model["languages"]) if len(model["languages"]) < 4 else len(model["languages"]),
            model["sessions"],
        )
        for model in models
    ]
    head = ("MODEL", "WORKERS", "LOADED", "COMPUTE TYPE", "WEIGHTS", "LANGUAGES", "SESSIONS")
    return ["", *format_table(head, rows)] if rows else []


def format_table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """Align rows below their headings.

    Args:
        head: The headings.
        rows: Cells of any type, as many per row as there are headings.

    Returns:
        The lines.
    """
    cells = [head, *(tuple(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
