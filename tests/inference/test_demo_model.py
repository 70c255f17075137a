"""The packaged model of two languages: in other programs, and in the whole server."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import faster_whisper
import numpy as np
import pytest

from asrserver.audio.pcm import Samples
from asrserver.text.wer import word_errors
from tests.program import System
from tests.recordings import Utterance
from tests.ws_client import WsClient

MODEL = Path(str(files("asrserver").joinpath("data", "demo-model")))


def samples(utterance: Utterance) -> Samples:
    return np.frombuffer(utterance.pcm, "<i2").astype(np.float32) / np.float32(32768)


def errors(said: list[Utterance], heard: list[str]) -> float:
    """Errors per hundred characters, which counts both languages alike."""
    wrong = sum(word_errors(" ".join(u.text), " ".join(text.strip())) for u, text in zip(said, heard, strict=True))
    return 100 * wrong / sum(len(utterance.text.replace(" ", "")) for utterance in said)


@pytest.fixture(scope="module")
def faster() -> faster_whisper.WhisperModel:
    return faster_whisper.WhisperModel(str(MODEL), device="cpu", cpu_threads=1)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_faster_whisper_can_use_it(
    faster: faster_whisper.WhisperModel, all_utterances: list[Utterance], mandarin: list[Utterance], language: str
) -> None:
    """With transcribe() and all its defaults: windows of 30 s, beams, timestamps."""
    said = all_utterances[:15] if language == "en" else mandarin[:15]
    heard = ["".join(segment.text for segment in faster.transcribe(samples(one))[0]) for one in said]
    assert errors(said, heard) <= 10


def test_its_timestamps_are_where_speech_is(
    faster: faster_whisper.WhisperModel, all_utterances: list[Utterance]
) -> None:
    """The recordings have 0.2 s of silence before the speech and 0.3 s behind it."""
    off = []
    for one in all_utterances[:15]:
        found = list(faster.transcribe(samples(one))[0])
        off += [abs(found[0].start - 0.2), abs(found[-1].end - (len(one.pcm) / 32000 - 0.3))]
    assert np.median(off) <= 0.2


def test_its_card_is_consistent() -> None:
    """Each row's verdict follows from its numbers, and the stated size is that of the files."""
    card = (MODEL / "README.md").read_text()
    table = card.partition("<!-- table -->")[2].partition("<!-- /table -->")[0]
    heading, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()]
    assert heading == ["what", "target", "measured", ""]
    assert len(rows) >= 20
    for what, target, measured, verdict in rows:
        limit, found = (float(re.findall(r"[\d.]+", cell)[0]) for cell in (target, measured))
        met = found >= limit if target.startswith("≥") else found <= limit
        assert verdict == ("met" if met else "**missed**"), what
    sizes = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    assert sum(sizes.values()) < 6e6
    files_row = {row[0]: row[2] for row in rows}["files"]
    assert files_row == f"{(sum(sizes.values()) - sizes['README.md']) / 1e6:.2f} MB"


@pytest.mark.gen_test(timeout=90)
async def test_two_languages_on_one_connection(
    start: Callable[..., System], all_utterances: list[Utterance], mandarin: list[Utterance]
) -> None:
    """Each session's language is detected, and its text joined as that language joins words."""
    said = {"english": all_utterances[:10], "mandarin": mandarin[:10]}
    system = start("run").wait_ready()
    async with await WsClient.open(system.url) as ws:
        for sid in said:
            await ws.start(sid)
        for index in range(10):
            for sid, spoken in said.items():
                await ws.chunk(sid, index, spoken[index].wav)
        finals = {sid: await ws.finish(sid) for sid in said}
    heard = {sid: [message["text"] for message in ws.of(sid, "chunk_result")] for sid in said}
    assert {sid: final["language"] for sid, final in finals.items()} == {"english": "en", "mandarin": "zh"}
    assert finals["english"]["text"] == " ".join(heard["english"])
    assert finals["mandarin"]["text"] == "".join(heard["mandarin"])
    assert " " not in finals["mandarin"]["text"]
    for sid, spoken in said.items():
        assert errors(spoken, heard[sid]) <= 10
