"""handlers/wyoming.py and wyoming_utterance.py: utterances of all shapes, each answered; and peers that do harm."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from wyoming.asr import Transcribe
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.event import Event, Eventable, async_read_event, async_write_event
from wyoming.info import Describe, SelectProgram
from wyoming.ping import Ping

from asrserver.audio import wav
from asrserver.broker.keys import session_key
from asrserver.errors import Unavailable
from asrserver.gateway.gateway import Gateway
from asrserver.handlers import wyoming, wyoming_utterance
from asrserver.handlers.wyoming import WyomingServer
from asrserver.protocol.codec import decode_options
from asrserver.protocol.options import Options, Start
from asrserver.protocol.wyoming import SILENCE
from tests.events import segment
from tests.fakes import FakeWorker
from tests.waiting import until
from tests.ws_client import look

pytestmark = pytest.mark.gen_test(timeout=60)

#: Samples, in the usual format and any other.
SOUND = bytes(range(1, 241)) * 16
CHUNK = AudioChunk(16000, 2, 1, SOUND)


class Peer:
    """A client: `send` and `read` as the package does, `write` for what it would never send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *events: Eventable) -> None:
        for event in events:
            await async_write_event(event.event(), self.writer)

    async def read(self) -> Event:
        async with asyncio.timeout(20):
            event = await async_read_event(self.reader)
        assert event is not None, "the connection has ended"
        return event

    async def until(self, kind: str) -> list[Event]:
        """All events up to one of a type."""
        found = [await self.read()]
        while found[-1].type != kind:
            found.append(await self.read())
        return found

    async def transcript(self) -> str:
        *_, event = await self.until("transcript")
        assert (await self.read()).type == "transcript-stop"
        return str(event.data["text"])

    async def ended(self) -> None:
        async with asyncio.timeout(20):
            assert await self.reader.read() == b""


class Port:
    """The port of a gateway."""

    def __init__(self, server: WyomingServer, number: int) -> None:
        self.server = server
        self.number = number

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Peer]:
        peer = Peer(*await asyncio.open_connection("127.0.0.1", self.number))
        try:
            yield peer
        finally:
            peer.writer.close()


@pytest.fixture
def port(io_loop: IOLoop, gateway: Gateway) -> Iterator[Port]:
    io_loop.run_sync(gateway.offers.refresh)  # behind one that the gateway has begun, which would overwrite these
    gateway.offers.models = {
        "base": {"name": "base", "languages": ["de", "en"], "default": 0},
        "tiny.en": {"name": "tiny.en", "languages": ["en"], "default": 1},
    }
    gateway.offers._recent = {"base", "tiny.en"}
    gateway.offers._defaults = {"tiny.en": frozenset(["en"])}

    async def refresh() -> None:
        pass

    gateway.offers.refresh = refresh  # type: ignore[method-assign]

    async def made() -> Port:
        [listening] = bind_sockets(0, "127.0.0.1")
        return Port(WyomingServer(gateway, listening), listening.getsockname()[1])

    made_port = io_loop.run_sync(made)
    yield made_port

    async def closed() -> None:
        made_port.server.stop()
        await made_port.server.close()
        await until(lambda: gateway.connections == 0)

    io_loop.run_sync(closed)


async def answer(gateway: Gateway, worker: FakeWorker, *texts: str) -> str:
    """Recognise the open session as these segments, when it has ended; return its id."""
    await until(lambda: gateway.sessions)
    [sid] = gateway.sessions
    await worker.take(sid)
    await worker.ended(sid)
    for number, text in enumerate(texts):
        await worker.say(sid, "segment", text=text, segments=[segment(number, text)])
    await worker.say(sid, "final", text=" ".join(texts), total=1.0)
    return sid


async def sound(worker: FakeWorker, sid: str) -> bytes:
    """All bytes of an ended session's audio."""
    return b"".join((await worker.audio(sid, 1)).values())


def options(redis_url: str, sid: str) -> Options:
    """The options of a session as Redis has them."""
    with look(redis_url) as client:
        return decode_options(client.hget(session_key(sid), "options"))


# -- utterances


