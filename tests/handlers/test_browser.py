"""A real browser's microphone and MediaRecorder: headless Chromium, which plays a recording as its microphone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import tornado.httpserver
import tornado.testing
import tornado.web
from chromium import Browser, find

from asrserver.audio import SAMPLE_RATE, files, sniff
from asrserver.audio.stream import StreamDecoder
from tests.audio.streams import decoded, slices
from tests.program import System
from tests.recordings import DATA, Utterance

#: What records, as a web page would: one stream of sound, a recorder and a session for each way asked for. It is over
#: when a tone of 3 kHz is heard: on a busy machine a second of the microphone's takes longer than a second.
PAGE = """<!doctype html><meta charset="utf-8"><script>
const query = new URLSearchParams(location.search);
const over = (stream) => new Promise((done) => {
  const context = new AudioContext(), analyser = context.createAnalyser(), levels = new Float32Array(1024);
  context.createMediaStreamSource(stream).connect(analyser);
  const bin = Math.round(3000 * analyser.fftSize / context.sampleRate);
  let heard = 0;
  setInterval(() => {
    analyser.getFloatFrequencyData(levels);
    heard = levels.indexOf(Math.max(...levels)) == bin ? heard + 1 : 0;
    if (heard == 3) done();
  }, 100);
});
const record = (stream, {mode, type}) => new Promise((done) => {
  const messages = [], socket = new WebSocket(query.get("server"));
  const recorder = new MediaRecorder(stream, {mimeType: type, audioBitsPerSecond: 32000});
  recorder.ondataavailable = ({data}) => data.size && socket.send(data);
  recorder.onstop = () => socket.send(JSON.stringify({action: "finish", session_id: messages[0].session_id}));
  socket.onopen = () => socket.send(JSON.stringify({action: "start", session_id: "", mode}));
  socket.onclose = () => done(messages);
  socket.onmessage = ({data}) => {
    messages.push(JSON.parse(data));
    if (messages.length == 1) { recorder.start(250); over(stream).then(() => recorder.stop()); }
    if (messages.at(-1).type == "final_result") socket.close();
  };
});
navigator.mediaDevices.getUserMedia({audio: {echoCancellation: false, noiseSuppression: false, autoGainControl: false}})
  .then((stream) => Promise.all(JSON.parse(query.get("ways")).map((way) => record(stream, way))), (error) => `${error}`)
  .then((result) => fetch("/done", {method: "POST", body: JSON.stringify(result)}));
</script>"""


def installed(name: str, found: str | None) -> str:
    """The path of a browser. It must exist in CI, and where `make test` can install it (as root on Debian)."""
    if found is None:
        assert not os.environ.get("CI"), f"{name} is not installed"
        assert os.geteuid() != 0 or not shutil.which("apt-get"), f"no {name}: `make browser` installs it"
        pytest.skip(f"no {name}: as root on Debian `make test` installs it; else install it, then run again")
    return found


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser's path."""
    return installed("Chromium", find())


@pytest.fixture
def page(io_loop: Any) -> Iterator[tuple[str, asyncio.Future[Any]]]:
    """(the page's URL, what the page posts at the end)."""
    done: asyncio.Future[Any] = io_loop.asyncio_loop.create_future()

    class Page(tornado.web.RequestHandler):
        def get(self) -> None:
            self.write(PAGE)

        def post(self) -> None:
            done.set_result(json.loads(self.request.body))

    listener, port = tornado.testing.bind_unused_port()
    server = tornado.httpserver.HTTPServer(tornado.web.Application([("/", Page), ("/done", Page)]))

    async def listen() -> None:
        server.add_socket(listener)

    io_loop.run_sync(listen)
    yield f"http://127.0.0.1:{port}", done
    server.stop()
    io_loop.run_sync(server.close_all_connections)


@pytest.mark.gen_test(timeout=150)
async def test_a_browser_s_recording_is_understood(
    chromium: str,
    page: tuple[str, asyncio.Future[Any]],
    start: Callable[..., System],
    utterances: list[Utterance],
) -> None:
    """Slices of 250 ms, as MediaRecorder makes them, in both modes and both of its containers, give the right text."""
    address, done = page
    said = utterances[:3]
    beep = (0.3 * np.sin(2 * np.pi * 3000 * np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE) * 32767).astype("<i2").tobytes()
    wav = Utterance("", "", bytes(2 * SAMPLE_RATE).join([b"", *(one.pcm for one in said), beep])).wav
    seconds = (len(wav) - len(beep)) / 2 / SAMPLE_RATE
    ways = [
        {"mode": mode, "type": f"audio/{kind};codecs=opus"} for mode in ("auto", "stream") for kind in ("webm", "mp4")
    ]
    system = start("run", "--allowed-origins", address)
    await asyncio.to_thread(system.wait_ready)
    query = urlencode({"server": system.url, "ways": json.dumps(ways)})
    with Browser(chromium, wav, f"{address}/?{query}") as browser:
        try:
            results = await asyncio.wait_for(done, 120)
        except TimeoutError:
            pytest.fail(f"the page sent nothing:\n{browser.log.read_text()[-3000:]}")
    assert isinstance(results, list), results
    for way, messages in zip(ways, results, strict=True):
        assert not [message for message in messages if message["type"] == "error"], way
        final = messages[-1]
        assert final["type"] == "final_result", way
        assert final["text"] == " ".join(one.text for one in said), way
        assert final["duration"] == pytest.approx(seconds + 1, abs=2), way
        assert final["chunk_count"] > seconds, way
        if way["mode"] == "auto":
            indexes = [message["chunk_index"] for message in messages if message["type"] == "chunk_result"]
            assert indexes == list(range(final["chunk_count"])), way
        else:
            segments = [message for message in messages if message["type"] == "segment_result"]
            assert [segment["text"] for segment in segments] == [one.text for one in said], way


@pytest.mark.parametrize("name", ["chromium.webm", "chromium.mp4"])
def test_a_recorded_recording(name: str) -> None:
    """The bytes of Chromium 156 decode as with FFmpeg, for any slicing and any resume point."""
    data = (DATA / "recorder" / name).read_bytes()
    kind = sniff.container(data)
    assert kind is not None
    reference = files.decode(data, kind, 60)
    whole = decoded(StreamDecoder(kind), [data])
    assert len(whole) == len(reference)
    assert np.corrcoef(whole, reference)[0, 1] > 0.999
    assert np.array_equal(decoded(StreamDecoder(kind), slices(data, 1, 1500)), whole)
    assert np.array_equal(decoded(StreamDecoder(kind), (data[at : at + 1] for at in range(len(data)))), whole)
    decoder = StreamDecoder(kind)
    for at in range(0, len(data), 3000):
        decoder.feed(data[at : at + 3000])
        point = decoder.resume_point(decoder.position - SAMPLE_RATE // 2)
        resumed = decoded(StreamDecoder.resume(point), [data[point.offset :]])
        assert len(resumed) == len(whole) - point.sample
        assert np.corrcoef(resumed, whole[point.sample :])[0, 1] > 0.995
