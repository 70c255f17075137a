"""The captions page in a real browser: what is said into the microphone stands in it, and what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from chromium import Browser, DevTools

from tests.api_keys import GIVEN
from tests.handlers.test_browser import chromium  # noqa: F401  # a fixture
from tests.program import System
from tests.recordings import Utterance


@pytest.mark.gen_test(timeout=120)
async def test_captions(
    chromium: str,  # noqa: F811
    start: Callable[..., System],
    utterances: list[Utterance],
) -> None:
    """OBS cannot be asked for a key, so it stands in the address; the captions go when nobody speaks."""
    [said] = [one for one in utterances if one.name == "084.opus"]
    wav = Utterance("", "", bytes(2 * 32000) + said.pcm + bytes(20 * 32000)).wav
    system = start("run", env={"ASRSERVER_API_KEYS": f"obs:{GIVEN}"})
    with Browser(chromium, wav, "about:blank", DevTools.FLAG) as browser:
        async with DevTools.connect(browser) as page:
            await asyncio.to_thread(system.wait_ready)
            address = f"http://127.0.0.1:{system.port}/captions?language=en&normalise=numerals=digits&size=60px"
            await page.open(address)
            await page.until("document.getElementById('problem').textContent.includes('#key=')")
            await page.run("localStorage.setItem('asrserver-language', 'zh')")
            await page.open(f"{address}&lines=2")
            await page.until("document.getElementById('problem').textContent.startsWith('服务器要求密钥')")
            page.problems.clear()  # the console tells of the 401
            await page.open(f"{address}&lines=1&background=lime#key={GIVEN}")
            await page.until("document.getElementById('text').textContent === 'add 12 oranges to the list'", 60)
            assert (
                await page.run("document.getElementById('guess').textContent + getComputedStyle(captions).display")
                == "flex"
            )
            assert await page.run("getComputedStyle(document.body).fontSize") == "60px"
            assert await page.run("getComputedStyle(document.body).backgroundColor") == "rgb(0, 255, 0)"
            await page.until("document.getElementById('captions').hidden")
            assert page.problems == []
