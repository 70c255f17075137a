"""The command `asrserver transcribe`: it streams files to a server and prints their transcripts."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.files import duration, read_s16
from asrserver.client import Client, ClientSession, ConnectionLost, HandshakeRefused, ServerError
from asrserver.errors import AsrError
from asrserver.models import PACKAGED, TOY_NOTICE

#: Bytes per second of the audio that is sent: 16 kHz, 16 bits, mono.
BYTES_PER_SECOND = 2 * SAMPLE_RATE

#: Seconds of audio in a chunk: less than a second, so that the server takes the chunks for pieces of one recording.
CHUNK_SECONDS = 0.5

#: Chunks that are sent ahead of their results: bounds what the client and the server hold.
MAX_CHUNKS_AHEAD = 64

#: Errors that concern one source; the command continues with the next one.
SOURCE_ERRORS = (AsrError, OSError, ServerError, ConnectionLost)


async def connect(urls: list[str], key: str) -> Client:
    """Connect to the first of several servers that answers.

    Args:
        urls: The servers' WebSocket URLs.
        key: The API key, if the servers require one.

    Raises:
        ClickException: None of them accepts the connection.
    """
    try:
        return await Client.connect(urls, key=key)
    except (OSError, HandshakeRefused) as exc:
        raise click.ClickException(f"cannot connect to {' or '.join(urls)}: {exc}") from None


def report_failure(source: Path | str, exc: Exception) -> None:
    """Print on standard error why one source could not be transcribed."""
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
    """Transcribe files one after another and print the results.

    Args:
        files: Audio or video files.
        urls: The servers' WebSocket URLs.
        options: Options of the protocol's `start` message.
        key: The API key, if the servers require one.
        realtime: Send the audio in real time, not as fast as possible.
        as_json: Print every event as a line of JSON instead of the texts.
        progress: Show a progress bar on standard error.

    Returns:
        Whether all files were transcribed.

    Raises:
        ClickException: No server accepts the connection.
    """
    ok = True
    async with await connect(urls, key) as client:
        for path in files:
            try:
                final = await _transcribe(client, path, options, realtime, as_json, progress)
            except SOURCE_ERRORS as exc:
                report_failure(path, exc)
                ok = False
                continue
            if not as_json:
                click.echo(f"{path}: {final['text']}" if len(files) > 1 else final["text"])
    return ok


async def _transcribe(
    client: Client, path: Path, options: dict[str, Any], realtime: bool, as_json: bool, progress: bool
) -> dict[str, Any]:
    """Transcribe one file; returns its final result."""
    length = duration(path)
    with click.progressbar(
        length=max(1, round(length / CHUNK_SECONDS)), label=path.name, file=sys.stderr, hidden=not progress
    ) as bar:
        session = await client.start(**options)
        warn_of_toy(session.model)
        ahead = asyncio.Semaphore(MAX_CHUNKS_AHEAD)
        sending = asyncio.create_task(_send(session, path, realtime, ahead), name=f"send-{path.name}")
        final: dict[str, Any] = {}
        try:
            async for event in session.events():
                if as_json:
                    click.echo(json.dumps(event, ensure_ascii=False))
                if event["type"] == "chunk_result":
                    ahead.release()
                    bar.update(1)
                elif event["type"] == "error":
                    raise ServerError(event)
                final = event
                if sending.done():
                    sending.result()
        finally:
            sending.cancel()
    return final


@cache
def warn_of_toy(model: str | None) -> None:
    """Say on standard error that sessions are recognised by the packaged toy, if they are; once for all sessions."""
    if model in PACKAGED:
        click.echo(f"Warning: {TOY_NOTICE}.", err=True)


def next_chunk(chunks: Iterator[bytes]) -> bytes | None:
    """The next chunk, None at the end. Decoding blocks: call it in a thread."""
    return next(chunks, None)


async def _send(session: ClientSession, path: Path, realtime: bool, ahead: asyncio.Semaphore) -> None:
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    chunks = read_s16(path, CHUNK_SECONDS)
    sent = 0
    try:
        while (chunk := await loop.run_in_executor(None, next_chunk, chunks)) is not None:
            await ahead.acquire()
            if realtime:
                await asyncio.sleep(max(0.0, started + (sent + len(chunk)) / BYTES_PER_SECOND - time.monotonic()))
            sent += len(chunk)
            await session.send(chunk)
    finally:
        await session.end()  # after an error too: otherwise the session would wait for more audio
