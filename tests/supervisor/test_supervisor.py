"""The supervisor and its children as processes: readiness, restarts, signals, ends, and starts that cannot work."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from asrserver.broker.keys import session_key
from asrserver.config import Settings
from asrserver.loadtest.host import get
from asrserver.supervisor.children import Vitals
from asrserver.supervisor.supervisor import Slot, Supervisor, _spawn
from tests.program import System, alive
from tests.recordings import Utterance
from tests.waiting import until, wait_until
from tests.ws_client import WsClient, check_stored, chunk, look, stored

Start = Callable[..., System]


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended, even if it was not waited for."""
    return not alive(process)


def family(system: System) -> list[psutil.Process]:
    return list(psutil.Process(system.process.pid).children(recursive=True))


def heartbeats(url: str, kind: str) -> list[str]:
    with look(url) as client:
        return sorted(client.scan_iter(f"{kind}:*:heartbeat"))


def failed_start(system: System, status: int, timeout: float = 60.0) -> str:
    """Wait for the end of a start that cannot work; return its output."""
    wait_until(lambda: system.process.poll() is not None, timeout, "the start is given up")
    output = system.output()
    assert system.process.returncode == status, output
    assert "Traceback" not in output
    assert "listening on" not in output
    return output


# -- life ------------------------------------------------------------------------------------------------------------


def test_ready_means_ready(start: Start, redis_url: str) -> None:
    """The readiness line comes once and names the port, and everything is ready then."""
    system = start("run", "--workers", "2", "--gateways", "2").wait_ready()
    assert (
        len(re.findall(r"^asrserver listening on http://127\.0\.0\.1:\d+ .*, 2 workers$", system.output(), re.M)) == 1
    )
    health = system.get("/health")
    assert health["status"] == "ok"
    assert len(system.children("worker")) == len(system.children("gateway")) == 2
    wait_until(lambda: len(heartbeats(redis_url, "worker")) == len(heartbeats(redis_url, "gateway")) == 2)
    children = family(system)
    assert system.stop() == 0
    wait_until(lambda: all(gone(child) for child in children), what="nobody is left")
    assert heartbeats(redis_url, "worker") == heartbeats(redis_url, "gateway") == []


def test_restarts_back_off_and_a_drain_does_not_wait_for_them(start: Start) -> None:
    """A worker that dies at once is restarted after growing pauses; SIGTERM in a pause ends everything, in order."""
    system = start("run", "--workers", "2").wait_ready()
    name = re.findall(r"worker (\S+) started", system.output())[0]
    for deaths in range(1, 5):
        pids = wait_until(
            lambda deaths=deaths: (
                found
                if len(found := re.findall(rf"worker {re.escape(name)} started: pid (\d+)", system.output())) == deaths
                else None
            ),
            30,
        )
        psutil.Process(int(pids[-1])).kill()
        wait_until(lambda deaths=deaths: system.output().count("died: SIGKILL") == deaths, 30, "its death is noticed")
    pauses = [float(pause) for pause in re.findall(r"died: SIGKILL.*restart in (\S+) s", system.output())]
    # The first may have been healthy for long enough to start again at once.
    assert pauses[0] <= 0.5
    assert 0.2 < pauses[1] < pauses[3] <= 4.0
    others = family(system)
    assert system.stop() == 0
    assert "did not stop in time" not in system.output()
    wait_until(lambda: all(gone(child) for child in others), what="nobody is left")


def test_hung_worker_is_replaced(start: Start, redis_url: str) -> None:
    """A stopped child sends no heartbeat: it is killed and replaced, and the gateway does not notice."""
    system = start("run", "--workers", "1", "--hang-timeout", "2").wait_ready()
    (worker,), (gateway,) = system.children("worker"), system.children("gateway")
    worker.suspend()
    wait_until(lambda: gone(worker), 30, "the hung worker is killed")
    assert "(hang_timeout): killed" in system.output()
    wait_until(lambda: len(re.findall(r"worker \S+ ready: ", system.output())) == 2, 30, "another one is ready")
    assert not gone(gateway)
    address = f"http://127.0.0.1:{system.port}"
    wait_until(lambda: get(address, "/api/v1/health", "")["status"] == "ok", 30, "the gateway knows the new worker")
    # Nobody else was killed for being slow.
    assert system.output().count("has not responded") == 1


