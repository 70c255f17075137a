"""subtitles.py: cues that players accept, for any text."""

from __future__ import annotations

from typing import Any

import pytest

from asrserver.text.subtitles import Cue, cues, plain, srt, vtt


def segment(number: int, start: float, end: float, text: str, words: list[Any] | None = None) -> dict[str, Any]:
    return {"number": number, "start": start, "end": end, "text": text, "words": words}


def on(channel: int, *values: Any) -> dict[str, Any]:
    return segment(*values) | {"channel": channel, "language": "en"}


def words(*parts: str, step: float = 0.5) -> list[dict[str, Any]]:
    return [{"word": part, "start": n * step, "end": (n + 1) * step} for n, part in enumerate(parts)]


def test_times_are_in_order_and_never_overlap() -> None:
    """Segments of successive chunks may overlap: the times of each chunk were rounded separately."""
    found = list(
        cues([segment(1, 1.9, 2.5, "b"), segment(0, 0.0, 2.0, "a"), segment(2, 2.0, 2.2, "c"), segment(3, 9, 9, "d")])
    )
    assert found == [Cue(0.0, 2.0, "a"), Cue(2.0, 2.5, "b"), Cue(2.5, 2.501, "c"), Cue(9, 9.001, "d")]


def test_text_cannot_break_out_of_its_cue() -> None:
    session = {
        "text": "",
        "segments": [segment(0, 0, 1, "a\n\n2\n00:00:01.000 --> 00:00:09.000\n<b>&amp;"), segment(1, 1, 2, " \n ")],
    }
    assert srt(session) == "1\n00:00:00,000 --> 00:00:01,000\na 2 00:00:01.000 --> 00:00:09.000 <b>&amp;\n"
    assert vtt(session).splitlines()[2:] == [
        "00:00:00.000 --> 00:00:01.000", "a 2 00:00:01.000 --&gt; 00:00:09.000 &lt;b&gt;&amp;amp;",
    ]  # fmt: skip


def test_long_segments_are_cut_between_words() -> None:
    spoken = [f"word{n}" for n in range(40)]
    found = list(cues([segment(0, 0, 20, " ".join(spoken), words(*spoken))]))
    assert " ".join(cue.text for cue in found) == " ".join(spoken)
    assert all(len(cue.text) <= 84 and cue.end - cue.start <= 7 for cue in found)
    assert [found[0].start, found[-1].end] == [0.0, 20.0]


@pytest.mark.parametrize("parts", [["今天", "天气", "很好"], [" turn", " on", " it"], ["turn", "on", "it"]])
def test_words_are_joined_as_the_text_was(parts: list[str]) -> None:
    text = "".join(parts).strip() if parts[0] != "turn" else "turn on it"
    assert [cue.text for cue in cues([segment(0, 0, 2, text, words(*parts))])] == [text]


def test_words_without_times_are_no_guide() -> None:
    found = list(cues([segment(0, 1, 2, "a b", [{"word": "a", "start": None, "end": None}])]))
    assert found == [Cue(1, 2, "a b")]


def test_nothing_said_is_an_empty_file() -> None:
    session: dict[str, Any] = {"text": "", "segments": []}
    assert (plain(session), srt(session), vtt(session)) == ("", "", "WEBVTT\n")
    session = {"text": "", "segments": [segment(0, 0, 1, "so far"), segment(1, 3661.5, 3662, "and on")]}
    assert plain(session) == "so far\nand on\n"
    assert "01:01:01,500 --> 01:01:02,000" in srt(session)


def test_each_channel_is_a_speaker() -> None:
    """Parties who talk at once keep their times, and texts say who speaks."""
    segments = [on(1, 0, 1.0, 3.0, "yes & no"), on(0, 1, 0.0, 4.0, "so it goes"), on(1, 2, 2.5, 5.0, "or not")]
    session = {"text": "so it goes yes & no or not", "segments": segments}
    assert plain(session) == "Channel 1: so it goes\nChannel 2: yes & no or not\n"
    assert vtt(session).splitlines()[2:] == [
        "00:00:00.000 --> 00:00:04.000", "<v Channel 1>so it goes", "",
        "00:00:01.000 --> 00:00:03.000", "<v Channel 2>yes &amp; no", "",
        "00:00:03.000 --> 00:00:05.000", "<v Channel 2>or not",
    ]  # fmt: skip
    assert "00:00:01,000 --> 00:00:03,000\nChannel 2: yes & no\n" in srt(session)
