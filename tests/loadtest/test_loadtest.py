"""The load tester: a server that does right passes, and every way to do wrong is found and named."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler, websocket_connect

from asrserver.loadtest import report, runner
from asrserver.loadtest.dashboard import Dashboard
from asrserver.loadtest.host import Cost
from asrserver.loadtest.plan import Plan, duration, parse_duration
from asrserver.loadtest.processes import Crew, Told, work
from asrserver.loadtest.report import memory_trend, trend
from asrserver.loadtest.runner import Capacity, Outcome, Sample
from asrserver.loadtest.speech import FRAME_SECONDS, Scripts, load
from asrserver.loadtest.stats import FAILURES, Histogram, Tally, total
from asrserver.protocol.frames import HEADER
from asrserver.text.wer import spoken, word_errors
from tests.cli.test_cli import NOBODY, cli, shared
from tests.conftest import System, Utterance, wait_until

__all__ = ["shared"]

Message = dict[str, Any]


# -- a server in front of the real one, which falsifies what passes ---------------------------------------------------


class Fault:
    """Passes everything on. `up` is what the client says, `down` the server; each gives what goes on instead.

    Unless they come `together`, each chunk is acknowledged at once.
    """

    together = False

    def __init__(self) -> None:
        self.kept: list[tuple[Proxy, Message]] = []

    def refuses(self, handler: Proxy) -> bool:
        return False

    def up(self, proxy: Proxy, message: Message) -> list[Message]:
        return [message]

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        return [message]


class Proxy(WebSocketHandler):
    """One connection through the fault."""

    def initialize(self, target: str, fault: Fault) -> None:
        self.target, self.fault = target, fault
        self.channels: dict[str, int] = {}  # by session; the server behind is not told of them

    async def get(self, *args: Any, **kwargs: Any) -> None:
        if self.fault.refuses(self):
            self.set_status(503)
            self.set_header("Retry-After", "1")
            self.finish()
            return
        self.server = await websocket_connect(self.target, on_message_callback=self.answered)
        await super().get(*args, **kwargs)

    def on_message(self, text: str | bytes) -> None:
        if isinstance(text, bytes):
            channel, index = HEADER.unpack_from(text)
            [sid] = [sid for sid, its in self.channels.items() if its == channel]
            audio = b64encode(text[HEADER.size :]).decode()
            asked = {"action": "chunk", "session_id": sid, "chunk_index": index, "audio_data": audio}
        else:
            asked = json.loads(text)
            if "channel" in asked:
                self.channels[asked["session_id"]] = asked.pop("channel")
            if not self.fault.together:
                asked.pop("ack_interval", None)
        for message in self.fault.up(self, asked):
            self.server.write_message(json.dumps(message))

    def answered(self, text: str | bytes | None) -> None:
        for message in [] if text is None else self.fault.down(self, json.loads(text)):
            if isinstance(message, dict) and message.get("status") in ("session_started", "session_resumed"):
                message["channel"] = self.channels[message["session_id"]]
            self.say(message)

    def say(self, message: Message | str) -> None:
        if self.ws_connection is not None:
            self.write_message(message if isinstance(message, str) else json.dumps(message))

    def on_close(self) -> None:
        self.server.close()


class WrongText(Fault):
    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if message["type"] == "final_result":
            message["text"] = message["text"].rsplit(" ", 3)[0] + " a rubber duck"
        return [message]


class WrongChunkText(Fault):
    """Of one utterance, and right again in the whole."""

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if message["type"] == "chunk_result" and message["chunk_index"] == 1:
            message["text"] = "rubber duck"
        return [message]


class SwappedTexts(Fault):
    """Two sessions get each other's text."""

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if message["type"] != "final_result":
            return [message]
        if not self.kept:
            self.kept.append((proxy, message))
            return []
        other, theirs = self.kept.pop()
        message["text"], theirs["text"] = theirs["text"], message["text"]
        other.say(theirs)
        return [message]


class SwappedResults(Fault):
    """A result goes to somebody else's connection too."""

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if message["type"] in ("segment_result", "chunk_result"):
            if self.kept and self.kept[0][0] is not proxy:
                self.kept[0][0].say(message)
            self.kept.append((proxy, message))
        return [message]


