"""A stream of audio in each protocol that the server speaks, as a client of that protocol sends it.

For measurements and for tests of what all protocols have in common: the clients are as small as can be, so that they
cost little and show everything that the server sends. The official clients have tests of their own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from asrserver.audio import SAMPLE_RATE, wav
from asrserver.protocol.wyoming import MAX_DATA

#: Seconds that anything may take.
PATIENCE = 60.0

Message = dict[str, Any]


class Dialect(ABC):
    """One stream of 16 kHz 16-bit mono audio on a connection of its own.

    Attributes:
        name: Of the protocol.
        partials: Whether its clients are told of text before it is final.
        listener: The name of its port.
        messages: What the server sent so far.
        closed: Whether the connection has ended.
    """

    name: ClassVar[str]
    partials: ClassVar[bool] = False
    listener: ClassVar[str] = "http"

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.closed = False
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    @abstractmethod
    async def open(cls, ports: Mapping[str, int]) -> Self:
        """Connect to a server of this machine, by its ports' names, and say what is needed before audio."""

    @abstractmethod
    async def send(self, pcm: bytes) -> None:
        """Send audio."""

    @abstractmethod
    async def finish(self) -> str:
        """Say that there is no more audio, wait for the protocol's own end, and return the text."""

    @abstractmethod
    def text(self) -> str:
        """The final text so far."""

    @property
    def close_code(self) -> int | None:
        """With which the server closed; None: without one."""
        return None

    async def close(self) -> None:
        """Leave."""
        self._leave()
        async with asyncio.timeout(PATIENCE):
            await self._reading

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for a message, or for the end of the connection."""
        async with asyncio.timeout(PATIENCE):
            while not condition() and not self.closed:
                self._news.clear()
                await self._news.wait()

    def of(self, kind: str) -> list[Message]:
        """The messages of a type."""
        return [message for message in self.messages if message.get("type") == kind]

    async def _read(self) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while (message := await self._receive()) is not None:
                self.messages.append(message)
                self._news.set()
        self.closed = True
        self._news.set()

    @abstractmethod
    async def _receive(self) -> Message | None:
        """The next message; None: the connection has ended."""

    @abstractmethod
    def _leave(self) -> None:
        """Close the connection."""


class WebSocketDialect(Dialect):
    """A protocol over WebSocket.

    Attributes:
        path: In the URL, with the query.
    """

    path: ClassVar[str]
    subprotocols: ClassVar[list[str] | None] = None

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection = connection
        super().__init__()

    @classmethod
    async def open(cls, ports: Mapping[str, int]) -> Self:
        request = HTTPRequest(f"ws://127.0.0.1:{ports[cls.listener]}{cls.path}", connect_timeout=PATIENCE)
        made = cls(await websocket_connect(request, subprotocols=cls.subprotocols))
        await made.begin()
        return made

    async def begin(self) -> None:
        """Say what comes before audio."""

    async def _receive(self) -> Message | None:
        text = await self._connection.read_message()
        return None if text is None else json.loads(text)

    def _leave(self) -> None:
        self._connection.close()

    @property
    def close_code(self) -> int | None:
        return self._connection.close_code

    async def say(self, **message: Any) -> None:
        """Send a message in JSON."""
        await self._connection.write_message(json.dumps(message))

    async def send(self, pcm: bytes) -> None:
        await self._connection.write_message(pcm, binary=True)

    async def finish(self) -> str:
        await self.end()
        await self.until(lambda: self.closed)
        return self.text()

    @abstractmethod
    async def end(self) -> None:
        """Say that there is no more audio."""


class Native(WebSocketDialect):
    """The server's own protocol."""

    name = "native"
    path = "/ws/asr"

    async def begin(self) -> None:
        await self.say(action="start", mode="stream", format="pcm_s16le", partials=self.partials, ack_interval=5)
        await self.until(lambda: self.messages)

    async def end(self) -> None:
        await self.say(action="finish")

    async def finish(self) -> str:
        await self.end()
        await self.until(lambda: self.of("final_result"))
        await self.close()
        return self.text()

    def text(self) -> str:
        return _joined(message["text"] for message in self.of("segment_result"))