@pytest.mark.gen_test(timeout=120)
async def test_sessions_of_a_hung_worker_go_on(start: Start, database_url: str, utterances: list[Utterance]) -> None:
    """A session whose only worker hangs is finished by the next one."""
    system = start("run", "--workers", "1", "--hang-timeout", "2").wait_ready()
    async with await WsClient.open(system.url) as ws:
        await ws.start("one")
        await ws.chunk("one", 0, utterances[0].wav)
        await ws.find("one", "chunk_result", 0)
        system.children("worker")[0].suspend()
        await ws.chunk("one", 1, utterances[1].wav)
        await ws.finish("one")
        ws.check("one", utterances[:2])
    await until(lambda: stored(database_url, "one"))
    check_stored(database_url, "one", utterances[:2])


def test_hung_gateway_is_replaced(start: Start) -> None:
    """The same for a gateway: the port answers again."""
    system = start("run", "--workers", "1", "--hang-timeout", "2").wait_ready()
    (gateway,) = system.children("gateway")
    gateway.suspend()
    wait_until(lambda: gone(gateway), 30, "the hung gateway is killed")

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return bool(system.get("/health")["status"] == "ok")
        return False

    wait_until(answers, 30, "another one answers")


def test_nothing_outlives_a_killed_supervisor(start: Start) -> None:
    """SIGKILL of the supervisor: the kernel ends its children."""
    system = start("run", "--workers", "2", "--gateways", "2").wait_ready()
    children = family(system)
    assert len(children) >= 4
    system.process.kill()
    wait_until(lambda: all(gone(child) for child in children), 20, "every child is gone")


def test_workers_come_and_go_by_signal(start: Start, redis_url: str) -> None:
    """SIGTTIN adds a worker, SIGTTOU removes one, but never the last; Redis forgets those that ended."""
    system = start("run", "--workers", "1").wait_ready()
    first = system.children("worker")
    system.process.send_signal(signal.SIGTTIN)
    wait_until(lambda: len(heartbeats(redis_url, "worker")) == 2, 30, "a second worker")
    with look(redis_url) as client:
        wait_until(lambda: len(client.xinfo_consumers("asr_tasks", "asr_workers")) == 2, 30, "it asks for work")
        system.process.send_signal(signal.SIGTTOU)
        wait_until(lambda: len(heartbeats(redis_url, "worker")) == 1, 30, "one worker again")
        wait_until(lambda: len(client.xinfo_consumers("asr_tasks", "asr_workers")) == 1, 30, "its name is forgotten")
    system.process.send_signal(signal.SIGTTOU)
    system.process.send_signal(signal.SIGTTIN)
    wait_until(lambda: len(heartbeats(redis_url, "worker")) == 2, 30, "the last one stayed")
    assert first[0] in system.children("worker")
    assert system.stop() == 0


