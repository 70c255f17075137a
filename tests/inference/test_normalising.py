"""The forms of texts that a client asks for: alike in partial results, segments, words, answers and the final text."""

from __future__ import annotations

import pytest

from asrserver.inference.normalising import Normalising
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.segments import PartialHypothesis, RecognisedSegment
from asrserver.protocol.events import Word
from asrserver.protocol.options import Normalise, Options
from tests.inference.test_stream import spoken
from tests.recordings import Utterance
from tests.worker_harness import Session, pieces

#: "my number is five five four seven", "add twelve oranges to the list".
NUMBERS = ("003.opus", "084.opus")


def normalising(language: str | None = None, task: str = "transcribe", **forms: str) -> Normalising:
    return Normalising(Options(normalise=Normalise(**forms), language=language, task=task))


def segment(text: str, language: str, words: list[Word] | None = None) -> RecognisedSegment:
    return RecognisedSegment(1.0, 3.0, text, language, 1.0, 0.9, words or [])


def test_words_keep_their_times() -> None:
    said = [
        Word("I", 1.0, 1.2, 0.9),
        Word("have", 1.2, 1.5, 0.9),
        Word("twenty", 1.5, 2.0, 0.8),
        Word("five.", 2.1, 2.6, 0.6),
    ]
    found = normalising(numerals="digits").segment(segment("I have twenty five.", "en", said))
    assert found.text == "I have 25."
    assert found.words == [*said[:2], Word("25.", 1.5, 2.6, 0.7)]


def test_words_that_one_becomes_share_its_time() -> None:
    found = normalising(numerals="words").segment(segment("125", "en", [Word("125", 1.0, 3.0, 0.5)]))
    assert [word.word for word in found.words] == ["one", "hundred", "and", "twenty-five"]
    assert (found.words[0].start, found.words[-1].end) == (1.0, 3.0)
    assert all(one.end == other.start for one, other in zip(found.words, found.words[1:], strict=False))


def test_signs_keep_their_times() -> None:
    said = [Word(sign, float(n), n + 1.0, 0.5) for n, sign in enumerate(["头", "发", "二", "十", "五，"])]
    found = normalising(script="hant", numerals="digits").segment(segment("头发二十五，", "zh", said))
    assert found.text == "頭髮25，"
    assert found.words == [Word("頭", 0.0, 1.0, 0.5), Word("髮", 1.0, 2.0, 0.5), Word("25，", 2.0, 5.0, 0.5)]


def test_what_is_stable_waits_for_the_rest_of_a_number() -> None:
    partial = PartialHypothesis(0, 1, "I have twenty five", "I have twenty", "en")
    found = normalising(numerals="digits").partial(partial)
    assert (found.text, found.stable) == ("I have 25", "I have")


def test_a_translation_is_english() -> None:
    found = normalising(language="zh", task="translate", numerals="digits").segment(segment("twenty five", "zh"))
    assert found.text == "25"


@pytest.mark.parametrize("forms", [{}, {"script": "any", "numerals": "any"}, {"script": "hans"}])
def test_other_texts_stay(forms: dict[str, str]) -> None:
    said = segment("twenty five 國", "en")
    assert normalising(**forms).segment(said) is said


@pytest.mark.gen_test(timeout=120)
async def test_a_stream(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Also by a next owner, from every event on."""
    said = [one for one in utterances if one.name in NUMBERS]
    session = Session(
        recogniser,
        pieces(spoken(said), 1600),
        mode="stream",
        partials=True,
        partial_interval=0.01,
        word_timestamps=True,
        normalise=Normalise(numerals="digits"),
    )
    events = await session.run_live()
    assert events[-1]["text"] == "my number is 5 5 4 7 add 12 oranges to the list"
    assert [event["text"] for event in events[:-1]] == [event["segments"][0]["text"] for event in events[:-1]]
    for event in events[:-1]:
        assert " ".join(word["word"] for word in event["segments"][0]["words"]) == event["text"]
    for event in events[:-1]:
        [found] = event["segments"]
        growing = [one for one in session.partials if found["start"] <= one["start"] < found["end"]]
        assert all(one["text"].startswith(one["stable"]) for one in growing)
        assert all(event["text"].startswith(one["stable"]) for one in growing)
    assert any("12" in one["text"] for one in session.partials)
    assert not any("twelve" in one["text"] for one in session.partials)
    assert (await session.takeovers())[-1]["text"] == events[-1]["text"]


@pytest.mark.parametrize("mode", ["chunk", "auto"])
@pytest.mark.gen_test(timeout=120)
async def test_utterances(recogniser: Recogniser, utterances: list[Utterance], mode: str) -> None:
    files = [one.wav for one in utterances if one.name in NUMBERS]
    session = Session(recogniser, files, mode=mode, normalise=Normalise(numerals="digits"))
    events = await session.takeovers()
    texts = ["my number is 5 5 4 7", "add 12 oranges to the list"]
    assert [event["text"] for event in events] == [*texts, " ".join(texts)]
    assert [segment["text"] for event in events for segment in event["segments"]] == texts
