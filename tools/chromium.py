"""Headless Chromium for tests and screenshots: it hears a WAV file, and does what the DevTools protocol tells it to.

The protocol: https://chromedevtools.github.io/devtools-protocol/.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

#: Names of the program.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: Without these the browser asks, looks for updates, or wants a screen; --no-sandbox because it may run as root.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
    "--autoplay-policy=no-user-gesture-required",
)

#: Seconds until it must have started, and longest answer of it in bytes: a screenshot.
START_SECONDS = 60.0
MAX_ANSWER = 64 << 20


def find() -> str | None:
    """The path of the program, if it is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A browser that opens a page, hears a WAV file, and leaves nothing behind."""

    def __init__(self, program: str, wav: bytes, url: str, *flags: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="asrserver-browser-", ignore_cleanup_errors=True)
        microphone = Path(self._folder.name) / "microphone.wav"
        microphone.write_bytes(wav)
        self.log = Path(self._folder.name) / "log"
        self.profile = Path(self._folder.name) / "profile"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    *FLAGS,
                    *flags,
                    f"--user-data-dir={self.profile}",
                    f"--use-file-for-fake-audio-capture={microphone}%noloop",
                    url,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HOME": self._folder.name},
                start_new_session=True,
            )

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


class Page(Protocol):
    """A page of a browser.

    Attributes:
        problems: What its console says of errors, in words.
    """

    problems: list[str]

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""


async def wait_until(page: Page, condition: str, seconds: float) -> Any:
    """Wait until an expression in a page is true; returns its value, or raises TimeoutError with what it shows."""
    deadline = time.monotonic() + seconds
    while not (value := await page.run(condition)):
        if time.monotonic() > deadline:
            shown = await page.run("document.body.innerText")
            raise TimeoutError(f"not within {seconds:g} s: {condition}\n{page.problems}\n{shown}")
        await asyncio.sleep(0.05)
    return value


class DevTools:
    """The first page of a browser that was started with --remote-debugging-port=0.

    Attributes:
        problems: What the page's console says of errors, in words.
    """

    #: The flag that the browser must be started with.
    FLAG = "--remote-debugging-port=0"

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.problems: list[str] = []
        self._connection = connection
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, browser: Browser) -> AsyncIterator[DevTools]:
        """Connect, once it has started, and close the connection at the end; raises TimeoutError."""
        deadline = time.monotonic() + START_SECONDS
        place = browser.profile / "DevToolsActivePort"
        while len(said := place.read_text().split() if place.exists() else []) < 2:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the browser has not started:\n{browser.log.read_text()[-3000:]}")
            await asyncio.sleep(0.02)
        listed = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{said[0]}/json/list")
        page = next(target for target in json.loads(listed.body) if target["type"] == "page")
        tools = cls(await websocket_connect(page["webSocketDebuggerUrl"], max_message_size=MAX_ANSWER))
        try:
            for domain in ("Page", "Runtime", "Log", "DOM"):
                await tools.call(f"{domain}.enable")
            yield tools
        finally:
            tools._connection.close()
            await tools._reader

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; raises RuntimeError if it fails."""
        number = next(self._numbers)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        await self._connection.write_message(json.dumps({"id": number, "method": method, "params": parameters}))
        return await asyncio.wait_for(answer, START_SECONDS)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise; raises RuntimeError if it throws."""
        found = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(_described(found["exceptionDetails"]))
        return found["result"].get("value")

    async def until(self, condition: str, seconds: float = 30.0) -> Any:
        """Wait until an expression is true; returns its value."""
        return await wait_until(self, condition, seconds)

    async def open(self, url: str) -> None:
        """Go to a page."""
        await self.call("Page.navigate", url=url)
        await self.until(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    async def press(self, key: str, text: str = "", modifiers: int = 0) -> None:
        """Press a key as a person does; `text` is what it writes."""
        named = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS.get(key, 0), "modifiers": modifiers}
        await self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **named)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    async def type(self, text: str) -> None:
        """Write a text where the focus is."""
        await self.call("Input.insertText", text=text)

    async def drop(self, path: Path) -> None:
        """Drop a file in the middle of the page."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.call("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)

    async def screenshot(self) -> bytes:
        """The visible part of the page as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])

    async def _read(self) -> None:
        while (text := await self._connection.read_message()) is not None:
            message = json.loads(text)
            if "id" in message:
                self._answered(self._answers.pop(message["id"]), message)
            elif (describe := _PROBLEMS.get(message["method"])) and (problem := describe(message["params"])):
                self.problems.append(problem)
            elif message["method"] == "Page.javascriptDialogOpening":
                number = next(self._numbers)
                self._answers[number] = asyncio.get_running_loop().create_future()
                accepted = {"id": number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                await self._connection.write_message(json.dumps(accepted))

    def _answered(self, answer: asyncio.Future[dict[str, Any]], message: dict[str, Any]) -> None:
        if answer.done():
            return
        if "error" in message:
            answer.set_exception(RuntimeError(message["error"]["message"]))
        else:
            answer.set_result(message["result"])


def _described(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])


#: The events that tell of errors, and what they say; an empty text where it is none.
_PROBLEMS: dict[str, Callable[[dict[str, Any]], str]] = {
    "Runtime.exceptionThrown": lambda found: _described(found["exceptionDetails"]),
    "Runtime.consoleAPICalled": lambda found: (
        " ".join(str(item.get("value", item.get("description"))) for item in found["args"])
        if found["type"] in ("error", "warning", "assert")
        else ""
    ),
    "Log.entryAdded": lambda found: (
        f"{found['entry']['text']} {found['entry'].get('url', '')}"
        if found["entry"]["level"] in ("error", "warning")
        else ""
    ),
}

#: The codes of the keys that are pressed.
_KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "Delete": 46}