class NativePartials(Native):
    """The same with partial results."""

    name = "native, partial results"
    partials = True


class Deepgram(WebSocketDialect):
    """Deepgram's, as LiveKit and pipecat use it."""

    name = "deepgram"
    path = "/v1/listen?encoding=linear16&sample_rate=16000"

    async def end(self) -> None:
        await self.say(type="CloseStream")

    def text(self) -> str:
        finals = [message["channel"] for message in self.of("Results") if message["is_final"]]
        return _joined(channel["alternatives"][0]["transcript"] for channel in finals)


class DeepgramInterim(Deepgram):
    """The same with interim results."""

    name = "deepgram, interim results"
    path = f"{Deepgram.path}&interim_results=true&vad_events=true"
    partials = True


class Realtime(WebSocketDialect):
    """OpenAI's Realtime interface, at 24 kHz."""

    name = "realtime"
    path = "/v1/realtime?intent=transcription"
    partials = True

    async def send(self, pcm: bytes) -> None:
        await self.say(type="input_audio_buffer.append", audio=base64.b64encode(at_24_khz(pcm)).decode())

    async def end(self) -> None:
        await self.say(type="input_audio_buffer.commit")

    async def finish(self) -> str:
        await self.end()
        await self.end()  # the answer to this one is an error: nothing is left. So all items are known then

        def done() -> bool:
            items = self.of("input_audio_buffer.committed")
            return bool(self.of("error")) and len(items) == len(self._completed())

        await self.until(done)
        await self.close()
        return self.text()

    def _completed(self) -> list[Message]:
        return self.of("conversation.item.input_audio_transcription.completed")

    def text(self) -> str:
        return _joined(message["transcript"] for message in self._completed())


class Vosk(WebSocketDialect):
    """Vosk's."""

    name = "vosk"
    path = "/vosk"
    partials = True

    async def begin(self) -> None:
        await self.say(config={"sample_rate": SAMPLE_RATE})

    async def end(self) -> None:
        await self.say(eof=1)

    def text(self) -> str:
        return _joined(message.get("text", "") for message in self.messages)


class WhisperLive(WebSocketDialect):
    """WhisperLive's, with its 32-bit floats."""

    name = "whisperlive"
    path = "/whisperlive"
    partials = True

    async def begin(self) -> None:
        await self.say(uid="someone", language="en", task="transcribe", model="small", send_last_n_segments=100)
        await self.until(lambda: self.messages)

    async def send(self, pcm: bytes) -> None:
        await super().send((np.frombuffer(pcm, "<i2").astype("<f4") / 32768).tobytes())

    async def end(self) -> None:
        await self._connection.write_message(b"END_OF_AUDIO", binary=True)

    def text(self) -> str:
        shown = [message["segments"] for message in self.messages if "segments" in message]
        return "".join(one["text"] for one in (shown[-1] if shown else ()) if one["completed"]).strip()


class Funasr(WebSocketDialect):
    """FunASR's."""

    name = "funasr"
    path = "/funasr"
    subprotocols: ClassVar[list[str] | None] = ["binary"]
    partials = True

    async def begin(self) -> None:
        await self.say(mode="2pass", chunk_size=[5, 10, 5], wav_name="someone", is_speaking=True, audio_fs=SAMPLE_RATE)

    async def end(self) -> None:
        await self.say(is_speaking=False, is_end=True)

    async def finish(self) -> str:
        await self.end()
        await self.until(lambda: self.messages and self.messages[-1].get("is_end"))
        await self.close()
        return self.text()

    def text(self) -> str:
        return "".join(one["text"] for one in self.messages if one["mode"] == "2pass-offline").strip()


class AssemblyAi(WebSocketDialect):
    """AssemblyAI's streaming API."""

    name = "assemblyai"
    path = "/v3/ws?sample_rate=16000"
    partials = True

    async def begin(self) -> None:
        await self.until(lambda: self.messages)

    async def end(self) -> None:
        await self.say(type="Terminate")

    def text(self) -> str:
        return _joined(message["transcript"] for message in self.of("Turn") if message["end_of_turn"])


