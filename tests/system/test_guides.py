"""The examples of docs/guides for Node and for a page in a browser; tests/docs/ runs commands and Python."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from urllib.parse import urlencode

import pytest
from chromium import Browser, DevTools

from tests.handlers.test_browser import chromium  # noqa: F401  # a fixture
from tests.program import System
from tests.recordings import Utterance
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent.parent
GUIDES = ROOT / "docs" / "guides"
RECORDINGS = ROOT / "asrserver" / "data" / "recordings"
MODULE = ROOT / "asrserver" / "data" / "web" / "asrserver.js"
SAID: dict[str, str] = json.loads((RECORDINGS / "transcripts.json").read_text())

#: What a test does in the page, in place of a person: presses the button, waits until all is said, presses it again.
PRESSED = """<script type="module">
const until = async (condition) => { while (!condition()) await new Promise((done) => setTimeout(done, 50)); };
const said = new URLSearchParams(location.search).get("said");
const shown = () => document.getElementById("text").textContent.trim();
button.click();
await until(() => shown().length >= said.length);
button.click();
await fetch("/done", {method: "POST", body: JSON.stringify([shown(), document.getElementById("guess").textContent])});
</script>"""


def blocks(guide: str, language: str) -> list[str]:
    """The code blocks of a guide in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (GUIDES / guide).read_text(), re.M | re.S)


def run(command: list[str], **options: object) -> str:
    """The output of a program that must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.fixture
def node() -> list[str]:
    """The path of a Node that has WebSockets."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("no Node")
    major = int(run([program, "--version"]).removeprefix("v").partition(".")[0])
    if major < 20:
        pytest.skip(f"Node {major} has no WebSocket of its own")
    return [program, *(["--experimental-websocket"] if major < 22 else [])]


def test_the_node_examples(system: System, tmp_path: Path, node: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the module that the server ships, and without."""
    monkeypatch.setenv("ASRSERVER_SERVER", f"http://127.0.0.1:{system.port}")
    examples = dict(zip(("transcribe.mjs", "live.mjs"), blocks("javascript.md", "js")[-2:], strict=True))
    (raw,) = blocks("../reference/websocket.md", "js")
    examples["raw.mjs"] = raw.replace("127.0.0.1:8080", f"127.0.0.1:{system.port}")
    examples["asrserver.mjs"] = MODULE.read_text()
    for name, source in examples.items():
        (tmp_path / name).write_text(source)
    wav = RECORDINGS / "english-1.wav"
    assert run([*node, str(tmp_path / "transcribe.mjs"), str(wav)]).strip() == SAID[wav.name]
    with (RECORDINGS / "pauses.wav").open("rb") as recording:
        recording.seek(44)  # its header
        printed = run([*node, str(tmp_path / "live.mjs")], stdin=recording)
    lines = [line.partition("  ")[2] for line in printed.splitlines()]
    assert len(lines) > 3
    assert " ".join(lines) == SAID["pauses.wav"]
    with wav.open("rb") as recording:
        recording.seek(44)
        messages = [json.loads(line) for line in run([*node, str(tmp_path / "raw.mjs")], stdin=recording).splitlines()]
    assert messages[0]["status"] == "session_started"
    assert (messages[-1]["type"], messages[-1]["text"]) == ("final_result", SAID[wav.name])


class Served(Queue[bytes]):
    """A page that is served, and what it posts."""

    page = ""


@contextmanager
def served() -> Iterator[tuple[str, Served]]:
    """Serve a page; returns its URL, and the page."""
    posted = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(posted.page.encode())

        def do_POST(self) -> None:
            posted.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", posted
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("recorder", ["AudioWorklet", "MediaRecorder"])
@pytest.mark.gen_test(timeout=150)
async def test_the_page(
    chromium: str,  # noqa: F811
    start: Callable[..., System],
    utterances: list[Utterance],
    recorder: str,
) -> None:
    """It shows what is said, also while the server replaces its gateway; the module comes from another origin."""
    (page,) = blocks("javascript.md", "html")
    if recorder == "MediaRecorder":
        (body,) = [code for code in blocks("javascript.md", "js") if "new MediaRecorder" in code]
        page = page.replace('const session = await client.listen({ language: "en" });', body)
        page = page.replace("() => session.finish() });\n", "() => recorder.stop() });\n")
        assert "() => recorder.stop() });\n" in page
    said = utterances[:3]
    wav = Utterance("", "", bytes(2 * 32000).join([b"", *(one.pcm for one in said), bytes(20 * 32000)])).wav
    wanted = " ".join(one.text for one in said)
    with served() as (address, posted):
        system = start("run", "--allowed-origins", address)
        await asyncio.to_thread(system.wait_ready)
        posted.page = (page + PRESSED).replace("http://127.0.0.1:8080", f"http://127.0.0.1:{system.port}")
        with Browser(chromium, wav, f"{address}/?{urlencode({'said': wanted})}"):
            await asyncio.to_thread(wait_until, lambda: "mode=stream" in system.output(), 60, "a session")
            system.process.send_signal(signal.SIGHUP)
            text, guess = json.loads(await asyncio.to_thread(posted.get, True, 100))
    assert (text, guess) == (wanted, "")
    assert "resumed" in system.output()


@pytest.mark.gen_test(timeout=100)
async def test_the_page_says_why_it_hears_nothing(chromium: str, start: Callable[..., System]) -> None:  # noqa: F811
    """The browser refuses the microphone; then it allows it, and the server refuses the session."""
    (page,) = blocks("javascript.md", "html")
    pressed = "document.getElementById('button').onclick && (document.getElementById('button').click(), true)"
    silence = Utterance("", "", bytes(32000)).wav
    with served() as (address, posted):
        system = start("run", "--allowed-origins", address)
        await asyncio.to_thread(system.wait_ready)
        page = page.replace("http://127.0.0.1:8080", f"http://127.0.0.1:{system.port}")
        for language, flags, wanted in (
            ("en", ["--use-fake-ui-for-media-stream=deny"], "no microphone: "),
            ("klingon", [], "language 'klingon' is unknown"),
        ):
            posted.page = page.replace('language: "en"', f'language: "{language}"')
            with Browser(chromium, silence, "about:blank", DevTools.FLAG, *flags) as browser:
                async with DevTools.connect(browser) as shown:
                    await shown.open(address)
                    await shown.until(pressed)
                    await shown.until(f"document.getElementById('guess').textContent.includes({json.dumps(wanted)})")
