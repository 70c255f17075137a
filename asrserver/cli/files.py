"""Files streamed to a server, and the transcripts that come back."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from gettext import gettext as _
from pathlib import Path
from typing import Any

import click

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.files import probe, read_s16
from asrserver.audio.selection import MIXED, Selection
from asrserver.cli.options import advice
from asrserver.cli.outputs import Outputs
from asrserver.client import Client, ClientSession, ConnectionLost, HandshakeRefused, ServerError
from asrserver.errors import AsrError
from asrserver.models import PACKAGED, TOY_NOTICE

#: Bytes per second of the audio that is sent: 16 kHz, 16 bits, mono.
BYTES_PER_SECOND = 2 * SAMPLE_RATE

#: Seconds of audio in a chunk.
CHUNK_SECONDS = 0.5

#: What a transcript tells of a segment.
SEGMENT_FIELDS = ("number", "start", "end", "text", "language", "confidence", "words")

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
    logging.getLogger("tornado.general").setLevel(logging.ERROR)  # it tells of TLS what the error says, too
    try:
        return await Client.connect(urls, key=key)
    except (OSError, HandshakeRefused) as exc:
        cure = advice(exc, urls[-1].startswith("wss"), key)  # it is the last one's
        raise click.ClickException(f"cannot connect to {' or '.join(urls)}: {exc}{cure}") from None


def channel_options(selection: Selection, channels: int) -> dict[str, Any]:
    """The options of a session that gets the selected audio, which has this number of channels."""
    return {"channel_mode": "separate", "channels": channels} if selection.separate else {}


def said_on(event: dict[str, Any]) -> dict[str, Any]:
    """The channel of a result, if it says one."""
    return {"channel": event["channel"]} if "channel" in event else {}


def report_failure(source: Path | str, exc: Exception) -> None:
    """Print on standard error why one source could not be transcribed."""
    reason = getattr(exc, "strerror", None) or str(exc) or "the connection ended"
    click.echo(f"{source}: {reason}", err=True)


class FileTranscriber:
    """Transcribes files, one at a time.

    Args:
        urls: The servers' WebSocket URLs.
        key: The API key, if the servers require one.
        options: Options of the protocol's `start` message.
        selection: What of each file is sent.
        realtime: Send the audio in real time, not as fast as possible.
        as_json: Print every event as a line of JSON.
        progress: Show a progress bar on standard error.
    """

    def __init__(
        self,
        urls: list[str],
        key: str,
        options: dict[str, Any],
        *,
        selection: Selection = MIXED,
        realtime: bool = False,
        as_json: bool = False,
        progress: bool = False,
    ) -> None:
        self.as_json = as_json
        self._urls = urls
        self._key = key
        self._options = options
        self._selection = selection
        self._realtime = realtime
        self._progress = progress

    async def connect(self) -> Client:
        """Connect to a server; raises ClickException."""
        return await connect(self._urls, self._key)

    async def transcribe(self, client: Client, path: Path) -> dict[str, Any]:
        """Transcribe a file.

        Returns:
            Its text, segments, language, duration in seconds, and session_id.

        Raises:
            AsrError, OSError: The file cannot be read or decoded, or its session was interrupted.
            ServerError, ConnectionLost: The server refuses it, or is gone.
        """
        length, channels = await asyncio.get_running_loop().run_in_executor(None, probe, path, self._selection)
        asked = {"mode": "stream", "format": "pcm_s16le", **channel_options(self._selection, channels)}
        session = await client.start(**asked, **self._options)
        warn_of_toy(session.model)
        sending = asyncio.create_task(self._send(session, path, channels), name=f"send-{path.name}")
        try:
            with self._bar(path.name, length) as bar:
                return await self._receive(session, sending, bar)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def _bar(self, name: str, length: float) -> Any:
        """A bar of hundredths of the file; they are done when the text up to there is final."""
        return click.progressbar(
            length=max(1, round(length * 100)), label=name, file=sys.stderr, hidden=not self._progress
        )

    async def _receive(self, session: ClientSession, sending: asyncio.Task[None], bar: Any) -> dict[str, Any]:
        segments = []
        async for event in session.events():
            if self.as_json:
                click.echo(json.dumps(event, ensure_ascii=False))
            match event["type"]:
                case "segment_result":
                    segments.append({name: event.get(name, []) for name in SEGMENT_FIELDS} | said_on(event))
                    bar.update(max(0, min(round(event["end"] * 100), bar.length) - bar.pos))
                case "error":
                    raise ServerError(event)
                case "final_result":
                    final = event
            if sending.done():
                sending.result()
        bar.update(bar.length - bar.pos)
        if final["status"] != "done":
            raise AsrError("session_gone", "the session was interrupted: some of the text is missing")
        segments.sort(key=lambda segment: segment["start"])  # those of two channels come as they end
        return {name: final[name] for name in ("session_id", "text", "duration", "language")} | {"segments": segments}

    async def _send(self, session: ClientSession, path: Path, channels: int) -> None:
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        chunks = read_s16(path, CHUNK_SECONDS, self._selection)
        sent = 0
        try:
            while (chunk := await loop.run_in_executor(None, next_chunk, chunks)) is not None:
                if self._realtime:
                    pause = started + (sent + len(chunk)) / BYTES_PER_SECOND / channels - time.monotonic()
                    await asyncio.sleep(max(0.0, pause))
                sent += len(chunk)
                await session.send(chunk)
        finally:
            await session.end()  # after an error too: otherwise the session would wait for more audio


async def transcribe_files(files: Sequence[Path], transcriber: FileTranscriber, outputs: Outputs) -> bool:
    """Transcribe files one after another, and write their results.

    Returns:
        Whether all files were transcribed.

    Raises:
        ClickException: No server accepts the connection.
    """
    ok = True
    async with await transcriber.connect() as client:
        for path in files:
            try:
                transcript = await transcriber.transcribe(client, path)
                if not transcriber.as_json:
                    outputs.write(path, transcript)
                if not transcript["text"]:
                    click.echo(_("{file}: no speech was found in it").format(file=path), err=True)
            except SOURCE_ERRORS as exc:
                report_failure(path, exc)
                ok = False
    return ok


@cache
def warn_of_toy(model: str | None) -> None:
    """Say on standard error that sessions are recognised by the packaged toy, if they are; once for all sessions."""
    if model in PACKAGED:
        click.echo(_("Warning: {notice}.").format(notice=_(TOY_NOTICE)), err=True)


def next_chunk(chunks: Iterator[bytes]) -> bytes | None:
    """The next chunk, None at the end. Decoding blocks: call it in a thread."""
    return next(chunks, None)