async def test_an_utterance_as_home_assistant_sends_it(
    port: Port, gateway: Gateway, worker: FakeWorker, redis_url: str
) -> None:
    """Its audio goes in as it comes, its text comes out as it becomes final; another utterance may follow."""
    async with port.connected() as peer:
        asked = Transcribe(language="en", transcript_names=["Aunt Em"], transcript_terms=["lamp"])
        await peer.send(asked, AudioStart(16000, 2, 1), *[CHUNK] * 3)
        await until(lambda: gateway.sessions)
        [sid] = gateway.sessions
        await worker.take(sid)
        while await sound(worker, sid) != SOUND * 3:
            pass
        await worker.say(sid, "segment", text="turn on", segments=[segment(0, "turn on")])
        assert [one.type for one in await peer.until("transcript-chunk")] == ["transcript-start", "transcript-chunk"]
        await peer.send(AudioStop())
        await worker.ended(sid)
        await worker.say(sid, "segment", text="the lamp", segments=[segment(1, "the lamp")])
        await worker.say(sid, "final", text="turn on the lamp", total=1.0)
        chunk, transcript, stop = [await peer.read() for _ in range(3)]
        assert chunk.data == {"text": " the lamp"}
        assert transcript.data == {"text": "turn on the lamp", "language": "en"}
        assert stop.type == "transcript-stop"
        assert options(redis_url, sid) == Options(
            mode="stream", format="pcm_s16le", language="en", hotwords="lamp, Aunt Em", silence=SILENCE
        )
        await peer.send(AudioStart(16000, 2, 1), CHUNK, AudioStop())
        again = await answer(gateway, worker, "off")
        assert await peer.transcript() == "off"
        assert options(redis_url, again).hotwords == ""


async def test_an_utterance_may_lack_its_beginning(port: Port, gateway: Gateway, worker: FakeWorker) -> None:
    for before in (), (AudioStart(16000, 2, 1),), (Transcribe(),), (SelectProgram("x"),):
        async with port.connected() as peer:
            await peer.send(*before, CHUNK, AudioStop())
            await answer(gateway, worker, "yes")
            assert await peer.transcript() == "yes"


