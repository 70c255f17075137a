"""Checks one session: it records everything sent and every message received, and trusts nothing else."""

from __future__ import annotations

import time
from typing import Any

from asrserver.loadtest.speech import Scripts, Sentence
from asrserver.loadtest.stats import Stats
from asrserver.text.wer import spoken, word_errors

#: Seconds by which a session's `duration` may differ from the audio sent, for rounding.
DURATION_TOLERANCE = 0.2

Event = dict[str, Any]


class SessionVerifier:
    """One session of one connection: what it sent, and what the server answered."""

    def __init__(self, sid: str, connection: int, number: int, scripts: Scripts, stats: Stats) -> None:
        self.id = sid
        self.problems: set[str] = set()
        self.reason = ""  # of the first problem, for the report
        self.heard = (
            time.monotonic()
        )  # time of the last message, or of the last chunk sent when none was unacknowledged
        self.finishing = 0.0  # when `finish` was sent
        self.lost = False
        self.judged = False
        self._connection, self._number = connection, number
        self._scripts = scripts
        self._plan = scripts.plan
        self._stats = stats
        self._waiting: dict[int, float] = {}  # unacknowledged chunk → time sent
        self._sent: dict[int, float] = {}  # chunk of chunk mode without a result → time sent
        self._said: list[Sentence] = []
        self._results: set[int] = set()
        self._chunks = 0
        self._seconds = 0.0
        self._spoke = 0.0  # time at which the first speech was sent
        self._began = 0.0  # time at which the first sample was due
        self._answered = False
        self._seq = 0
        self._final: Event | None = None

    @property
    def owed(self) -> bool:
        """Whether an answer of the server is pending."""
        return bool(self._waiting or self._sent or self.finishing)

    @property
    def finished(self) -> bool:
        return self._final is not None

    def problem(self, kind: str, reason: str = "") -> None:
        """Record a failure, also after `judge`, whose counts it then corrects."""
        if self.judged:
            if not self.problems:
                self._stats.right -= 1
            if kind not in self.problems:
                self._stats.failures[kind] += 1
        if not self.problems:
            self.reason = reason
        self.problems.add(kind)

    # -- sending --------------------------------------------------------------------------------------------

    def begins(self, when: float) -> None:
        """Record when the first sample of the recording is due (time.monotonic())."""
        self._began = when

    def says(self, sentence: Sentence) -> None:
        """Record that sending of the next sentence starts now."""
        self._said.append(sentence)
        self._spoke = self._spoke or time.monotonic()

    def sent(self, index: int, seconds: float) -> None:
        """Record that a chunk with `seconds` of audio was sent."""
        now = time.monotonic()
        if not self._waiting:
            self.heard = now
        self._waiting[index] = now
        if self._plan.protocol_mode == "chunk":
            self._sent[index] = now
        self._chunks += 1
        self._seconds += seconds

    # -- receiving ----------------------------------------------------------------------------------------------

    def received(self, event: Event) -> None:
        """Check a message of this session."""
        now = self.heard = time.monotonic()
        kind = event.get("type")
        if kind == "ack":
            self._acknowledged(event, now)
            return
        if kind == "error":
            self._error(event)
        elif kind == "partial_result":
            self._stats.partials += 1
        elif kind not in ("chunk_result", "segment_result", "final_result"):
            self.problem("protocol", f"a message of type {kind!r}")
            return
        if kind != "partial_result" and self._is_new(event):
            if kind == "chunk_result":
                self._chunk_result(event, now)
            elif kind == "segment_result" and self._plan.realtime:
                self._stats.times["result"].add(max(0.0, now - self._began - float(event.get("end") or 0.0)))
            elif kind == "final_result":
                self._final_result(event, now)
        if kind != "error" and event.get("text") and not self._answered:
            self._answered = True
            self._stats.times["first_result"].add(now - self._spoke)

    def _acknowledged(self, event: Event, now: float) -> None:
        if event.get("status") != "received":
            return  # the acknowledgement of start or resume
        index = event["chunk_index"]
        told = [one for one in self._waiting if one <= index] if event.get("through") else [index]
        times = [self._waiting.pop(one) for one in told if one in self._waiting]
        if times:
            for sent in times:
                self._stats.times["ack"].add(now - sent)
        elif not self.lost:  # after a resume, chunks are sent and acknowledged again
            self.problem("duplicate", f"chunk {index} was acknowledged twice, or before it was sent")

    def _is_new(self, event: Event) -> bool:
        """Check the sequence number of a result; False for a duplicate."""
        seq = event.get("seq")
        if seq is None:
            if event.get("type") != "error":
                self.problem("protocol", f"{event.get('type')} without seq")
            return True
        if seq <= self._seq:
            self.problem("duplicate", f"{event.get('type')} with seq {seq} after {self._seq}")
            return False
        if seq != self._seq + 1:
            self.problem("missing_result", f"seq {seq} after {self._seq}")
        self._seq = seq
        return True

    def _chunk_result(self, event: Event, now: float) -> None:
        index = event.get("chunk_index")
        if index in self._results:
            self.problem("duplicate", f"chunk {index} has two results")
            return
        sent = self._sent.pop(index, None) if isinstance(index, int) else None
        if sent is None or not isinstance(index, int) or index >= len(self._said):
            self.problem("other_session", f"a result of chunk {index}, which was not sent")
            return
        self._results.add(index)
        self._stats.times["result"].add(now - sent)
        self._compare(list(self._said[index].words), str(event.get("text", "")), count=False)

    def _final_result(self, event: Event, now: float) -> None:
        if self._final is not None:
            self.problem("duplicate", "two final results")
        elif not self.finishing:
            self.problem("interrupted", f"a final result before the end: {event.get('status')}")
        else:
            self._stats.times["finalisation"].add(now - self.finishing)
        self._final = event

    def _error(self, event: Event) -> None:
        code = str(event.get("code"))
        if event.get("resumable") or ("retry_after" in event and event.get("chunk_index") is None):
            self._stats.refusals[code] += 1
            return
        self._stats.errors[code] += 1
        self.problem("error", f"{code}: {event.get('message', '')}")
        for chunks in (self._waiting, self._sent):
            chunks.pop(event.get("chunk_index", -1), None)

    # -- the verdict ---------------------------------------------------------------------------------------------

    def judge(self) -> bool:
        """Finish the check and add the session to the statistics.

        Returns:
            Whether the session was correct.
        """
        if self._final is not None:
            self._check_final(self._final)
        elif not self.problems:
            self.problem("tester", "the session ended without a result or an error")
        self.judged = True
        stats = self._stats
        stats.sessions += 1
        stats.chunks += self._chunks
        stats.right += not self.problems
        stats.audio_done += 0.0 if self.problems else self._seconds
        stats.failures.update(self.problems)
        if self.problems:
            kinds = sorted(self.problems)
            stats.example({"session_id": self.id, "connection": self._connection, "failed": kinds, "why": self.reason})
        return not self.problems

    def _check_final(self, final: Event) -> None:
        if final.get("status") != "done":
            self.problem("interrupted", f"status is {final.get('status')}")
        self._compare([word for one in self._said for word in one.words], str(final.get("text", "")), count=True)
        if self._plan.protocol_mode == "chunk" and (missing := set(range(self._chunks)) - self._results):
            self.problem("missing_result", f"{len(missing)} chunks without a result, first {min(missing)}")
        if self._waiting and not self.lost:
            self.problem("missing_ack", f"{len(self._waiting)} chunks, first {min(self._waiting)}")
        count, duration = final.get("chunk_count"), float(final.get("duration") or 0.0)
        if count != self._chunks or abs(duration - self._seconds) > DURATION_TOLERANCE:
            heard = f"{count} chunks and {duration:.1f} s"
            self.problem("missing_audio", f"{heard} of {self._chunks} and {self._seconds:.1f} s")

    def _compare(self, said: list[str], text: str, count: bool) -> None:
        if not self._plan.compared:
            return
        understood = spoken(text)
        allowed = int(self._plan.max_word_errors * len(said))
        wrong = word_errors(said, understood, max(allowed, 10))
        if count:
            self._stats.words += len(said)
            self._stats.word_errors += wrong
        if wrong > allowed:
            other = self._is_of_another_session(understood, count)
            heard = " ".join(understood[:20]) + (" …" if len(understood) > 20 else "")
            meant = " ".join(said[:20]) + (" …" if len(said) > 20 else "")
            self.problem("other_session" if other else "wrong_text", f"expected “{meant}”, got “{heard}”")

    def _is_of_another_session(self, understood: list[str], whole: bool) -> bool:
        if not whole or not understood:  # one utterance may occur in any session
            return False
        return self._scripts.is_of_another_session(understood, self._connection, self._number)
