"""The book: what was sent in each session, and what its client was told."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]


@dataclass
class Chunk:
    """One chunk of a session.

    Attributes:
        text: What is said in it; None if it kills its workers: then it must be answered by an error. In a live stream,
            a chunk has no text of its own.
        sent: When it was given to the client library (time.monotonic()).
        acknowledged: Whether its acknowledgement came.
        refused: Whether it was refused for good. An acknowledgement of all chunks up to a later one is not of this one.
        answers: Its results and errors, each with its time.
    """

    text: str | None
    sent: float
    acknowledged: bool = False
    refused: bool = False
    answers: list[tuple[float, Event]] = field(default_factory=list)


@dataclass
class Talk:
    """One session.

    Attributes:
        sid: Its id.
        live: Whether it is one live stream, whose utterances become segments.
        resumes: Whether its client resumes.
        said: The texts of the utterances of a live stream.
        chunks: What was sent.
        segments: The segment results, in their order.
        finals: The final results.
        finishing: When the client ended the session; 0 before.
        failure: Why its client gave up; empty if it did not.
        dropped: Whether the connection of a client that does not resume was lost.
    """

    sid: str
    live: bool
    resumes: bool
    said: list[str] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    segments: list[Event] = field(default_factory=list)
    finals: list[Event] = field(default_factory=list)
    finishing: float = 0.0
    began: float = field(default_factory=time.monotonic)
    failure: str = ""
    dropped: bool = False
    seqs: list[int] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether its client expects nothing more."""
        return bool(self.finals or self.failure or self.dropped)

    @property
    def acknowledged(self) -> list[int]:
        return [index for index, chunk in enumerate(self.chunks) if chunk.acknowledged and not chunk.refused]

    def send(self, text: str | None) -> int:
        """Note that a chunk is sent; return its index."""
        self.chunks.append(Chunk(text, time.monotonic()))
        return len(self.chunks) - 1

    def heard(self, event: Event) -> None:
        """Note an acknowledgement, as it came over a connection."""
        if event.get("status") == "received":
            index = event["chunk_index"]
            for one in range(index + 1) if event.get("through") else (index,):
                self.chunks[one].acknowledged = True
        elif event.get("status") == "session_resumed":
            for chunk in self.chunks[: event.get("next_chunk_index", 0)]:
                chunk.acknowledged = True

    def got(self, event: Event) -> None:
        """Note a result, as the client's caller gets it."""
        kind, index = event["type"], event.get("chunk_index")
        if "seq" in event:
            self.seqs.append(event["seq"])
        if kind == "segment_result":
            self.segments.append(event)
        elif kind == "final_result":
            self.finals.append(event)
        elif kind in ("chunk_result", "error") and isinstance(index, int) and index < len(self.chunks):
            if "seq" in event:
                self.chunks[index].answers.append((time.monotonic(), event))
            elif not event.get("resumable"):  # else the client sends it again
                self.chunks[index].refused = True  # it was not taken, for want of room in Redis, and is not answered


class Book:
    """All sessions of a run.

    Attributes:
        talks: By id.
        emptied: Sessions that were only in Redis when that was emptied: what they lose is nobody's fault.
        refusals: What clients were refused, by code: nothing was acknowledged by then.
    """

    def __init__(self) -> None:
        self.talks: dict[str, Talk] = {}
        self.emptied: set[str] = set()
        self.refusals: defaultdict[str, int] = defaultdict(int)

    def open(self, sid: str, live: bool, resumes: bool) -> Talk:
        """Begin a session."""
        talk = self.talks[sid] = Talk(sid, live, resumes)
        return talk

    def longest_wait(self, since: float, until: float) -> tuple[float, int]:
        """How long clients waited for results because of a fault, in seconds, and how many waited.

        Args:
            since: When it began (time.monotonic()).
            until: When it was over.

        Returns:
            The longest time from `until` to the result of a chunk that was sent before `until` and answered after
            `since`; and the number of these chunks.
        """
        waits = []
        for talk in self.talks.values():
            if talk.live or not talk.resumes or talk.sid in self.emptied:
                continue
            for chunk in talk.chunks:
                if chunk.text is None or chunk.sent > until or not chunk.answers:
                    continue
                at = chunk.answers[0][0]
                if at > since:
                    waits.append(max(0.0, at - until))
        return max(waits, default=0.0), len(waits)
