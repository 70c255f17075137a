"""asrserver drain: move the live sessions of workers to other workers."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from asrserver.cli.options import BadSetting, settings_options
from asrserver.config import Settings
from asrserver.errors import SettingError, Unavailable

if TYPE_CHECKING:
    from asrserver.broker.drains import Drains

#: Seconds between two looks at the workers; a worker says how many sessions it has every two seconds.
LOOK_SECONDS = 0.5


@click.command()
@click.argument("workers", metavar="[WORKER]...", nargs=-1)
@click.option("--host", default="", help="All workers of the machine with this host name.")
@click.option("--undo", is_flag=True, help="Let them claim sessions again.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait until they have no session.",
)
@settings_options("drain")
def drain(workers: tuple[str, ...], host: str, undo: bool, timeout: float, **options: Any) -> None:
    """Move the live sessions of workers to other workers, without a gap, and let them claim no more.

    WORKER is a name that asrserver status shows. The workers idle until --undo, or until their server is started again.
    It works from any machine that reaches the server's Redis. Exit status: 0, they have no session; 1, they have
    after the timeout, and go on to hand them over; 2, nothing was changed.
    """
    settings = Settings(**options)
    if not settings.has_redis:
        raise BadSetting("set REDIS_URL; for the Redis that asrserver run starts: unix://DATA_DIR/redis/redis.sock")
    if not workers and not host:
        raise click.UsageError("name a WORKER or a --host")
    import asyncio  # 60 ms, which --help does not have

    try:
        sys.exit(0 if asyncio.run(_drain(settings.redis, set(workers), host, undo, timeout)) else 1)
    except (Unavailable, SettingError) as exc:
        raise BadSetting(str(exc)) from None


async def _drain(url: str, names: set[str], host: str, undo: bool, timeout: float) -> bool:
    """Ask the workers to drain and wait for it, or undo that; whether all is done."""
    from asrserver.broker.drains import drains

    async with drains(url) as asked:
        for name in asked.away:
            click.echo(
                f"the Redis {name} does not answer: nothing changes there, repeat this when it is back", err=True
            )
        alive = await asked.workers()
        chosen = {w["name"] for w in alive if w["name"] in names or (host and w["host"] == host)}
        if missing := sorted(names - chosen) or ([f"host {host}"] if not chosen else []):
            shown = ", ".join(w["name"] for w in alive) or "none"
            raise BadSetting(f"no such worker: {', '.join(missing)} (alive: {shown})")
        if undo:
            await asked.undo(chosen)
            click.echo(f"workers that claim again: {len(chosen)}")
            return True
        if lost := _untakeable(alive, chosen):
            raise BadSetting(f"no other worker could take sessions of {', '.join(lost)}: start one first")
        await asked.ask(chosen)
        return await _wait(asked, chosen, time.monotonic() + timeout)


async def _wait(asked: Drains, chosen: set[str], deadline: float) -> bool:
    """Print how far the drain is until the workers have no session, or until a time; whether they have none."""
    import asyncio

    before = ""
    while True:
        alive = await asked.workers()
        drained = [w for w in alive if w["name"] in chosen]
        left = sum(w["sessions"] for w in drained)
        line = _progress(alive, chosen, left)
        if line != before:
            click.echo(line)
            before = line
        if not left and all(w["drained"] for w in drained):
            return True
        if time.monotonic() > deadline:
            click.echo("they go on to hand them over, nothing is lost; --undo lets them keep what is left", err=True)
            return False
        await asyncio.sleep(LOOK_SECONDS)


def _untakeable(alive: list[dict[str, Any]], chosen: set[str]) -> list[str]:
    """The models of the chosen workers that no other worker offers."""
    offered = {True: set[str](), False: set[str]()}
    for worker in alive:
        if worker["name"] in chosen or not worker.get("drained"):
            offered[worker["name"] in chosen].update(model["name"] for model in worker["models"])
    return sorted(offered[True] - offered[False])


def _progress(alive: list[dict[str, Any]], chosen: set[str], left: int) -> str:
    """How far the drain is."""
    if not left:
        return "sessions left: 0"
    if _untakeable(alive, chosen):
        return f"sessions left: {left}; no other worker can take them, they go on where they are"
    return f"sessions left: {left}"
