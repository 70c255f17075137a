"""What became of one session. It is told all that was sent and every message as it came, and believes nothing else."""

from __future__ import annotations

import time
from typing import Any

from asrserver.loadtest.speech import Scripts, Sentence
from asrserver.loadtest.stats import Stats
from asrserver.text.wer import spoken, word_errors

#: Seconds of audio by which a session's `duration` may differ from what was sent: rounding.
ROUNDING = 0.2

Event = dict[str, Any]


class SessionVerifier:
    """One session of one connection: its number, what it said, and what was answered."""

    def __init__(self, sid: str, connection: int, number: int, scripts: Scripts, stats: Stats) -> None:
        self.id = sid
        self.problems: set[str] = set()
        self.reason = ""  # of the first problem, for the report
        self.heard = time.monotonic()  # of the last sign of the server, or of what it owes
        self.finishing = 0.0  # when `finish` was sent
        self.lost = False
        self.judged = False
        self._connection, self._number = connection, number
        self._scripts = scripts
        self._plan = scripts.plan
        self._tally = stats
        self._waiting: dict[int, float] = {}  # chunks without acknowledgement, and when they were sent
        self._sent: dict[int, float] = {}  # utterances of chunk mode without a result, likewise
        self._said: list[Sentence] = []
        self._results: set[int] = set()
        self._chunks = 0
        self._seconds = 0.0
        self._spoke = 0.0  # when the first speech was sent
        self._began = 0.0  # when the recording's first sample was due
        self._answered = False
        self._seq = 0
        self._final: Event | None = None

    @property
    def owed(self) -> bool:
        """Whether the server owes an answer."""
        return bool(self._waiting or self._sent or self.finishing)

    @property
    def finished(self) -> bool:
        return self._final is not None

    def problem(self, kind: str, reason: str = "") -> None:
        """The session failed; it may have been judged before, and was not right then."""
        if self.judged:
            if not self.problems:
                self._tally.right -= 1
            if kind not in self.problems:
                self._tally.failures[kind] += 1
        if not self.problems:
            self.reason = reason
        self.problems.add(kind)

    # -- what is sent --------------------------------------------------------------------------------------------

    def begins(self, when: float) -> None:
        """The recording's first sample is due then (time.monotonic())."""
        self._began = when

    def says(self, sentence: Sentence) -> None:
        """The next sentence is sent from now on."""
        self._said.append(sentence)
        self._spoke = self._spoke or time.monotonic()

    def sent(self, index: int, seconds: float) -> None:
        """A chunk of so many seconds of audio was sent."""
        now = time.monotonic()
        if not self._waiting:
            self.heard = now
        self._waiting[index] = now
        if self._plan.protocol_mode == "chunk":
            self._sent[index] = now
        self._chunks += 1
        self._seconds += seconds

    # -- what comes ----------------------------------------------------------------------------------------------

    def received(self, event: Event) -> None:
        """A message of this session."""
        now = self.heard = time.monotonic()
        kind = event.get("type")
        if kind == "ack":
            self._acknowledged(event, now)
            return
        if kind == "error":
            self._error(event)
        elif kind == "partial_result":
            self._tally.partials += 1
        elif kind not in ("chunk_result", "segment_result", "final_result"):
            self.problem("protocol", f"a message of type {kind!r}")
            return
        if kind != "partial_result" and self._is_new(event):
            if kind == "chunk_result":
                self._chunk_result(event, now)
            elif kind == "segment_result" and self._plan.realtime:
                self._tally.times["result"].add(max(0.0, now - self._began - float(event.get("end") or 0.0)))
            elif kind == "final_result":
                self._final_result(event, now)
        if kind != "error" and event.get("text") and not self._answered:
            self._answered = True
            self._tally.times["first_result"].add(now - self._spoke)

    def _acknowledged(self, event: Event, now: float) -> None:
        index = event.get("chunk_index")
        if index is None:
            return  # of start and resume
        told = [one for one in self._waiting if one <= index] if event.get("through") else [index]
        times = [self._waiting.pop(one) for one in told if one in self._waiting]
        if times:
            for sent in times:
                self._tally.times["ack"].add(now - sent)
        elif not self.lost:  # what is sent again after a resume is acknowledged again
            self.problem("duplicate", f"chunk {index} was acknowledged twice, or before it was sent")

    def _is_new(self, event: Event) -> bool:
        """Whether a durable result is the next one."""
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
        self._tally.times["result"].add(now - sent)
        self._compare(list(self._said[index].words), str(event.get("text", "")), count=False)

    def _final_result(self, event: Event, now: float) -> None:
        if self._final is not None:
            self.problem("duplicate", "two final results")
        elif not self.finishing:
            self.problem("interrupted", f"a final result before the end: {event.get('status')}")
        else:
            self._tally.times["finalisation"].add(now - self.finishing)
        self._final = event

    def _error(self, event: Event) -> None:
        code = str(event.get("code"))
        if event.get("resumable") or ("retry_after" in event and "chunk_index" not in event):
            self._tally.refusals[code] += 1
            return
        self._tally.errors[code] += 1
        self.problem("error", f"{code}: {event.get('message', '')}")
        for chunks in (self._waiting, self._sent):
            chunks.pop(event.get("chunk_index", -1), None)

    # -- the verdict ---------------------------------------------------------------------------------------------

    def judge(self) -> bool:
        """Whether it was right; counted once and for all, but for what may still come in its name."""
        if self._final is not None:
            self._check_final(self._final)
        elif not self.problems:
            self.problem("tester", "it ended without a result or a reason")
        self.judged = True
        stats = self._tally
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
            self.problem("interrupted", f"its status is {final.get('status')}")
        self._compare([word for one in self._said for word in one.words], str(final.get("text", "")), count=True)
        if self._plan.protocol_mode == "chunk" and (missing := set(range(self._chunks)) - self._results):
            self.problem("missing_result", f"{len(missing)} chunks have none, the first is {min(missing)}")
        if self._waiting and not self.lost:
            self.problem("missing_ack", f"{len(self._waiting)} chunks, the first is {min(self._waiting)}")
        count, duration = final.get("chunk_count"), float(final.get("duration") or 0.0)
        if count != self._chunks or abs(duration - self._seconds) > ROUNDING:
            heard = f"{count} chunks and {duration:.1f} s"
            self.problem("missing_audio", f"{heard} of {self._chunks} and {self._seconds:.1f} s")

    def _compare(self, said: list[str], text: str, count: bool) -> None:
        understood = spoken(text)
        allowed = int(self._plan.max_word_errors * len(said))
        wrong = word_errors(said, understood, max(allowed, 10))
        if count:
            self._tally.words += len(said)
            self._tally.word_errors += wrong
        if wrong > allowed:
            other = self._is_of_another_session(understood, count)
            heard = " ".join(understood[:20]) + (" …" if len(understood) > 20 else "")
            meant = " ".join(said[:20]) + (" …" if len(said) > 20 else "")
            self.problem("other_session" if other else "wrong_text", f"said “{meant}”, understood “{heard}”")

    def _is_of_another_session(self, understood: list[str], whole: bool) -> bool:
        if not whole or not understood:  # one utterance may be said in any session
            return False
        return self._scripts.is_of_another_session(understood, self._connection, self._number)
