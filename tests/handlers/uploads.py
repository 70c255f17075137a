"""Uploads for tests: forms, clients that send them, and a worker that answers."""

from __future__ import annotations

from typing import Any

import orjson
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.iostream import IOStream
from tornado.tcpclient import TCPClient

from asrserver.gateway.gateway import Gateway
from asrserver.protocol.events import Word
from tests.events import segment
from tests.fakes import FakeWorker
from tests.waiting import until

BOUNDARY = "boundary7"
FORM = f"multipart/form-data; boundary={BOUNDARY}"

#: A file, as far as its first bytes are looked at.
FILE = b"OggS\0\2" + bytes(range(256)) * 300

PATH = "/v1/audio/transcriptions"

#: Fields, and the file.
Part = tuple[str, str | bytes]


def form(*parts: Part) -> bytes:
    """A form, in this order; bytes are a file."""
    body = b""
    for name, value in parts:
        file = '; filename="ä.mp3"' if isinstance(value, bytes) else ""
        data = value if isinstance(value, bytes) else value.encode()
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


MODEL = ("model", "whisper-1")
GOOD = (MODEL, ("file", FILE))


class Http:
    """Sends requests."""

    def __init__(self, client: AsyncHTTPClient, url: str) -> None:
        self._client = client
        self.url = url

    async def call(self, path: str, body: bytes | None = None, method: str = "", **headers: str) -> HTTPResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._client.fetch(
            self.url + path,
            method=method or ("GET" if body is None else "POST"),
            body=body,
            headers=({"Content-Type": FORM} if body is not None else {}) | named,
            raise_error=False,
            allow_nonstandard_methods=True,
        )

    async def error(self, status: int, path: str, body: bytes | None = None, method: str = "", **headers: str) -> Any:
        """The error that answers a request, as OpenAI's clients read it."""
        response = await self.call(path, body, method, **headers)
        assert response.code == status, response.body
        assert response.headers["Content-Type"].startswith("application/json")
        assert response.headers["X-Request-ID"]
        found = orjson.loads(response.body)["error"]
        assert found.keys() == {"message", "type", "param", "code"}
        assert found["message"]
        return found | {"retry_after": response.headers.get("Retry-After")}


async def answer(gateway: Gateway, worker: FakeWorker, *texts: str, sid: str = "", total: float = 2.0) -> str:
    """Recognise the upload that is in progress as these segments; return its session."""
    await until(lambda: gateway.sessions)
    [sid] = [sid] if sid else list(gateway.sessions)
    await worker.take(sid)
    for number, text in enumerate(texts):
        words = [Word(word, number + 0.1, number + 0.9, 0.9) for word in text.split()]
        await worker.say(sid, "segment", text=text, segments=[segment(number, text, words=words)])
    await worker.ended(sid)
    await worker.say(sid, "final", text=" ".join(texts), total=total)
    return sid


async def posted(http: Http, body: bytes, upto: int | None = None, path: str = PATH) -> IOStream:
    """Send a form on a connection of its own, all of it or its first bytes."""
    host, port = http.url.removeprefix("http://").split(":")
    stream = await TCPClient().connect(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n"
    await stream.write(head.encode() + body[:upto])
    return stream
