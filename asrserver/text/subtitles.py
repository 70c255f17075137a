"""The text of a session as plain text, SubRip or WebVTT. Sessions are dicts as storage returns them, with segments."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any, NamedTuple

#: The longest subtitle in characters and in seconds, where words have times: two lines that can be read at leisure.
MAX_CHARACTERS = 84
MAX_SECONDS = 7.0


class Cue(NamedTuple):
    """A text that is shown from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def plain(session: dict[str, Any]) -> str:
    """Return the whole text; of a session that is not over, the final segments so far, one on a line."""
    lines = [session["text"]] if session["text"] else [segment["text"] for segment in session["segments"]]
    return "".join(f"{line}\n" for line in lines)


def srt(session: dict[str, Any]) -> str:
    """Return SubRip: cues are numbered from 1, times have a comma."""
    return "\n".join(
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues(session["segments"]), 1)
    )


def vtt(session: dict[str, Any]) -> str:
    """Return WebVTT (W3C): times have a dot, and & < > are escaped, so that no text is markup."""
    return "WEBVTT\n" + "".join(
        f"\n{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{html.escape(cue.text, quote=False)}\n"
        for cue in cues(session["segments"])
    )


def cues(segments: list[dict[str, Any]]) -> Iterator[Cue]:
    """Yield one cue for each segment, or several for a long one whose words have times: in order, without overlaps."""
    before = 0.0
    for segment in sorted(segments, key=lambda segment: (segment["start"], segment["number"])):
        for start, end, text in _split(segment):
            text = " ".join(text.split())  # an empty line would end the cue
            if text:
                start = max(start, before)
                before = max(end, start + 0.001)
                yield Cue(start, before, text)


def _split(segment: dict[str, Any]) -> Iterator[Cue]:
    words = [word for word in segment["words"] or () if word.get("start") is not None and word.get("end") is not None]
    if not words:
        yield Cue(segment["start"], segment["end"], segment["text"])
        return
    spaced = " " in segment["text"].strip() and not any(word["word"].startswith(" ") for word in words[1:])
    line: list[dict[str, Any]] = []
    for word in words:
        length = sum(len(other["word"]) + spaced for other in line)
        if line and (length + len(word["word"]) > MAX_CHARACTERS or word["end"] - line[0]["start"] > MAX_SECONDS):
            yield _cue(line, spaced)
            line = []
        line.append(word)
    yield _cue(line, spaced)


def _cue(words: list[dict[str, Any]], spaced: bool) -> Cue:
    return Cue(words[0]["start"], words[-1]["end"], (" " if spaced else "").join(word["word"] for word in words))


def _time(seconds: float, point: str) -> str:
    total = max(0, round(seconds * 1000))
    return f"{total // 3_600_000:02}:{total // 60_000 % 60:02}:{total // 1000 % 60:02}{point}{total % 1000:03}"
