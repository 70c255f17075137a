"""The command `asrserver transcribe --live`: it prints text while it forms, from files in real time or a microphone."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import AsyncIterator
from gettext import gettext as _
from pathlib import Path
from typing import Any, TextIO

import click

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.files import probe, read_s16
from asrserver.audio.selection import Selection
from asrserver.cli.files import (
    BYTES_PER_SECOND,
    SOURCE_ERRORS,
    channel_options,
    connect,
    next_chunk,
    report_failure,
    warn_of_toy,
)
from asrserver.client import Client, ClientSession, ServerError

#: Seconds of audio in a chunk.
CHUNK_SECONDS = 0.1

#: Chunks from the microphone that wait while the connection is slow, half a minute; then the oldest are dropped.
MAX_WAITING_CHUNKS = 300

#: Seconds between two checks whether Enter was pressed, while the microphone delivers nothing.
ENTER_CHECK_SECONDS = 1.0

_BOLD, _DIM, _PLAIN, _REDRAW = "\x1b[1m", "\x1b[2m", "\x1b[0m", "\r\x1b[K"


class Screen:
    """Prints results. On a terminal, the current segment is a line that is redrawn, with its stable part in bold.

    Args:
        out: The terminal or file to print to.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._last = ""

    def show(self, event: dict[str, Any]) -> None:
        """Print a `partial_result` or `segment_result`."""
        stable, text = event.get("stable", ""), event["text"]
        if "channel" in event and text:  # whichever spoke last is shown
            speaker = f"Channel {event['channel'] + 1}: "
            stable, text = speaker + stable, speaker + text
        if event["type"] == "segment_result":
            self._write(f"[{_clock(event['start'])}] {text}\n")
        elif self._terminal:
            stable, guess = _fitting(stable, text[len(stable) :], shutil.get_terminal_size().columns - 1)
            self._write(f"{_BOLD}{stable}{_PLAIN}{_DIM}{guess}{_PLAIN}")
        elif text and text != self._last:
            guess = text[len(stable) :].strip()
            self._write(f"... {stable}{' ' if stable and guess else ''}{f'({guess})' if guess else ''}\n")
        self._last = text

    def end(self) -> None:
        """Remove the partial result that is shown."""
        self._write("")

    def _write(self, text: str) -> None:
        self._out.write((_REDRAW if self._terminal else "") + text)
        self._out.flush()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02}:{seconds % 60:04.1f}"


def _fitting(stable: str, guess: str, width: int) -> tuple[str, str]:
    """Shorten both at the beginning, so that together they fit into one line of a terminal."""
    over = max(0, len(stable) + len(guess) - width)
    return stable[over:], guess[max(0, over - len(stable)) :]


async def transcribe_live(
    files: list[Path], urls: list[str], options: dict[str, Any], *, selection: Selection, key: str, as_json: bool
) -> bool:
    """Transcribe files one after another in real time, or the microphone, and print the text while it forms.

    Args:
        files: Audio or video files; without any, the microphone is used.
        urls: The servers' WebSocket URLs.
        options: Options of the protocol's `start` message.
        selection: What of each file is sent.
        key: The API key, if the server requires one.
        as_json: Print every event as a line of JSON instead.

    Returns:
        Whether all files were transcribed.

    Raises:
        ClickException: The server does not accept the connection, or the microphone cannot be used.
    """
    if not files:
        _sounddevice()
    ok = True
    async with await connect(urls, key) as client:
        sources: list[Path | None] = [*files] or [None]
        for path in sources:
            try:
                channels = 1 if path is None else probe(path, selection).channels
                source = microphone() if path is None else read_realtime(path, selection, channels)
                await _transcribe(client, source, channel_options(selection, channels) | options, as_json)
            except SOURCE_ERRORS as exc:
                report_failure(path or "microphone", exc)
                ok = False
    return ok


async def _transcribe(client: Client, source: AsyncIterator[bytes], options: dict[str, Any], as_json: bool) -> None:
    session = await client.start(mode="stream", partials=True, **options)
    warn_of_toy(session.model)
    screen = Screen(sys.stdout)
    sending = asyncio.create_task(_send(session, source), name="send-live")
    try:
        async for event in session.events():
            if as_json:
                click.echo(json.dumps(event, ensure_ascii=False))
            elif event["type"] in ("partial_result", "segment_result"):
                screen.show(event)
            if event["type"] == "error":
                raise ServerError(event)
            if sending.done():
                sending.result()
    finally:
        if not as_json:
            screen.end()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _send(session: ClientSession, source: AsyncIterator[bytes]) -> None:
    try:
        async for chunk in source:
            await session.send(chunk)
    finally:
        await session.end()  # after an error too: otherwise the session would wait for more audio


async def read_realtime(path: Path, selection: Selection, channels: int) -> AsyncIterator[bytes]:
    """Yield what is selected of a file in chunks of CHUNK_SECONDS, each when its last sample would have been spoken.

    Raises:
        AudioError: The file contains no audio that can be decoded.
        OSError: The file cannot be read.
    """
    loop = asyncio.get_running_loop()
    chunks = read_s16(path, CHUNK_SECONDS, selection)
    begun, sent = time.monotonic(), 0
    while (chunk := await loop.run_in_executor(None, next_chunk, chunks)) is not None:
        sent += len(chunk)
        await asyncio.sleep(max(0.0, begun + sent / BYTES_PER_SECOND / channels - time.monotonic()))
        yield chunk


async def microphone() -> AsyncIterator[bytes]:
    """Yield audio from the microphone in chunks of CHUNK_SECONDS, until Enter is pressed.

    Raises:
        ClickException: The microphone cannot be used.
    """
    sounddevice = _sounddevice()
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING_CHUNKS)

    def put(data: bytes) -> None:
        if chunks.full():
            chunks.get_nowait()
        chunks.put_nowait(data)

    def on_audio(data: Any, _frames: int, _time: Any, _status: Any) -> None:
        loop.call_soon_threadsafe(put, bytes(data))

    try:
        stream = sounddevice.RawInputStream(
            SAMPLE_RATE, int(CHUNK_SECONDS * SAMPLE_RATE), channels=1, dtype="int16", callback=on_audio
        )
    except sounddevice.PortAudioError as exc:
        raise click.ClickException(f"cannot open the microphone: {exc}") from None
    with stream:
        click.echo(_("Speak; press Enter to end."), err=True)
        enter = loop.run_in_executor(None, sys.stdin.readline)
        while not enter.done():
            try:
                yield await asyncio.wait_for(chunks.get(), ENTER_CHECK_SECONDS)
            except TimeoutError:
                continue


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise click.ClickException(
            "a microphone needs the Python package sounddevice: make mic in a checkout, "
            "else pip install 'asrserver[mic]'"
        ) from None
    except OSError as exc:  # the package is installed, but not the library that it loads
        raise click.ClickException(
            f"a microphone needs the system library PortAudio: apt install libportaudio2 on Debian or Ubuntu ({exc})"
        ) from None
    return sounddevice