class StreamDialect(Dialect):
    """A protocol over a plain connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        super().__init__()

    @classmethod
    async def connect(cls, ports: Mapping[str, int]) -> Self:
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", ports[cls.listener], limit=MAX_DATA))

    def _leave(self) -> None:
        self._writer.close()
        self._reader.feed_eof()


class Wyoming(StreamDialect):
    """Home Assistant's."""

    name = "wyoming"
    listener = "wyoming"
    _FORMAT: ClassVar[Message] = {"rate": SAMPLE_RATE, "width": 2, "channels": 1}

    @classmethod
    async def open(cls, ports: Mapping[str, int]) -> Self:
        made = await cls.connect(ports)
        await made._event("transcribe", language="en")
        await made._event("audio-start", **cls._FORMAT)
        return made

    async def _event(self, kind: str, payload: bytes = b"", **data: Any) -> None:
        head = {"type": kind, "data": data, "payload_length": len(payload)}
        self._writer.write(json.dumps(head).encode() + b"\n" + payload)
        await self._writer.drain()

    async def send(self, pcm: bytes) -> None:
        await self._event("audio-chunk", pcm, **self._FORMAT)

    async def finish(self) -> str:
        await self._event("audio-stop")
        await self.until(lambda: self.of("transcript"))
        await self.close()
        return self.text()

    async def _receive(self) -> Message | None:
        line = await self._reader.readline()
        if not line:
            return None
        head = json.loads(line)
        more = json.loads(await self._reader.readexactly(head.get("data_length", 0)) or b"{}")
        return {"type": head["type"], **head.get("data", {}), **more}

    def text(self) -> str:
        return "".join(one["text"] for one in self.of("transcript"))


class Rest(StreamDialect):
    """OpenAI's REST: a file that is uploaded as it is made; its text comes as events."""

    name = "openai"
    _BOUNDARY = b"--------a"

    @classmethod
    async def open(cls, ports: Mapping[str, int]) -> Self:
        made = await cls.connect(ports)
        made._writer.write(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: multipart/form-data; boundary=" + cls._BOUNDARY + b"\r\nConnection: close\r\n\r\n"
        )
        for name, value in (("model", "whisper-1"), ("stream", "true")):
            await made._chunk(made._head(f'name="{name}"') + value.encode() + b"\r\n")
        # As a recorder writes it, which does not know how long it will be.
        header = bytearray(wav.encode(wav.Format.of("pcm_s16le", 1, SAMPLE_RATE), b""))
        header[4:8] = header[40:44] = b"\xff\xff\xff\xff"
        await made._chunk(made._head('name="file"; filename="a.wav"') + bytes(header))
        return made

    @classmethod
    def _head(cls, names: str) -> bytes:
        return b"--" + cls._BOUNDARY + f"\r\nContent-Disposition: form-data; {names}\r\n\r\n".encode()

    async def _chunk(self, data: bytes) -> None:
        self._writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self._writer.drain()

    async def send(self, pcm: bytes) -> None:
        await self._chunk(pcm)

    async def finish(self) -> str:
        await self._chunk(b"\r\n--" + self._BOUNDARY + b"--\r\n")
        self._writer.write(b"0\r\n\r\n")
        await self.until(lambda: self.closed)
        await self.close()
        return self.text()

    async def _receive(self) -> Message | None:
        async for line in self._reader:
            if line.startswith(b"data: {"):
                return dict(json.loads(line[6:]))
        return None

    def text(self) -> str:
        return "".join(one["text"] for one in self.of("transcript.text.done"))


#: All of them.
DIALECTS: tuple[type[Dialect], ...] = (
    Native,
    NativePartials,
    Deepgram,
    DeepgramInterim,
    Realtime,
    Vosk,
    WhisperLive,
    Funasr,
    AssemblyAi,
    Wyoming,
    Rest,
)


def at_24_khz(pcm: bytes) -> bytes:
    """16 kHz samples as OpenAI's Realtime interface takes them by default."""
    samples = np.frombuffer(pcm, "<i2")
    places = np.arange(len(samples) * 3 // 2) * 2 / 3
    data: bytes = np.interp(places, np.arange(len(samples)), samples).astype("<i2").tobytes()
    return data


def _joined(texts: Any) -> str:
    return " ".join(filter(None, texts))