# -- endings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.gen_test(timeout=120)
async def test_a_drain_lets_sessions_end(
    start: Start, database_url: str, utterances: list[Utterance], number: signal.Signals
) -> None:
    """A session in flight gets its final result after the signal; new ones are refused; exit status 0, all stored."""
    system = start("run", "--workers", "1", "--drain-timeout", "30").wait_ready()
    children = family(system)
    async with await WsClient.open(system.url) as ws:
        await ws.start("one")
        await ws.send(chunk("one", 0, utterances[0].wav))
        system.process.send_signal(number)
        await until(lambda: "draining" in system.output())

        async def refused() -> bool:
            error = None
            count = len(ws.messages)
            await ws.send({"action": "start", "session_id": f"late-{time.monotonic_ns()}"})
            await until(lambda: any(m["type"] == "error" or m.get("session_id", "").startswith("late")
                                    for m in ws.messages[count:]))  # fmt: skip
            error = next((m for m in ws.messages[count:] if m["type"] == "error"), None)
            if error is None:  # the gateway had not heard yet
                await ws.finish(ws.messages[-1]["session_id"])
                return False
            assert error["code"] == "shutting_down"
            assert error["retry_after"] > 0
            return True

        async with asyncio.timeout(30):
            while not await refused():
                pass
        await ws.chunk("one", 1, utterances[1].wav)
        await ws.finish("one")
        ws.check("one", utterances[:2])
        await until(lambda: ws.closed, 30, "the connection is closed by the server")
        assert ws.connection.close_code == 1012
    assert await asyncio.get_running_loop().run_in_executor(None, system.process.wait, 30) == 0
    await until(lambda: all(gone(child) for child in children), what="nobody is left")
    check_stored(database_url, "one", utterances[:2])


@pytest.mark.gen_test(timeout=120)
async def test_a_drain_does_not_wait_for_a_silent_session(
    start: Start, database_url: str, utterances: list[Utterance]
) -> None:
    """A client that sends nothing more is cut off at the end, exit status 0; it resumes after the next start."""
    system = start("run", "--workers", "1", "--drain-timeout", "1").wait_ready()
    async with await WsClient.open(system.url) as ws:
        await ws.start("one")
        await ws.chunk("one", 0, utterances[0].wav)
        system.process.send_signal(signal.SIGTERM)
        assert await asyncio.get_running_loop().run_in_executor(None, system.process.wait, 30) == 0
        await until(lambda: ws.closed)
    again = start("run", "--workers", "1").wait_ready()
    async with await WsClient.open(again.url) as ws:
        await ws.send({"action": "resume", "session_id": "one", "last_seq": 0})
        assert (await ws.find("one", "ack"))["next_chunk_index"] == 1
        assert (await ws.find("one", "chunk_result", 0))["text"] == utterances[0].text
        await ws.chunk("one", 1, utterances[1].wav)
        await ws.finish("one")
    await until(lambda: stored(database_url, "one"))
    check_stored(database_url, "one", utterances[:2])


@pytest.mark.gen_test(timeout=120)
async def test_a_second_signal_stops_at_once(start: Start) -> None:
    """SIGTERM twice with an open session: exit status 1, long before the drain would end, and no process is left."""
    system = start("run", "--workers", "1", "--drain-timeout", "300").wait_ready()
    children = family(system)
    async with await WsClient.open(system.url) as ws:
        await ws.start("one")
        system.process.send_signal(signal.SIGTERM)
        await until(lambda: "draining" in system.output())
        system.process.send_signal(signal.SIGTERM)
        await until(lambda: system.process.poll() is not None, 20, "it stops")
        assert system.process.returncode == 1
        wait_until(lambda: all(gone(child) for child in children), what="nobody is left")
        await until(lambda: ws.closed)


# -- starts that cannot work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["empty directory", "garbage", "no tokenizer", "no such name"])
def test_model_that_cannot_be_loaded(start: Start, tmp_path: Path, what: str) -> None:
    """An error of one line names the model; exit status 3 at once, no traceback, no process left."""
    model = str(tmp_path)
    if what == "garbage":
        for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.json"):
            (tmp_path / name).write_bytes(b"\xff\x00garbage" * 100)
    elif what == "no tokenizer":
        from asrserver.models import find_model

        for source in find_model("demo").path.iterdir():
            if source.name != "tokenizer.json":
                (tmp_path / source.name).symlink_to(source)
    elif what == "no such name":
        model = "nobody-has/such-a-model"
    # A hub that cannot be reached, wherever the tests run.
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    system = start("run", "--workers", "2", "--model", model, env=offline)
    output = failed_start(system, 3)
    lines = [line for line in output.splitlines() if "CRITICAL" in line]
    assert len(lines) == 1, output
    assert repr(model) in lines[0]
    assert "cannot be" in lines[0]


