"""`asrserver transcribe`: files to a server, as a live source would send them."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.files import duration, read_s16
from asrserver.client import Client, ClientSession, ConnectionLost, HandshakeRefused, ServerError
from asrserver.errors import AsrError

#: Bytes a second of what is sent: 16 kHz, 16 bits, mono.
BYTES_PER_SECOND = 2 * SAMPLE_RATE

#: Seconds of audio in a chunk: below a second, so that the chunks are pieces of one recording.
PIECE = 0.5

#: Pieces sent ahead of their results: bounds what waits on either side.
AHEAD = 64

#: What one source may fail with, and the others go on.
FAILURES = (AsrError, OSError, ServerError, ConnectionLost)


async def connect(urls: list[str], key: str) -> Client:
    """A client of the first of these servers that answers; raises ClickException."""
    try:
        return await Client.connect(urls, key=key)
    except (OSError, HandshakeRefused) as exc:
        raise click.ClickException(f"cannot connect to {' or '.join(urls)}: {exc}") from None


def complain(source: Path | str, exc: Exception) -> None:
    """Say on standard error what became of one source; the others go on."""
    reason = getattr(exc, "strerror", None) or str(exc) or "the connection ended"
    click.echo(f"{source}: {reason}", err=True)


async def transcribe_files(
    files: list[Path],
    urls: list[str],
    options: dict[str, Any],
    *,
    key: str,
    realtime: bool,
    as_json: bool,
    progress: bool,
) -> bool:
    """Transcribe the files one after another and print the results; False if one failed."""
    ok = True
    async with await connect(urls, key) as client:
        for path in files:
            try:
                final = await _transcribe(client, path, options, realtime, as_json, progress)
            except FAILURES as exc:
                complain(path, exc)
                ok = False
                continue
            if not as_json:
                click.echo(f"{path}: {final['text']}" if len(files) > 1 else final["text"])
    return ok


async def _transcribe(
    client: Client, path: Path, options: dict[str, Any], realtime: bool, as_json: bool, progress: bool
) -> dict[str, Any]:
    length = duration(path)
    with click.progressbar(
        length=max(1, round(length / PIECE)), label=path.name, file=sys.stderr, hidden=not progress
    ) as bar:
        session = await client.start(**options)
        room = asyncio.Semaphore(AHEAD)
        sending = asyncio.get_running_loop().create_task(_send(session, path, realtime, room))
        final: dict[str, Any] = {}
        try:
            async for event in session.events():
                if as_json:
                    click.echo(json.dumps(event, ensure_ascii=False))
                if event["type"] == "chunk_result":
                    room.release()
                    bar.update(1)
                elif event["type"] == "error":
                    raise ServerError(event)
                final = event
                if sending.done():
                    sending.result()
        finally:
            sending.cancel()
    return final


def next_piece(pieces: Iterator[bytes]) -> bytes | None:
    """For a thread: what is decoded blocks."""
    return next(pieces, None)


async def _send(session: ClientSession, path: Path, realtime: bool, room: asyncio.Semaphore) -> None:
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    pieces = read_s16(path, PIECE)
    sent = 0
    try:
        while (piece := await loop.run_in_executor(None, next_piece, pieces)) is not None:
            await room.acquire()
            if realtime:
                await asyncio.sleep(max(0.0, started + (sent + len(piece)) / BYTES_PER_SECOND - time.monotonic()))
            sent += len(piece)
            await session.send(piece)
    finally:
        await session.end()  # whatever happened: the session must not wait for what does not come