class Lost(Fault):
    """The first message of a kind does not arrive."""

    def __init__(self, kind: str, **fields: Any) -> None:
        super().__init__()
        self.kind, self.fields, self.done = kind, fields, False

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if not self.done and message["type"] == self.kind and self.fields.items() <= message.items():
            self.done = True
            return []
        return [message]


class LostChunks(Fault):
    """Of each session one chunk is thrown away, and nothing tells: it is acknowledged, the others move up."""

    def up(self, proxy: Proxy, message: Message) -> list[Message]:
        if message["action"] != "chunk":
            return [message]
        if message["chunk_index"] == 4:
            proxy.say({"type": "ack", "session_id": message["session_id"], "chunk_index": 4, "status": "received"})
            return []
        message["chunk_index"] -= message["chunk_index"] > 4
        return [message]

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if message.get("chunk_index", 0) >= 4:
            message["chunk_index"] += 1
        return [message]


class Twice(Fault):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        return [message] * (2 if message["type"] == self.kind else 1)


class NoAcknowledgement(Fault):
    together = True

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        return [] if "through" in message else [message]


class TogetherTwice(Twice):
    together = True


class OnlyTakes(Fault):
    """Acknowledges everything, and never says a word."""

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        return [message] if message["type"] == "ack" else []


class Cut(Fault):
    """The first connection to send its fifth chunk is lost; the client resumes."""

    def __init__(self) -> None:
        super().__init__()
        self.done = False

    def up(self, proxy: Proxy, message: Message) -> list[Message]:
        if not self.done and message.get("chunk_index") == 5:
            self.done = True
            proxy.close(1012)
            return []
        return [message]


class Rubbish(Fault):
    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        return ["this is no JSON"] if message["type"] == "final_result" else [message]


class Error(Fault):
    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if message["type"] == "ack" and message.get("chunk_index") == 3:
            return [message, {"type": "error", "session_id": message["session_id"], "code": "boo", "message": "boo"}]
        return [message]


class Interrupted(Fault):
    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        return [{**message, "status": "interrupted"} if message["type"] == "final_result" else message]


class Hearer(Fault):
    """Notes when each session began, and each of its chunks came."""

    def __init__(self) -> None:
        super().__init__()
        self.began: dict[str, float] = {}
        self.came: dict[str, list[float]] = {}

    def up(self, proxy: Proxy, message: Message) -> list[Message]:
        sid = message["session_id"]
        if message["action"] == "start":
            self.began[sid] = time.monotonic()
        elif message["action"] == "chunk":
            self.came.setdefault(sid, []).append(time.monotonic())
        return [message]


