"""The text of a session as plain text, SubRip or WebVTT. Sessions are dicts as storage returns them, with segments.

Where channels were recognised separately, each text says its channel, counted from 1 as people count, and cues of
different channels may be shown at the same time.
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from asrserver.text.words import join

#: The longest subtitle in characters and in seconds, where words have times: two lines that can be read at leisure.
MAX_CHARACTERS = 84
MAX_SECONDS = 7.0


class Cue(NamedTuple):
    """A text that is shown from `start` to `end`, in seconds, and the channel that it was said on, if that is known."""

    start: float
    end: float
    text: str
    channel: int | None = None

    @property
    def speaker(self) -> str:
        """Who says it, as far as the channel tells; empty if nothing is known."""
        return "" if self.channel is None else f"Channel {self.channel + 1}"


def plain(session: dict[str, Any]) -> str:
    """Return the whole text; of a session that is not over, the final segments so far, one on a line.

    Of several channels it has one line for each turn.
    """
    if any(segment.get("channel") is not None for segment in session["segments"]):
        return "".join(f"{line}\n" for line in _turns(session["segments"]))
    lines = [session["text"]] if session["text"] else [segment["text"] for segment in session["segments"]]
    return "".join(f"{line}\n" for line in lines)


def srt(session: dict[str, Any]) -> str:
    """Return SubRip: cues are numbered from 1, times have a comma."""
    return "\n".join(
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{_spoken(cue)}\n"
        for number, cue in enumerate(cues(session["segments"]), 1)
    )


def vtt(session: dict[str, Any]) -> str:
    """Return WebVTT (W3C): times have a dot, and & < > are escaped, so that no text is markup but the speaker's."""
    return "WEBVTT\n" + "".join(
        f"\n{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{_voiced(cue)}\n" for cue in cues(session["segments"])
    )


def cues(segments: list[dict[str, Any]]) -> Iterator[Cue]:
    """Yield one cue for each segment, or several for a long one whose words have times.

    They are in order, and those of a channel do not overlap.
    """
    made: list[Cue] = []
    before: defaultdict[int | None, float] = defaultdict(float)
    for segment in _ordered(segments):
        channel = segment.get("channel")
        for cue in _split(segment):
            text = " ".join(cue.text.split())  # an empty line would end the cue
            if text:
                start = max(cue.start, before[channel])
                before[channel] = max(cue.end, start + 0.001)
                made.append(Cue(start, before[channel], text, channel))
    yield from sorted(made, key=lambda cue: cue.start)


def _ordered(segments: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(segments, key=lambda segment: (segment["start"], segment["number"]))


def _turns(segments: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What each channel says until another one does."""
    for channel, turn in groupby(_ordered(segments), key=lambda segment: segment.get("channel")):
        said = list(turn)
        text = join([(segment["text"], segment["language"] or "") for segment in said])
        yield _spoken(Cue(said[0]["start"], said[-1]["end"], text, channel))


def _spoken(cue: Cue) -> str:
    return f"{cue.speaker}: {cue.text}" if cue.speaker else cue.text


def _voiced(cue: Cue) -> str:
    """A voice span, which needs no end where it is the whole cue."""
    text = html.escape(cue.text, quote=False)
    return f"<v {cue.speaker}>{text}" if cue.speaker else text


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
