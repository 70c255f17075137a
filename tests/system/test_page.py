"""The page in a real browser, as people use it: a key, a microphone, the keyboard, files, the history."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from chromium import Browser, DevTools
from firefox import Firefox
from firefox import find as find_firefox

from tests.api_keys import GIVEN
from tests.handlers.test_browser import chromium, installed  # noqa: F401  # the first one is a fixture
from tests.program import System
from tests.recordings import Utterance
from tests.waiting import until

RECORDINGS = Path(__file__).parents[2] / "asrserver" / "data" / "recordings"
SAID: dict[str, str] = json.loads((RECORDINGS / "transcripts.json").read_text())
UNITS = (Path(__file__).parent / "page_units.js").read_text()

VIEW = "document.body.dataset.view"
FOCUS = "document.activeElement.id || document.activeElement.className"
LINES = "[...document.querySelectorAll('.segment p')].map((line) => line.textContent)"
RECORDS = "[...document.querySelectorAll('#records .said')].map((text) => text.textContent)"

#: Counts the guesses that are seen.
WATCHED = """
window.guesses = [];
new MutationObserver(() => guesses.push(document.getElementById("guess").textContent))
  .observe(document.getElementById("guess"), {subtree: true, childList: true, characterData: true});
"""


async def tab_to(page: DevTools, name: str) -> None:
    """Press the tabulator until the element with this id, or class, has the focus."""
    for _ in range(40):
        await page.press("Tab")
        if name in str(await page.run(FOCUS)).split():
            return
    pytest.fail(f"{name} cannot be reached by the keyboard")


async def show_key(page: DevTools) -> None:
    """Give the key, after a wrong one."""
    for key, then in (("x" * 24, "document.querySelector('dialog [role=alert]')?.textContent"), (GIVEN, None)):
        await page.until("document.activeElement.name === 'key'")
        await page.type(key)
        await page.press("Enter", "\r")
        if then:
            await page.until(then)
    await page.until("document.querySelectorAll('#language option').length > 2")
    page.problems.clear()  # the console tells of each 401


async def speak(page: DevTools, said: list[Utterance]) -> None:
    """By the keyboard alone: start, read along, stop, and play from a word."""
    await page.run(WATCHED)
    await tab_to(page, "record")
    await page.press("Enter", "\r")
    await page.until(f"{VIEW} === 'live' && {LINES}.length === {len(said)}", 60)
    assert await page.run("document.title") == "● Listening"
    assert await page.run("Number(document.getElementById('wave').ariaValueNow) >= 0")
    await page.press("Enter", "\r")
    await page.until(f"{VIEW} === 'result'")
    assert await page.run(LINES) == [one.text for one in said]
    guesses = [guess for guess in await page.run("guesses") if guess]
    assert guesses
    assert any(said[0].text.startswith(guess) for guess in guesses)
    assert await page.run(FOCUS) == "heading"
    await play(page, 1)


async def play(page: DevTools, word: int) -> None:
    """Go to a word of the transcript by the keyboard, and play the recording from there."""
    await tab_to(page, "word")
    for _ in range(word):
        await page.press("ArrowRight")
    start = float(await page.run("document.activeElement.dataset.start"))
    await page.press("Enter", "\r")
    await page.until("document.querySelectorAll('.word.now, .player.playing').length === 2")
    assert await page.run("Number(document.getElementById('seek').value)") >= start - 0.1
    await page.run("document.getElementById('play').click()")
    await page.until("!document.querySelector('.player.playing')")


async def find_again(page: DevTools, said: str, folder: Path) -> None:
    """The session is in the history, can be found by a word, read, played from the server, saved, and deleted."""
    await page.run("document.querySelector('.brand').click()")
    await page.until(f"{RECORDS}.length === 1")
    await page.run("document.getElementById('search').focus()")
    await page.type("nobody")
    await page.until(f"{RECORDS}.length === 0 && document.getElementById('none').textContent")
    await page.run("document.getElementById('search').select()")
    await page.type(said.split()[-1])
    assert await page.until(f"{RECORDS}.length && {RECORDS}") == [said]
    await page.run("document.querySelector('#records a').click()")
    await page.until(f"{VIEW} === 'result' && !document.getElementById('player').hidden")
    assert " ".join(await page.run(LINES)) == said
    await play(page, 0)
    await page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    await page.run("document.querySelector('[data-action=srt]').click()")
    await until(lambda: any(file.read_text().startswith("1\n00:00:0") for file in folder.glob("*.srt")))
    await page.run("document.querySelector('[data-action=delete]').click()")
    await page.until(f"{VIEW} === 'home' && {RECORDS}.length === 0 && document.getElementById('none').textContent")
    await page.run("document.getElementById('search').select()")
    await page.press("Delete")
    await page.until("document.getElementById('history').hidden")  # nothing is left


async def drop(page: DevTools, recording: str) -> None:
    await page.drop(RECORDINGS / recording)
    await page.until(f"{VIEW} === 'result'", 60)
    assert await page.run(LINES) == [SAID[recording]]
    assert not await page.run("document.getElementById('player').hidden")


async def read_docs(page: DevTools, address: str) -> None:
    """/docs shows every operation, and what each takes."""
    await page.open(f"{address}/docs")
    await page.until("document.querySelectorAll('.operation').length > 10")
    await page.run("location.hash = 'history'")
    await page.until("document.getElementById('history').innerText.includes('Full-text search')")
    assert "一分钟上手" in await page.run("document.body.innerText")  # the language that was chosen on the other page
    await page.run("document.getElementById('switch').click()")
    assert "In a minute" in await page.run("document.body.innerText")
    assert not await page.run("/[一-鿿]/.test(document.getElementById('main').innerText)")


@pytest.mark.gen_test(timeout=150)
async def test_the_page(
    chromium: str,  # noqa: F811
    start: Callable[..., System],
    utterances: list[Utterance],
    tmp_path: Path,
) -> None:
    said = utterances[:2]
    wav = Utterance("", "", bytes(40000).join([b"", *(one.pcm for one in said), bytes(20 * 32000)])).wav
    system = start("run", "--save-audio", str(tmp_path / "audio"), env={"ASRSERVER_API_KEYS": f"page:{GIVEN}"})
    flags = (DevTools.FLAG, "--lang=en-US", "--host-resolver-rules=MAP elsewhere 127.0.0.1")
    with Browser(chromium, wav, "about:blank", *flags) as browser:
        async with DevTools.connect(browser) as page:
            await asyncio.to_thread(system.wait_ready)
            assert f"\nopen http://127.0.0.1:{system.port}/ in a browser" in system.output()
            address = f"http://127.0.0.1:{system.port}"
            await page.open(f"{address}/")
            await show_key(page)
            assert await page.run(UNITS) == []
            assert "demo model" in await page.run("document.getElementById('notices').textContent")
            await speak(page, said)
            await find_again(page, " ".join(one.text for one in said), tmp_path)
            await drop(page, "english-1.wav")
            await page.run("document.getElementById('switch').click()")
            assert await page.run("document.documentElement.lang") == "zh-Hans"
            await read_docs(page, address)
            assert page.problems == []
            await page.open(f"http://elsewhere:{system.port}/")  # neither https nor localhost
            assert "localhost" in await page.run("document.getElementById('notices').textContent")


@pytest.mark.gen_test(timeout=150)
async def test_the_page_in_firefox(start: Callable[..., System]) -> None:
    """A file; and the microphone, which hears nothing: without a sound card Firefox 153 runs no AudioContext."""
    program = installed("Firefox", find_firefox())
    system = start("run")
    async with Firefox.started(program) as page:
        await asyncio.to_thread(system.wait_ready)
        await page.open(f"http://127.0.0.1:{system.port}/")
        await page.until("document.querySelectorAll('#language option').length > 2")
        assert await page.run(UNITS) == []
        await page.run("document.getElementById('record').click()")
        await page.until(f"{VIEW} === 'live' && document.body.dataset.state === 'open'")
        await page.run("document.getElementById('record').click()")
        await page.until(f"{VIEW} === 'result'")
        assert await page.run(LINES) == []
        await page.choose("document.getElementById('file')", RECORDINGS / "english-1.wav")
        await page.until(f"{VIEW} === 'result' && {LINES}.length", 60)
        assert await page.run(LINES) == [SAID["english-1.wav"]]
        await page.run("document.querySelector('.brand').click()")
        await page.until(f"{RECORDS}.includes({json.dumps(SAID['english-1.wav'])})")
        assert page.problems == []