def test_worker_command_with_a_bad_model(start: Start, tmp_path: Path) -> None:
    """The same for a machine with workers only."""
    output = failed_start(start("worker", "--workers", "1", "--model", str(tmp_path)), 3)
    assert output.count("CRITICAL") == 1


def test_port_in_use(start: Start) -> None:
    """An error of one line names the port, and nothing is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        output = failed_start(start("run", "--port", str(port)), 1)
    (line,) = output.splitlines()
    assert f"--port {port}" in line
    assert "in use" in line


@pytest.mark.parametrize(
    ("arguments", "env", "name"),
    [
        (["--workers", "many"], {}, "--workers"),
        (["--hang-timeout", "0"], {}, "--hang-timeout"),
        ([], {"PORT": "http"}, "PORT"),
        ([], {"ASRSERVER_WINDOW": "round"}, "ASRSERVER_WINDOW"),
        ([], {"REDIS_URL": "http://localhost"}, "REDIS_URL"),
        (["--host", "no.such.host.invalid"], {}, "--host"),
    ],
)
def test_bad_setting(start: Start, arguments: list[str], env: dict[str, str], name: str) -> None:
    """An error of one line names the setting as it was given, with a status that is not 0."""
    system = start("run", *arguments, env=env)
    if "PORT" in env:  # the fixture's own --port would beat it
        system.stop()
        system = System("run", env=env)
    wait_until(lambda: system.process.poll() is not None, 30)
    (line,) = system.output().splitlines()
    assert name in line
    assert system.process.returncode in (1, 2)
    system.log.close()


def test_no_redis_there(start: Start) -> None:
    """A gateway that cannot reach Redis says so and keeps trying: the supervisor stays, and SIGTERM ends it."""
    system = start("gateway", env={"REDIS_URL": "redis://127.0.0.1:9"})
    wait_until(lambda: system.children("gateway"), 30)
    assert system.process.poll() is None
    assert system.stop() in (0, 1)
    assert "listening on" not in system.output()


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("why", "strikes"), [("crash", "1"), ("slow drain", None), ("hangs", "1"), ("stopped", None)])
def test_only_what_audio_is_to_blame_for_gives_a_strike(redis_url: str, why: str, strikes: str | None) -> None:
    """A crash and a hang are; a drain that took too long, and a stopped process, are not."""
    supervisor = Supervisor(Settings(redis_url=redis_url, hang_timeout=0.2), {}, workers=False, servers=[])
    slot = Slot("worker", "w", lambda slot: _spawn.Process(target=signal.pause))
    slot.vitals, slot.process, slot.retired = _spawn.RawValue(Vitals), slot.start(slot), True
    slot.vitals.in_hand = b"s 1-0"
    slot.process.start()
    supervisor._slots.append(slot)
    with look(redis_url) as client:
        client.hset(session_key("s"), "user_id", "")
        if why == "crash":
            supervisor._kill(slot)
        elif why == "slow drain":
            supervisor._kill_overrun(slot)
        else:
            slot.ready = True
            if why == "stopped":
                psutil.Process(slot.process.pid).suspend()
            while slot.process.is_alive():
                supervisor._check_health()
                slot.process.join(0.05)
        slot.process.join(30)
        supervisor._reap()
        assert slot.process is None
        assert client.hget(session_key("s"), "strike:1-0") == strikes


class _OnFullDisk:
    """An embedded server that has ended, and whose disk is full."""

    name = "redis"

    def poll(self) -> int:
        return 1

    def lack_of_room(self) -> str:
        return "; the disk is full"

    def start(self) -> None: ...


def test_a_full_disk_is_told_of_when_a_server_ends(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its own log cannot: it is on that disk."""
    supervisor = Supervisor(Settings(redis_url=redis_url), {}, workers=False, servers=[])
    supervisor._check_server(_OnFullDisk(), 100.0)
    assert caplog.messages == ["the embedded redis died: exit status 1; the disk is full"]