async def test_the_language_decides_on_the_model(port: Port, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the default one does not know it, and no model is named."""
    asked: list[Start] = []

    async def start(given: Start, *_: Any) -> None:
        asked.append(given)
        raise Unavailable("overloaded", "not now")

    monkeypatch.setattr(gateway, "start", start)
    async with port.connected() as peer:
        for request in (
            Transcribe(language="en-GB"),
            Transcribe(language="de-AT"),
            Transcribe(name="whisper-1"),
            Transcribe(name="openai/whisper-base", language="en"),
        ):
            await peer.send(AudioStart(16000, 2, 1), request, CHUNK, AudioStop())
            assert await peer.transcript() == ""
    assert [one.options.model for one in asked] == [None, "base", None, "base"]


async def test_samples_of_any_format(port: Port, gateway: Gateway, worker: FakeWorker, redis_url: str) -> None:
    """That of the chunk counts, whatever audio-start says. What options cannot say stands in a WAV header."""
    async with port.connected() as peer:
        for rate, width, channels, codec in (
            (8000, 2, 2, ""),
            (44100, 1, 1, "pcm_u8"),
            (16000, 3, 1, "pcm_s24le"),
            (96000, 4, 4, "pcm_s32le"),
        ):
            chunk = AudioChunk(rate, width, channels, SOUND)
            await peer.send(AudioStart(16000, 2, 1), chunk, chunk, AudioStop())
            sid = await answer(gateway, worker, "yes")
            assert await peer.transcript() == "yes"
            found, data = options(redis_url, sid), await sound(worker, sid)
            if codec:
                assert found == Options(mode="stream", format="file", silence=SILENCE)
                assert data == wav.write_header(wav.Format.of(codec, channels, rate), 0) + SOUND * 2
            else:
                native = Options(mode="stream", format="pcm_s16le", sample_rate=rate, channels=channels)
                assert found == msgspec.structs.replace(native, silence=SILENCE)
                assert data == SOUND * 2


async def test_a_format_that_changes(port: Port, gateway: Gateway, worker: FakeWorker) -> None:
    """A session for each; their texts are one answer."""
    async with port.connected() as peer:
        await peer.send(AudioStart(16000, 2, 1), CHUNK, AudioChunk(8000, 2, 1, SOUND), AudioStop())
        first = await answer(gateway, worker, "turn on")
        await until(lambda: gateway.sessions and first not in gateway.sessions)
        await answer(gateway, worker, "the lamp")
        chunks = [one.data["text"] for one in await peer.until("transcript") if one.type == "transcript-chunk"]
        assert chunks == ["turn on", " the lamp"]


async def test_nothing_was_said(port: Port, gateway: Gateway) -> None:
    async with port.connected() as peer:
        for events in (), (AudioStart(16000, 2, 1),), (AudioChunk(1, 1, 1, b""),):
            await peer.send(*events, AudioStop())
            assert await peer.transcript() == ""
    assert not gateway.sessions


async def test_an_utterance_that_begins_anew(port: Port, gateway: Gateway, worker: FakeWorker) -> None:
    """The one before is over without an answer."""
    async with port.connected() as peer:
        await peer.send(AudioStart(16000, 2, 1), CHUNK)
        await until(lambda: gateway.sessions)
        [first] = gateway.sessions
        await peer.send(AudioStart(16000, 2, 1), CHUNK, AudioStop())
        await worker.take(first)
        assert await worker.ended(first) == "interrupted"
        await worker.final(first, "never")
        await until(lambda: gateway.sessions and first not in gateway.sessions)
        await answer(gateway, worker, "yes")
        assert await peer.transcript() == "yes"


async def test_a_client_may_end_its_side_and_wait(port: Port, gateway: Gateway, worker: FakeWorker) -> None:
    async with port.connected() as peer:
        await peer.send(CHUNK, AudioStop())
        peer.writer.write_eof()
        await answer(gateway, worker, "yes")
        assert await peer.transcript() == "yes"
        await peer.ended()


async def test_a_client_that_leaves(port: Port, gateway: Gateway, worker: FakeWorker) -> None:
    async with port.connected() as peer:
        await peer.send(CHUNK)
        await until(lambda: gateway.sessions)
        [sid] = gateway.sessions
    await worker.take(sid)
    assert await worker.ended(sid) == "interrupted"
    await until(lambda: gateway.connections == 0)


async def test_utterances_that_end_as_they_begin(port: Port, gateway: Gateway, worker: FakeWorker) -> None:
    """All that a client has to say may come in one read: its sessions must end all the same."""
    chunk = b'{"type": "audio-chunk", "payload_length": %d}\n' % len(SOUND) + SOUND
    async with port.connected() as peer:
        peer.writer.write((b'{"type": "audio-start"}\n' + chunk) * 2)
        await until(lambda: gateway.sessions)
    await until(lambda: gateway.connections == 0)
    for sid in list(gateway.sessions):
        await worker.take(sid)
        async with asyncio.timeout(10):
            assert await worker.ended(sid) == "interrupted"


async def test_pings_are_answered_while_a_transcript_is_owed(port: Port, gateway: Gateway, worker: FakeWorker) -> None:
    async with port.connected() as peer:
        await peer.send(CHUNK, AudioStop(), Ping("x"))
        assert (await peer.read()).data == {"text": "x"}
        await answer(gateway, worker, "yes")
        assert await peer.transcript() == "yes"


# -- errors


async def test_what_cannot_be_recognised_has_an_empty_transcript(port: Port, gateway: Gateway) -> None:
    """After an error, which Home Assistant does not read; the connection goes on."""
    async with port.connected() as peer:
        for asked, chunk, code in (
            (Transcribe(language="klingon"), CHUNK, "bad_option"),
            (Transcribe(language="cy"), CHUNK, "bad_option"),
            (Transcribe(name="nova-3"), CHUNK, "unknown_model"),
            (Transcribe(name="whisper-1"), AudioChunk(16000, 9, 1, SOUND), "bad_request"),
            (Transcribe(name="base"), AudioChunk(16000, 2, 99, SOUND), "undecodable_audio"),
            (Transcribe(), AudioChunk(10**9, 2, 1, SOUND), "undecodable_audio"),
            (Transcribe(), AudioChunk(-1, 2, 1, SOUND), "bad_request"),
        ):
            await peer.send(asked, AudioStart(16000, 2, 1), chunk, CHUNK, AudioStop())
            error, *_, transcript = await peer.until("transcript")
            assert (error.type, error.data["code"], transcript.data["text"]) == ("error", code, "")
            assert (await peer.read()).type == "transcript-stop"
    assert not gateway.sessions


@pytest.mark.parametrize("when", ["refused", "failed", "silent"])
async def test_a_recognition_that_fails(
    port: Port, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """What was heard by then is no transcript: it may be another command."""
    monkeypatch.setattr(wyoming_utterance, "CHECK_SECONDS", 0.05)
    if when == "silent":
        monkeypatch.setattr(wyoming_utterance, "ANSWER_SECONDS", 0.2)
    if when == "refused":
        gateway.closing = True
    async with port.connected() as peer:
        await peer.send(CHUNK, AudioStop())
        if when == "failed":
            await until(lambda: gateway.sessions)
            [sid] = gateway.sessions
            await worker.take(sid)
            await worker.say(sid, "segment", text="turn off", segments=[segment(0, "turn off")])
            await worker.say(sid, "error", code="recognition_failed", message="no")
        found = await peer.until("transcript") if when != "refused" else await peer.until("error")
        [error] = [one.data["code"] for one in found if one.type == "error"]
        assert error == {"refused": "shutting_down", "failed": "recognition_failed", "silent": "overloaded"}[when]
        assert when == "refused" or found[-1].data["text"] == ""


# -- describe


async def test_describe_says_all_languages_at_once(port: Port) -> None:
    """The default model is the first."""
    async with port.connected() as peer:
        await peer.send(Describe())
        [program] = (await peer.read()).data["asr"]
        assert [(one["name"], one["languages"]) for one in program["models"]] == [
            ("tiny.en", ["en"]),
            ("base", ["de", "en"]),
        ]


async def test_without_a_worker_home_assistant_must_ask_again(
    port: Port, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never asks for the languages of a server that has told it of none."""
    models, gateway.offers.models = gateway.offers.models, {}
    monkeypatch.setattr(wyoming, "DESCRIBE_SECONDS", 0.1)
    async with port.connected() as peer:
        await peer.send(Describe())
        assert (await peer.read()).data["code"] == "overloaded"
        await peer.ended()
    monkeypatch.setattr(wyoming, "DESCRIBE_SECONDS", 20.0)
    async with port.connected() as peer:
        await peer.send(Describe())
        await until(lambda: gateway.connections == 1)
        gateway.offers.models = models
        assert (await peer.read()).type == "info"


# -- peers that do harm


async def test_what_is_no_event_ends_the_connection(port: Port, gateway: Gateway) -> None:
    for data in (
        b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"x" * 70_000,
        b'{"type": "a", "data_length": 999999999}\n',
        b'{"type": "audio-chunk", "payload_length": 999999999}\n',
    ):
        async with port.connected() as peer:
            peer.writer.write(data)
            assert (await peer.read()).type == "error"
            await peer.ended()
    await until(lambda: gateway.connections == 0)


async def test_slow_peers_are_cut(port: Port, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wyoming, "EVENT_SECONDS", 0.1)
    for part in b"", b'{"type"', b'{"type": "a", "data_length": 9}\n{', b'{"type": "a", "payload_length": 9}\nx':
        gateway.settings = replace(gateway.settings, idle_timeout=60.0 if part else 0.1)
        async with port.connected() as peer:
            peer.writer.write(part)
            if part:
                assert (await peer.read()).data["code"] == "bad_request"
            await peer.ended()


async def test_a_peer_that_does_not_read_is_cut(port: Port, gateway: Gateway) -> None:
    gateway.settings = replace(gateway.settings, unread_timeout=0.1)
    async with port.connected() as peer:
        flood = asyncio.ensure_future(peer.send(*[Ping("x" * 10_000)] * 10_000))
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(flood, 20)
    await until(lambda: gateway.connections == 0)


async def test_a_peer_that_leaves_without_reading_is_cut(
    port: Port, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection counts until it is closed: it would keep a file descriptor that no limit knows of."""
    monkeypatch.setattr(wyoming, "MAX_UNREAD", 1 << 30)
    gateway.settings = replace(gateway.settings, unread_timeout=0.1)
    with socket.socket() as narrow:
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", port.number))
        peer = Peer(*await asyncio.open_connection(sock=narrow))
        await peer.send(*[Ping("x" * 20_000)] * 500)
        peer.writer.write_eof()
        await until(lambda: gateway.connections == 0)
        answers = await asyncio.wait_for(peer.reader.read(), 20)
        assert len(answers) < 500 * 20_000  # the rest waited, and was dropped
        peer.writer.close()
        await peer.writer.wait_closed()


async def test_audio_that_nobody_takes_is_not_kept(
    port: Port, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading stops while much waits; if it waits for too long, the utterance has failed."""
    monkeypatch.setattr(wyoming_utterance, "ANSWER_SECONDS", 0.2)
    gateway.room.fullness = 1.0
    async with port.connected() as peer:
        large = AudioChunk(16000, 2, 1, bytes(1 << 19))
        await peer.send(large, large, AudioStop())
        found = await peer.until("transcript")
        assert (found[0].data["code"], found[-1].data["text"]) == ("overloaded", "")


def _limit(gateway: Gateway, **settings: Any) -> None:
    gateway.admission.limits._settings = replace(gateway.settings, **settings)


async def test_limits_of_connections_hold_here_too(port: Port, gateway: Gateway) -> None:
    _limit(gateway, max_address_connections=1)
    async with port.connected() as first:
        await first.send(Ping("x"))
        assert (await first.read()).type == "pong"
        async with port.connected() as second:
            assert (await second.read()).data["code"] == "too_many_connections"
            await second.ended()
    await until(lambda: gateway.connections == 0)


async def test_a_stop_waits_for_what_is_owed(port: Port, gateway: Gateway, worker: FakeWorker) -> None:
    async with port.connected() as idle, port.connected() as busy:
        await busy.send(CHUNK, AudioStop())
        await until(lambda: gateway.sessions and gateway.connections == 2)
        port.server.stop()
        await idle.ended()
        await answer(gateway, worker, "yes")
        assert await busy.transcript() == "yes"
        await busy.ended()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port.number), 1)
