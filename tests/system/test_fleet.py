"""Several models in one fleet: sessions name one, workers load them on demand, and others' sessions never notice."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from asrserver.broker.keys import tasks_key
from asrserver.models import TOY_NOTICE, find_model
from tests.program import System, cli
from tests.recordings import Utterance
from tests.system.support import Start
from tests.waiting import until, wait_until
from tests.ws_client import WsClient, check_stored, health, look, stored

#: The packaged model's own, for it under another name.
MODEL = ("--compute-type", "float32", "--silence", "0.4")


@pytest.fixture
def twin(tmp_path: Path) -> str:
    """The packaged model under another name."""
    shutil.copytree(find_model("demo").path, tmp_path / "twin")
    return str(tmp_path / "twin")


@pytest.fixture
def broken(twin: str, tmp_path: Path) -> str:
    """A model that can be described, and not be loaded."""
    shutil.copytree(twin, tmp_path / "broken")
    (tmp_path / "broken" / "model.bin").write_bytes(b"\x06\x00\x00\x00no weights")
    return str(tmp_path / "broken")


def models_of(system: System) -> dict[str, dict[str, Any]]:
    return {model["name"]: model for model in health(system.port)["models"]}


def exposition(system: System) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{system.port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.gen_test(timeout=170)
async def test_sessions_name_one_of_a_worker_s_models(
    start: Start, twin: str, broken: str, utterances: list[Utterance]
) -> None:
    """A model is loaded when a session names it, beside the sessions of the first; a damaged one fails its own."""
    loop = asyncio.get_running_loop()
    system = start("run", "--workers", "1", "--model", f"demo,{twin},{broken}", "--model-ttl", "1", *MODEL)
    system.wait_ready()
    await until(lambda: models_of(system))  # with its first heartbeat
    before = await loop.run_in_executor(None, models_of, system)
    assert [(name, model["loaded"]) for name, model in before.items()] == sorted(
        [("demo", 1), (twin, 0), (broken, 0)], key=lambda one: one[0]
    )
    async with await WsClient.open(system.url) as ws:
        await ws.start("first")
        await ws.chunk("first", 0, utterances[0].wav)
        await ws.start("second", model=twin)
        await ws.chunk("second", 0, utterances[1].wav)
        await ws.start("third", model=broken)
        assert {sid: ws.of(sid, "ack")[0]["model"] for sid in ("first", "second", "third")} == {
            "first": "demo",
            "second": twin,
            "third": broken,
        }
        assert (await ws.find("third", "error"))["code"] == "model_unavailable"
        assert (await ws.find("third", "final_result"))["status"] == "error"
        assert (await ws.find("first", "chunk_result", 0))["text"] == utterances[0].text
        await ws.find("second", "chunk_result", 0)
        loaded = (await loop.run_in_executor(None, models_of, system))[twin]
        await until(lambda: models_of(system)[twin]["sessions"] == 1)
        await ws.finish("second")
        await ws.chunk("first", 1, utterances[2].wav)
        await ws.finish("first")
        ws.check("first", [utterances[0], utterances[2]])
        await ws.send({"action": "start", "session_id": "none", "model": "large-v3"})
        refusal = await ws.find("none", "error")
        assert (refusal["code"], refusal["option"]) == ("unknown_model", "model")
        assert f"offered: {', '.join(sorted(['demo', twin, broken]))}" in refusal["message"]
    assert loaded["size_bytes"] == before["demo"]["size_bytes"] > 1_000_000
    await until(lambda: models_of(system)[twin]["loaded"] == 0, 30, "the model is unloaded")
    metrics = await loop.run_in_executor(None, exposition, system)
    shown = re.findall(r'asrserver_model_info\{compute_type="(\w+)",device="cpu",model="([^"]+)"\} (\S+)', metrics)
    assert sorted(shown) == sorted([("float32", "demo", "1.0"), ("float32", twin, "0.0")])
    assert f"model {broken} cannot be loaded" in system.output()
    assert " died: " not in system.output()
    assert system.stop() == 0


@pytest.mark.gen_test(timeout=170)
async def test_workers_with_different_models(
    start: Start, redis_url: str, database_url: str, twin: str, utterances: list[Utterance]
) -> None:
    """A session stays with workers that offer its model, also when its worker dies and when the next one is replaced;
    one that names none goes to any."""
    gateway = start("gateway").wait_ready()
    workers = {name: start("worker", "--workers", "1", "--model", name, *MODEL) for name in ("demo", twin)}
    for system in workers.values():
        system.wait_ready()
    await until(lambda: models_of(gateway).keys() == workers.keys())
    names = {"d": "demo", "t": twin, "any": None}
    async with await WsClient.open(gateway.url) as ws:
        for sid, name in names.items():
            await ws.start(sid, model=name)
            await ws.chunk(sid, 0, utterances[0].wav)
        for sid in names:
            await ws.find(sid, "chunk_result", 0)
        (dead,) = workers[twin].children("worker")
        dead.kill()
        await until(lambda: not psutil.pid_exists(dead.pid) or dead.status() == psutil.STATUS_ZOMBIE)
        with look(redis_url) as client:
            assert client.xlen(tasks_key(twin)) == 1
        for sid in names:
            await ws.chunk(sid, 1, utterances[1].wav)
            await ws.find(sid, "chunk_result", 1)
        workers[twin].process.send_signal(signal.SIGHUP)
        await until(
            lambda: re.search(r"consumer\S* session=t taken over by another worker", workers[twin].output()),
            60,
            "the worker that is replaced hands it over",
        )
        for sid in names:
            await ws.chunk(sid, 2, utterances[2].wav)
            await ws.finish(sid)
        ws.check("d", utterances[:3])
        await ws.start("late")  # by now the gateway knows that it could be either
        assert "model" not in ws.of("late", "ack")[0]
        await ws.finish("late")
    for sid, name in names.items():
        await until(lambda sid=sid: stored(database_url, sid) is not None)
        if sid == "d":
            check_stored(database_url, sid, utterances[:3])
        if name:
            assert gateway.get(f"/session/{sid}")["model"] == name
    for system in workers.values():
        assert system.stop() == 0


@pytest.mark.usefixtures("processes")
def test_the_toy_announces_itself(start: Start, twin: str, tmp_path: Path, utterances: list[Utterance]) -> None:
    """In the log, in status, in health, and to whoever transcribes with it; another model does not."""
    (tmp_path / "a.wav").write_bytes(utterances[0].wav)
    for name, is_toy in (("demo", True), (twin, False)):
        system = start("run", "--workers", "1", "--model", f"{name}", *MODEL).wait_ready()
        server = ("--server", f"127.0.0.1:{system.port}")
        assert (TOY_NOTICE in system.output()) == is_toy
        wait_until(lambda port=system.port: health(port)["status"] == "ok", what="all parts answer")
        assert health(system.port)["warnings"] == ([TOY_NOTICE] if is_toy else [])
        assert (f"warning   {TOY_NOTICE}\n" in cli("status", *server).stdout) == is_toy
        done = cli("transcribe", *server, "--model", name, tmp_path / "a.wav", tmp_path / "a.wav")
        assert (done.returncode, done.stderr) == (0, f"Warning: {TOY_NOTICE}.\n" if is_toy else "")
        refused = cli("transcribe", *server, "--model", "large", tmp_path / "a.wav")
        assert refused.returncode == 1
        assert f"no worker offers the model 'large' (offered: {name})" in refused.stderr
        assert system.stop() == 0
