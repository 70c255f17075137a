"""Headless Firefox for tests: it has a microphone, and does what WebDriver BiDi tells it to.

The protocol: https://w3c.github.io/webdriver-bidi/.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from chromium import wait_until
from tornado.websocket import WebSocketClientConnection, websocket_connect

#: Names of the program.
NAMES = ("firefox-esr", "firefox")

#: Seconds until it must have started, and for each answer.
START_SECONDS = 60.0

#: No question, no look for updates, no other host; a microphone that needs no permission.
PREFERENCES = {
    "app.update.disabledForTesting": True,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.startup.page": 0,
    "captivedetect.canonicalURL": "",
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.systemAddon.update.enabled": False,
    "intl.accept_languages": "en-US",
    "media.autoplay.default": 0,
    "media.gmp-manager.updateEnabled": False,
    "media.navigator.permission.disabled": True,
    "media.navigator.streams.fake": True,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,#remote-settings-dummy/v1",
    "toolkit.telemetry.reportingpolicy.firstRun": False,
}


def find() -> str | None:
    """The path of the program, if it is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Firefox:
    """A browser with one page.

    Attributes:
        problems: What the page's console says of errors.
    """

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.problems: list[str] = []
        self._connection = connection
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._context = ""
        self._reader = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, program: str) -> AsyncIterator[Firefox]:
        """Start it, and leave nothing behind; raises TimeoutError."""
        with tempfile.TemporaryDirectory(prefix="asrserver-firefox-", ignore_cleanup_errors=True) as folder:
            process = _start(program, Path(folder))
            try:
                browser = cls(await websocket_connect(await _address(Path(folder))))
                try:
                    await browser._begin()
                    yield browser
                finally:
                    browser._connection.close()
                    await browser._reader
            finally:
                process.terminate()
                try:
                    await asyncio.to_thread(process.wait, 20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    async def open(self, url: str) -> None:
        """Go to a page."""
        await self._call("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise; raises RuntimeError if it throws."""
        called = f"(0, eval)({json.dumps(script)})"  # whatever stands in the expression, such as a comment at its end
        found = await self._evaluate(f"Promise.resolve({called}).then((value) => JSON.stringify(value ?? null))")
        return json.loads(found["value"])

    async def until(self, condition: str, seconds: float = 30.0) -> Any:
        """Wait until an expression is true; returns its value."""
        return await wait_until(self, condition, seconds)

    async def choose(self, element: str, file: Path) -> None:
        """Choose a file in the input that an expression gives."""
        shared = (await self._evaluate(element))["sharedId"]
        await self._call("input.setFiles", context=self._context, element={"sharedId": shared}, files=[str(file)])

    async def _begin(self) -> None:
        await self._call("session.new", capabilities={})
        await self._call("session.subscribe", events=["log.entryAdded"])
        self._context = (await self._call("browsingContext.getTree"))["contexts"][0]["context"]

    async def _evaluate(self, expression: str) -> Any:
        target = {"context": self._context}
        found = await self._call(
            "script.evaluate", expression=expression, target=target, awaitPromise=True, userActivation=True
        )
        if found["type"] != "success":
            raise RuntimeError(found["exceptionDetails"]["text"])
        return found["result"]

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        await self._connection.write_message(json.dumps({"id": number, "method": method, "params": parameters}))
        return await asyncio.wait_for(answer, START_SECONDS)

    async def _read(self) -> None:
        while (text := await self._connection.read_message()) is not None:
            message = json.loads(text)
            if message["type"] == "event":
                if message["params"]["level"] == "error":
                    self.problems.append(str(message["params"]["text"]))
                continue
            answer = self._answers.pop(message["id"])
            if answer.done():
                continue
            if message["type"] == "success":
                answer.set_result(message["result"])
            else:
                answer.set_exception(RuntimeError(f"{message['error']}: {message['message']}"))
        for answer in self._answers.values():
            answer.cancel()


def _start(program: str, folder: Path) -> subprocess.Popen[bytes]:
    profile = folder / "profile"
    profile.mkdir()
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in PREFERENCES.items()]
    (profile / "user.js").write_text("\n".join(lines))
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [
                program,
                "--headless",
                "--no-remote",
                "--remote-debugging-port=0",
                "--profile",
                str(profile),
                "about:blank",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HOME": str(folder), "MOZ_DISABLE_CONTENT_SANDBOX": "1"},
        )


async def _address(folder: Path) -> str:
    """Where it listens, once it does; raises TimeoutError."""
    deadline = time.monotonic() + START_SECONDS
    place = folder / "profile" / "WebDriverBiDiServer.json"
    while True:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads(place.read_text())
            return f"ws://{found['ws_host']}:{found['ws_port']}/session"
        if time.monotonic() > deadline:
            raise TimeoutError(f"Firefox has not started:\n{(folder / 'log').read_text()[-3000:]}")
        await asyncio.sleep(0.05)