class RefusesAtFirst(Fault):
    """503 with Retry-After, to the first three who come."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 3
        self.refused_at: list[float] = []

    def refuses(self, handler: Proxy) -> bool:
        self.left -= 1
        if self.left >= 0:
            self.refused_at.append(time.monotonic())
        return self.left >= 0


async def judged(system: System, fault: Fault, **options: Any) -> Tally:
    """What the tester finds at the system, seen through a fault."""
    server = HTTPServer(Application([("/ws/asr", Proxy, {"target": system.url, "fault": fault})]))
    [listener] = bind_sockets(0, "127.0.0.1")
    server.add_socket(listener)
    url = f"ws://127.0.0.1:{listener.getsockname()[1]}/ws/asr"
    defaults: dict[str, Any] = {"connections": 4, "duration": 60, "sessions": 1, "ramp": 0, "realtime": False}
    plan = Plan((url,), **{**defaults, "talk_ratio": 1.0, **options})
    told = Told()
    await work(plan, Scripts(load(()), plan), range(plan.connections), time.monotonic(), told)
    server.stop()
    await server.close_all_connections()
    assert not told.error
    assert (told.tally.open, told.tally.active) == (0, 0)
    assert set(told.tally.failures) <= set(FAILURES)
    return told.tally


BOTH = ("stream", "chunk")


@pytest.mark.gen_test(timeout=120)
@pytest.mark.parametrize("mode", BOTH)
async def test_a_server_that_does_right(shared: System, mode: str) -> None:
    fault = Fault()
    fault.together = True
    tally = await judged(shared, fault, protocol_mode=mode, partials=mode == "stream")
    assert (tally.sessions, tally.right, tally.failures, tally.examples) == (4, 4, {}, [])
    assert tally.words > 40
    assert tally.word_errors <= 0.05 * tally.words
    assert tally.audio_done == pytest.approx(tally.audio_sent)
    assert tally.audio_sent > 4 * 20
    for name in ("connect", "start", "first_result", "finalisation"):
        assert tally.times[name].count == 4
    assert tally.times["ack"].count == tally.chunks


@pytest.mark.gen_test(timeout=120)
@pytest.mark.parametrize(
    ("fault", "mode", "kind", "failed"),
    [
        *[(WrongText, mode, "wrong_text", 4) for mode in BOTH],
        (WrongChunkText, "chunk", "wrong_text", 4),
        *[(SwappedTexts, mode, "other_session", 4) for mode in BOTH],
        (SwappedResults, "chunk", "other_session", 1),
        (lambda: Lost("chunk_result"), "chunk", "missing_result", 1),
        (lambda: Lost("segment_result"), "stream", "missing_result", 1),
        (lambda: Lost("ack", chunk_index=2), "chunk", "missing_ack", 1),
        (LostChunks, "stream", "missing_audio", 4),
        (lambda: Twice("ack"), "chunk", "duplicate", 4),
        (NoAcknowledgement, "chunk", "missing_ack", 4),
        (lambda: TogetherTwice("ack"), "stream", "duplicate", 4),
        (lambda: Twice("chunk_result"), "chunk", "duplicate", 4),
        (lambda: Twice("segment_result"), "stream", "duplicate", 4),
        (lambda: Twice("final_result"), "stream", "duplicate", 4),
        (Rubbish, "stream", "protocol", 4),
        (Error, "stream", "error", 4),
        (Interrupted, "chunk", "interrupted", 4),
        (Cut, "stream", "lost_connection", 1),
    ],
)
async def test_every_way_to_do_wrong(
    shared: System, fault: Callable[[], Fault], mode: str, kind: str, failed: int
) -> None:
    """Whatever else is found, what was done is, in each session to which it was done."""
    tally = await judged(shared, fault(), protocol_mode=mode)
    assert tally.failures[kind] >= failed, tally.examples
    assert tally.sessions == 4
    assert tally.failed >= failed
    assert any(kind in example["failed"] for example in tally.examples) or kind == "duplicate"


@pytest.mark.gen_test(timeout=120)
async def test_no_send_is_a_success(shared: System) -> None:
    """A server that takes everything and says nothing: no session is right, however much was sent."""
    tally = await judged(shared, OnlyTakes(), timeout=2.0)
    assert (tally.right, tally.sessions, tally.failures["timeout"]) == (0, 4, 4)
    assert tally.audio_sent > 0
    assert tally.audio_done == 0


@pytest.mark.gen_test(timeout=120)
async def test_refusals_are_no_failures(shared: System) -> None:
    """They are tried again, not before the server wants it, and counted apart."""
    fault = RefusesAtFirst()
    began = time.monotonic()
    tally = await judged(shared, fault)
    assert (tally.right, tally.failed, dict(tally.refusals)) == (4, 0, {"HTTP 503": 3})
    assert time.monotonic() - began >= 1


@pytest.mark.gen_test(timeout=120)
async def test_long_recordings_end_with_the_test(shared: System) -> None:
    """An hour is put together while it is sent, and ends with a sentence when the time is over."""
    hearer = Hearer()
    tally = await judged(shared, hearer, mode="long", realtime=True, connections=2, duration=1)
    assert (tally.right, tally.sessions) == (2, 2)
    assert tally.times["late"].count == tally.chunks
    assert tally.audio_sent < 60
    assert sum(map(len, hearer.came.values())) == tally.chunks
    for sid, came in hearer.came.items():  # nothing is sent before it could have been spoken
        assert all(when - hearer.began[sid] >= count * FRAME_SECONDS for count, when in enumerate(came, 1))


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_passes(shared: System, tmp_path: Path) -> None:
    """In several processes; the report says everything, and the numbers are beside it."""
    written = tmp_path / "report.md"
    done = cli(
        *("loadtest", "--server", f"http://127.0.0.1:{shared.port}", "-c", "10", "-d", "3s", "--ramp", "1s"),
        *("--processes", "2", "--talk-ratio", "0.8", "--report", written, "--key", "s3cret"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("PASS: 10 of 10 sessions right")
    text, numbers = written.read_text(), json.loads(written.with_suffix(".json").read_text())
    assert "s3cret" not in text + written.with_suffix(".json").read_text()
    run = numbers["run"]
    assert (run["passed"], run["right"], run["failed"], run["failures"]) == (True, 10, 0, {})
    assert run["times"]["finalisation"]["p95"] > 0
    processes = {name for sample in run["samples"] for name in sample["server"]}
    assert {"supervisor", "gateway 1", "worker 1", "redis", "postgres"} <= processes
    assert all(len(sample["tester"]) == 2 for sample in run["samples"])
    for words in ("**PASS", "gateway 1", "finalisation", "tester 2", "talk_ratio", numbers["machine"]["cpu"]):
        assert words in text
    before, after = run["redis"]["before"], run["redis"]["after"]
    assert after["keys"] > before["keys"]  # kept for clients that come late, for a while
    assert after["lasting_keys"] <= before["lasting_keys"]
    assert f"keys in Redis that do not expire: {before['lasting_keys']} before" in done.stdout
    assert run["memory_mib_a_minute"]["gateway 1"]["memory"] == "too short to say"
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 4
    assert all(picture.read_bytes().startswith(b"\x89PNG") and picture.name in text for picture in pictures)


def test_audio_of_ones_own(shared: System, tmp_path: Path, utterances: list[Utterance]) -> None:
    """Right with what was said in it, and the exit status of failure with anything else."""
    recording, transcript = tmp_path / "own.wav", tmp_path / "own.txt"
    recording.write_bytes(utterances[0].wav)
    transcript.write_text(f"{utterances[0].text.title()}!\n")
    common = ["loadtest", "--server", f"127.0.0.1:{shared.port}", "-c", "2", "-d", "1s", "--burst", "--ramp", "0"]
    common += ["--sessions", "1", "--report", str(tmp_path / "r.md"), "--protocol-mode", "chunk"]
    done = cli(*common, "--audio", recording, f"@{transcript}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "too few to tell sessions apart" in done.stderr
    done = cli(*common, "--audio", recording, "something else was said")
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL: no session was right")
    assert "wrong_text" in (tmp_path / "r.md").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["run"]["failures"] == {"wrong_text": 2}


def test_ctrl_c(shared: System, tmp_path: Path) -> None:
    """It ends early, with a report, and is no pass."""
    command = [sys.executable, "-m", "asrserver", "loadtest", "--server", f"127.0.0.1:{shared.port}", "-c", "2"]
    command += ["-d", "10m", "--mode", "long", "--ramp", "0", "--report", str(tmp_path / "r.md")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: "2 of 2 connected" in (tmp_path / "log").read_text(), 60, "they talk")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 1
    finally:
        process.kill()
        process.wait()
    assert "FAIL: the test was interrupted" in (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["run"]["right"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-d", "soon"), "no duration"),
        (("-d", "0s"), "between 1 s and a day"),
        (("-d", "25h"), "between 1 s and a day"),
        (("-c", "0"), "--connections"),
        (("--talk-ratio", "0"), "--talk-ratio"),
        (("--talk-ratio", "1.5"), "--talk-ratio"),
        (("--mode", "huge"), "--mode"),
        (("--audio", "/does/not/exist", "text"), "/does/not/exist"),
        (("--audio", __file__, "text"), "--audio"),
        (("--audio", __file__, "@/does/not/exist"), "/does/not/exist"),
        (("--report", "/does/not/exist/report.md"), "--report"),
        (("--server-pid", "999999999"), "--server-pid"),
        (("--server", "http://"), "--server"),
        (("--server", NOBODY), "cannot connect to ws://127.0.0.1:9/ws/asr"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], words: str) -> None:
    done = cli("loadtest", *arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_without_its_extra(tmp_path: Path) -> None:
    """What to install, in one line."""
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError(name='rich')\n")
    done = cli("loadtest", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr == "Error: rich is not installed: asrserver loadtest needs pip install 'asrserver[loadtest]'\n"


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_a_process_that_dies() -> None:
    """Its sessions have failed, and the others are still counted."""
    plan = Plan((NOBODY,), connections=2, duration=1, ramp=0, timeout=2, processes=2)
    crew = Crew(plan)
    try:
        crew.begin()
        os.kill(crew.pids[0], signal.SIGKILL)
        wait_until(lambda: crew.listen(0.2) or crew.done, 60, "all processes are done")
        assert crew.tally.failures["tester"] == 1
        assert crew.tally.failures["no_connection"] >= 1
        assert "died with status -9" in crew.told[0].error
        assert Outcome(plan, tally=crew.tally).why_not
    finally:
        crew.close()


def outcome(plan: Plan, **changes: Any) -> Outcome:
    """One that passes, but for the changes in its tally."""
    tally = Tally(sessions=5, right=5, connected=plan.connections, audio_done=50.0)
    for name, value in changes.items():
        setattr(tally, name, value)
    made = Outcome(plan, tally=tally, seconds=10.0)
    made.samples = [Sample(1.0, 5, 5, 0, 0, 5.0, float("nan"), [0.5], {"worker 1": Cost(0.5, 1 << 20)})]
    return made


def test_the_verdict() -> None:
    plan = Plan(("ws://x",), connections=5, max_finalisation=1.0)
    good = outcome(plan)
    assert good.why_not == ["finalisation p95 is nan s, above 1 s"]
    good.tally.times["finalisation"].add(0.5)
    assert good.passed
    assert good.throughput == 5.0
    assert not good.saturated
    good.samples[0].tester = [0.2, 0.95]
    assert "0.95 cores" in good.saturated
    plan = Plan(("ws://x",), connections=5)
    assert outcome(plan).passed
    assert outcome(plan, sessions=0, right=0).why_not == ["no session was right"]
    assert outcome(plan, right=4).why_not == ["1 of 5 sessions failed"]
    assert outcome(plan, connected=4).why_not == ["4 of 5 connections were had"]
    assert not outcome(plan, failures=Counter(lost_connection=1)).passed


def test_memory_is_flat_or_grows() -> None:
    """Noise is no growth, even where neighbours resemble each other; growth is, under as much noise."""
    dice = random.Random(1)
    times = [float(n) for n in range(400)]
    noise = [dice.gauss(0, 1) for _ in times]
    assert trend(times, noise).word == "flat"
    wander = [math.sin(n / 40) for n in range(400)]
    assert trend(times, wander).word == "flat"
    assert trend(times, [value + n / 200 for n, value in enumerate(noise)]).word == "**grows**"
    assert trend(times, [5.0 * n for n in range(400)]).slope == pytest.approx(5.0)
    assert trend(times, [7.0] * 400).word == "flat"
    assert trend(times, noise[::-1]).noise > 0
    assert trend(times[:5], noise[:5]).word == "too short to say"
    assert trend([], []).word == "too short to say"
    one = [1.02 * (n >= 200) for n in range(400)]
    assert trend(times, one).word == "**grows**"
    assert trend(times, one, step=1.0).word == "flat to a MiB"
    assert trend(times, [n // 100 for n in range(400)], step=1.0).word == "**grows**"
    assert trend(times, [0.005 * n for n in range(400)], step=1.0).word == "**grows**"


def test_memory_is_looked_at_when_it_has_warmed_up() -> None:
    """What was taken in the first half, and one MiB in the second, is no growth."""

    def word(*mib: float) -> str:
        run = outcome(Plan(("ws://x",), connections=5))
        each = 100 // len(mib)
        run.samples = [
            Sample(float(n), 0, 0, 0, 0, 0.0, 0.0, [], {"gateway": Cost(0.1, int(mib[n // each] * 2**20))})
            for n in range(each * len(mib))
        ]
        return memory_trend(run, "gateway").word

    assert word(50, 60, 70, 80, 80, 80) == "flat"
    assert word(50, 60, 70, 80, 81, 81) == "flat to a MiB"
    assert word(50, 60, 70, 80, 81, 82) == "**grows**"


def test_keys_that_stay_are_told(tmp_path: Path) -> None:
    made = outcome(Plan(("ws://x",), connections=5))
    keys = {"keys": 10, "lasting_keys": 4, "memory_bytes": 2**20}
    made.redis = (keys, keys)
    assert "4 after: no more" in "\n".join(report.notes(made))
    made.redis = (keys, {**keys, "lasting_keys": 9})
    assert "**5 more**" in "\n".join(report.notes(made))
    report.write(tmp_path / "report.md", made, {}, "asrserver loadtest")
    assert "| keys that do not expire | 4 | 9 |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("limit", [0, 1, 7, 8, 9, 100, 497, 1000])
def test_find_capacity(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """The most streams that pass, to a tenth, and never more than were allowed."""
    tried: list[int] = []

    def run(plan: Plan, *_: Any) -> Outcome:
        tried.append(plan.connections)
        return outcome(plan, right=5 if plan.connections <= limit else 4)

    monkeypatch.setattr(runner, "run", run)
    capacity = runner.find_capacity(Plan(("ws://x",), connections=500), None, None)  # type: ignore[arg-type]
    assert min(limit, 500) / 1.1 - 1 <= capacity.streams <= min(limit, 500)
    assert max(tried) <= 500
    assert len(tried) == len(set(tried)) < 16
    assert capacity.shown.passed == (limit > 0)
    assert isinstance(capacity, Capacity)


def test_no_two_sessions_say_the_same() -> None:
    """Of those that are open at a time; and each text is known to be another's where it is."""
    plan = Plan(("ws://x",), connections=500, talk_ratio=0.3)
    scripts = Scripts(load(()), plan)
    assert scripts.told_apart
    for number in (0, 1, 17):
        begins = [tuple(one.text for one in scripts.first(connection, number)) for connection in range(500)]
        assert len(set(begins)) == 500
    for a, b in itertools.combinations(scripts.sentences, 2):
        assert word_errors(a.words, b.words) * 2 >= max(len(a.words), len(b.words))
    parts = list(scripts.script(3, 1))
    speech = sum(part.sentence.seconds for part in parts)
    whole = speech + sum(part.quiet for part in parts) / 10
    assert 20 <= whole < 40
    assert parts == list(scripts.script(3, 1))
    text = [word for part in parts for word in part.sentence.words]
    assert not scripts.is_of_another(text, 3, 1)
    assert scripts.is_of_another(text, 4, 1)
    assert scripts.is_of_another(text, 3, 2)
    everything = [part for number in range(40) for part in scripts.script(number, 0)]
    talk = sum(part.sentence.seconds for part in everything)
    assert talk / (talk + sum(part.quiet for part in everything) / 10) == pytest.approx(0.3, abs=0.05)


