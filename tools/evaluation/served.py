"""Recognition by a running server, as clients use it."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import psutil
from live import server, speak

from asrserver.client import Client
from asrserver.loadtest.sizing import BUSY, WASTED, counters
from evaluation.corpus import Take
from evaluation.inprocess import wav
from evaluation.recognition import Recognition

#: Seconds that connecting may take, and an answer of REST.
TIMEOUT = 30.0

#: Largest file in bytes: an hour of WAV.
MAX_CHUNK = 1 << 27


class Served:
    """A server, and its sessions."""

    def __init__(self, url: str, http: str, language_given: bool, speed: float, partials: bool) -> None:
        """Use a running server.

        Args:
            url: Its WebSocket URL.
            http: Its HTTP URL.
            language_given: Whether sessions name the language of their recording.
            speed: Live streams are sent this many times as fast as real time.
            partials: Whether they ask for partial results.
        """
        self._url = url
        self._http = http
        self._language_given = language_given
        self._speed = speed
        self._partials = partials

    def cpu_seconds(self) -> float:
        """Seconds of CPU that the workers have taken."""
        try:
            response = urllib.request.urlopen(f"{self._http}/api/v1/health", timeout=TIMEOUT)
        except urllib.error.HTTPError as exc:  # a server that is behind says 503, and tells its workers all the same
            response = exc
        with response:
            workers = orjson.loads(response.read())["workers"]
        return sum(sum(psutil.Process(worker["pid"]).cpu_times()[:2]) for worker in workers)

    def decoding(self) -> tuple[float, float]:
        """Seconds that the workers have decoded, and those of them for what was thrown away."""
        found = counters(self._http)
        return found.get(BUSY, 0.0), found.get(WASTED, 0.0)

    async def auto(self, take: Take) -> Recognition:
        """Recognise a recording as one file."""
        async with await Client.connect(self._url, TIMEOUT) as client:
            session = await client.start(**self._options(take))
            await session.send(wav(take.samples))
            final = await session.finish()
        return Recognition(final["text"], [final["language"]] if final["text"] else [])

    async def stream(self, take: Take) -> Recognition:
        """Recognise a recording as a live stream."""
        return await self.live(take, self._partials)

    async def live(self, take: Take, partials: bool) -> Recognition:
        """Recognise a recording as a live stream, with or without partial results."""
        options = self._options(take)
        async with await Client.connect(self._url, TIMEOUT) as client:
            heard = await speak(client, take, self._speed, format="pcm_s16le", partials=partials, **options)
        segments = [message for _, message in heard.messages if message["type"] == "segment_result"]
        return Recognition(heard.final["text"], [segment["language"] for segment in segments], heard.messages)

    def _options(self, take: Take) -> dict[str, Any]:
        return {"language": take.language} if self._language_given and take.language else {}


@contextmanager
def served(arguments: list[str], language_given: bool, speed: float, partials: bool) -> Iterator[Served]:
    """Run a server with these options; see `Served`."""
    with server(*arguments) as running:
        yield Served(running.url, running.http, language_given, speed, partials)
