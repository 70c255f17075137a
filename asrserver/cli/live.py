"""`asrserver transcribe --live`: text as it forms, from a file sent as slowly as it was spoken, or a microphone."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TextIO

import click

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.files import read_s16
from asrserver.cli.transcribe import BYTES_PER_SECOND, FAILURES, complain, connect, next_piece
from asrserver.client import Client, ClientSession, ServerError

#: Seconds of audio in a chunk.
PIECE = 0.1

#: Pieces of a microphone that wait while the connection is slow; more are dropped, oldest first: half a minute.
AHEAD = 300

_BOLD, _DIM, _PLAIN, _REDRAW = "\x1b[1m", "\x1b[2m", "\x1b[0m", "\r\x1b[K"


class Screen:
    """Where text appears: on a terminal the growing segment is one line that changes, its stable part in bold."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._last = ""

    def show(self, event: dict[str, Any]) -> None:
        """A partial result, or a segment."""
        stable, text = event.get("stable", ""), event["text"]
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
        """The guess that is there goes."""
        self._write("")

    def _write(self, text: str) -> None:
        self._out.write((_REDRAW if self._terminal else "") + text)
        self._out.flush()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02}:{seconds % 60:04.1f}"


def _fitting(stable: str, guess: str, width: int) -> tuple[str, str]:
    """The end of both, in one line of a terminal."""
    over = max(0, len(stable) + len(guess) - width)
    return stable[over:], guess[max(0, over - len(stable)) :]


async def transcribe_live(files: list[Path], url: str, options: dict[str, Any], *, key: str, as_json: bool) -> bool:
    """Transcribe the files one after another, or a microphone if there are none; False if one failed."""
    if not files:
        _sounddevice()
    ok = True
    async with await connect([url], key) as client:
        sources: list[Path | None] = [*files] or [None]
        for path in sources:
            source = microphone() if path is None else paced(path)
            try:
                await _one(client, source, options, as_json)
            except FAILURES as exc:
                complain(path or "microphone", exc)
                ok = False
    return ok


async def _one(client: Client, source: AsyncIterator[bytes], options: dict[str, Any], as_json: bool) -> None:
    session = await client.start(mode="stream", partials=True, **options)
    screen = Screen(sys.stdout)
    sending = asyncio.get_running_loop().create_task(_send(session, source))
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
        async for piece in source:
            await session.send(piece)
    finally:
        await session.end()  # whatever happened: the session must not wait for what does not come


async def paced(path: Path) -> AsyncIterator[bytes]:
    """A file's audio in pieces, each when it would have been spoken; raises AudioError, OSError."""
    loop = asyncio.get_running_loop()
    pieces = read_s16(path, PIECE)
    begun, sent = time.monotonic(), 0
    while (piece := await loop.run_in_executor(None, next_piece, pieces)) is not None:
        sent += len(piece)
        await asyncio.sleep(max(0.0, begun + sent / BYTES_PER_SECOND - time.monotonic()))
        yield piece


async def microphone() -> AsyncIterator[bytes]:
    """What is heard until Enter is pressed."""
    sounddevice = _sounddevice()
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes] = asyncio.Queue(AHEAD)

    def put(data: bytes) -> None:
        if pieces.full():
            pieces.get_nowait()
        pieces.put_nowait(data)

    def heard(data: Any, _frames: int, _time: Any, _status: Any) -> None:
        loop.call_soon_threadsafe(put, bytes(data))

    try:
        stream = sounddevice.RawInputStream(
            SAMPLE_RATE, int(PIECE * SAMPLE_RATE), channels=1, dtype="int16", callback=heard
        )
    except sounddevice.PortAudioError as exc:
        raise click.ClickException(f"there is no microphone to be used: {exc}") from None
    with stream:
        click.echo("Speak; press Enter to end.", err=True)
        enter = loop.run_in_executor(None, sys.stdin.readline)
        while not enter.done():
            try:
                yield await asyncio.wait_for(pieces.get(), 1.0)
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
    except OSError as exc:  # the package is there, but not the library that it loads
        raise click.ClickException(
            f"a microphone needs the system library PortAudio: apt install libportaudio2 on Debian or Ubuntu ({exc})"
        ) from None
    return sounddevice