def test_histograms_add_up() -> None:
    one, other = Histogram(), Histogram()
    for value in range(1, 1001):
        (one if value % 2 else other).add(value / 1000)
    before = one.copy()
    one += other
    assert one.count == 1000
    for share in (0.5, 0.95, 0.99):
        assert one.percentile(share) == pytest.approx(share, rel=0.03)
    assert one.percentile(1.0) == one.longest == 1.0
    assert one.since(before).count == 500
    assert Histogram().percentile(0.5) != Histogram().percentile(0.5)  # not a number
    assert total([Tally(right=1), Tally(right=2, examples=[{}] * 50)]).right == 3
    assert len(total([Tally(examples=[{}] * 50)]).examples) == 20


def test_durations() -> None:
    values = {"30s": 30, "5m": 300, "1h": 3600, "1h30m": 5400, "90": 90, "2m30s": 150, "1.5m": 90}
    assert {text: parse_duration(text) for text in values} == values
    for text in ("", "s", "5 minutes", "-3s", "1s1h", "nan"):
        with pytest.raises(ValueError, match="is no duration"):
            parse_duration(text)
    assert duration(1.0)("1s") == 1.0


def test_word_errors() -> None:
    """With a limit as without, as far as it goes; case and punctuation are not heard."""

    def pairs() -> Iterator[tuple[str, str]]:
        texts = ["", "a", "a b", "b a", "a b c d e", "a x c d", "x y z", "b c d e f g h", "a b c d e f g h"]
        yield from itertools.product(texts, texts)

    for one, other in pairs():
        distance = word_errors(one, other)
        assert word_errors(other, one) == distance
        assert abs(len(one.split()) - len(other.split())) <= distance <= max(len(one.split()), len(other.split()))
        for limit in range(9):
            assert word_errors(one, other, limit) == min(distance, limit + 1)
    assert word_errors("turn on the light", "turn off the kitchen light") == 2
    assert spoken("It's 5 o'clock, “Alice” — 今天。") == ["it's", "5", "o'clock", "alice", "今", "天"]


def test_the_dashboard() -> None:
    """What a terminal shows."""
    shown = outcome(Plan(("ws://x",), connections=5), right=4)
    shown.tally.failures["wrong_text"] += 1
    shown.tally.times["ack"].add(0.005)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(Dashboard.drawn(shown))
    text = console.export_text()
    for words in ("sessions right", "wrong_text 1", "ack", "5 ms", "worker 1", "tester 1"):
        assert words in text
