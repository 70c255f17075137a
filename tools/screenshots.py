#!/usr/bin/env python3
"""Take the pictures of the page in docs/images/: while somebody speaks, in light and in dark.

    .venv/bin/python tools/screenshots.py

Runs the server with Whisper base and a reader's voice (tools/real_voices.py), in headless Chromium. What the page then
shows is what was recognised. Debian's fonts-inter makes the pictures look as on most
desktops, and fonts-noto-cjk has the Chinese signs.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import real_voices
from chromium import Browser, DevTools, find
from demo import start, stop

from asrserver.audio import wav

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"

#: The window in CSS pixels, and pixels of the picture for each.
WIDTH, HEIGHT, SCALE = 960, 540, 1.5

#: Pieces of the book that are read, and seconds of quiet between them.
PIECES = (3, 4, 0, 3, 4, 0)
PAUSE = 0.8

#: True when there is something to see: text that is final, words that are certain, and a guess behind them.
WORTH_SEEING = """
document.querySelectorAll(".segment").length >= 2
  && document.getElementById("stable").textContent.split(" ").length >= 2
  && document.getElementById("unsure").textContent.trim()
"""


def voice() -> bytes:
    """A WAV file of the reader."""
    real_voices.fetch([real_voices.BOOK])
    quiet = bytes(2 * round(PAUSE * real_voices.RATE))
    book = real_voices.book()
    pcm = quiet.join(book[number].pcm for number in PIECES)
    return wav.encode(wav.Format.of("pcm_s16le", 1, real_voices.RATE), pcm)


async def take(program: str, port: int) -> None:
    """Speak into the page, and take the pictures when there is something to see."""
    with Browser(program, voice(), "about:blank", DevTools.FLAG, "--lang=en-US", "--hide-scrollbars") as browser:
        async with DevTools.connect(browser) as page:
            size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": SCALE, "mobile": False}
            await page.call("Emulation.setDeviceMetricsOverride", **size)
            await page.open(f"http://127.0.0.1:{port}/")
            await page.until("document.querySelectorAll('#language option').length > 2")
            await page.run("document.getElementById('record').click()")
            await page.until(WORTH_SEEING, 120)
            for theme in ("light", "dark"):
                features = [{"name": "prefers-color-scheme", "value": theme}]
                await page.call("Emulation.setEmulatedMedia", features=features)
                await asyncio.sleep(0.4)  # colours change slowly
                picture = await page.screenshot()
                path = IMAGES / f"page-{theme}.png"
                await asyncio.to_thread(path.write_bytes, picture)
                print(f"{path}: {len(picture) // 1024} KiB")


def main() -> int:
    program = find()
    if program is None:
        print("Chromium is not installed", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="asrserver-screenshots-") as directory:
        Path(directory).chmod(0o755)  # for root PostgreSQL runs as another user
        process, port = start(directory, model="base")
        try:
            asyncio.run(take(program, port))
        finally:
            stop(process)
    return 0


if __name__ == "__main__":
    sys.exit(main())
