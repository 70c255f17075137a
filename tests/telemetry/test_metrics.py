"""metrics.py: every process serves the metrics of all; the alerts and the dashboard in conf/; logs as JSON."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from asrserver.auth.addresses import HostNames
from asrserver.client import Client
from asrserver.telemetry import metrics, metrics_port, multiprocess
from asrserver.telemetry.logs import JsonFormatter, request_id
from tests.program import System, free_port
from tests.recordings import Utterance
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
RULES = ROOT / "conf" / "prometheus-rules.yml"
DASHBOARD = ROOT / "conf" / "grafana-dashboard.json"


def read(port: int) -> str:
    """Read the metrics on a new connection, from any of the processes."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(response.read().decode())


def samples(port: int) -> dict[str, float]:
    """Every sample by its name and labels, as Prometheus reads them."""
    return {
        sample.name + "".join(f"{{{k}={v}}}" for k, v in sorted(sample.labels.items()) if k != "le"): sample.value
        for family in text_string_to_metric_families(read(port))
        for sample in family.samples
        if sample.labels.get("le", "+Inf") == "+Inf"
    }


async def speak(url: str, utterance: Utterance) -> str:
    async with await Client.connect(url) as client:
        session = await client.start()
        await session.send(utterance.wav)
        return str((await session.finish())["text"])


def test_a_process_that_begins_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a child creates its files, the other processes still answer, with their own figures."""
    monkeypatch.setenv(multiprocess.DIRECTORY, str(tmp_path))
    rename, asked = os.rename, []

    def ask(*arguments: str) -> None:  # a file is written, and not there yet
        asked.append(arguments)
        assert list(MultiProcessCollector(CollectorRegistry(), str(tmp_path)).collect()) == []
        rename(*arguments)

    monkeypatch.setattr(os, "rename", ask)
    assert multiprocess.allocate("worker-1")
    assert len(asked) == 5
    made = sorted(tmp_path.iterdir())
    assert len(made) == 5
    assert {path.suffix for path in made} == {".db"}
    made[0].write_bytes(b"kept")
    assert multiprocess.allocate("worker-1")
    assert made[0].read_bytes() == b"kept"


def test_every_process_answers_for_all(start: Callable[..., System], utterances: list[Utterance]) -> None:
    """Two gateways and two workers: sums are right in every answer, and outlive the processes that counted."""
    port = free_port()
    system = start("run", "--gateways", "2", "--workers", "2", "--metrics-port", str(port), "--log-format", "json")
    system.wait_ready()
    for utterance in utterances[:6]:
        assert asyncio.run(speak(system.url, utterance))
    wait_until(lambda: samples(port)["asrserver_chunks_total"] == 6, 30, "all chunks are counted")
    wait_until(lambda: samples(port)["asrserver_persist_seconds_count"] >= 12, 30, "all results are stored")
    wait_until(lambda: samples(port)["asrserver_decode_seconds_count"] >= 6, 30, "all calls are counted")
    for asked in (port, *[system.port] * 6):
        found = samples(asked)
        assert found["asrserver_sessions_started_total"] == found["asrserver_sessions_ended_total{status=done}"] == 6
        assert found["asrserver_connections_opened_total"] == 6
        assert found["asrserver_enqueue_seconds_count"] == found["asrserver_answer_seconds_count"] == 6
        assert found["asrserver_decode_seconds_count"] >= 6
        assert 6 < found["asrserver_audio_seconds_total"] < 60
        assert found["asrserver_received_bytes_total"] == sum(len(u.wav) for u in utterances[:6])
        assert found["asrserver_children{kind=gateway}"] == found["asrserver_children{kind=worker}"] == 2
        assert found["asrserver_sessions"] == found["asrserver_backlog_seconds"] == 0
    files = len(list(Path(next_directory(system)).iterdir()))
    for kind in ("gateway", "worker"):
        child: psutil.Process = system.children(kind)[0]
        child.send_signal(signal.SIGKILL)
    for kind in ("gateway", "worker"):
        death = f"asrserver_restarts_total{{kind={kind}}}"
        wait_until(lambda death=death: samples(port).get(death) == 1, 30, f"the {kind}'s death")
    wait_until(lambda: samples(port)["asrserver_children{kind=gateway}"] == 2, 60, "a new gateway")
    wait_until(lambda: samples(port)["asrserver_children{kind=worker}"] == 2, 60, "a new worker")
    found = samples(port)
    assert (found["asrserver_chunks_total"], found["asrserver_sessions_started_total"]) == (6, 6)
    assert len(list(Path(next_directory(system)).iterdir())) == files  # a restart leaves none behind
    text = read(port)
    directory = next_directory(system)
    assert system.stop() == 0
    assert not Path(directory).exists()
    check_json_lines(system)
    check_metrics(text)


def test_figures_of_the_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(multiprocess.DIRECTORY, str(tmp_path))
    assert multiprocess.child_counts() == {}
    counts = multiprocess.ChildCounts()
    counts.ready({"gateway": 1, "worker": 2})
    counts.restarted("worker")
    counts.restarted("worker")
    found = {
        (sample.name, sample.labels["kind"]): sample.value
        for family in metrics.of_all_processes().collect()
        for sample in family.samples
    }
    assert found == {
        ("asrserver_children", "gateway"): 1,
        ("asrserver_children", "worker"): 2,
        ("asrserver_restarts_total", "worker"): 2,
    }
    (file,) = tmp_path.iterdir()
    assert file.name == multiprocess.CHILDREN


def test_figures_that_found_no_room_are_written_when_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(multiprocess.DIRECTORY, str(tmp_path / "full"))
    counts = multiprocess.ChildCounts()
    counts.ready({"worker": 2})
    (tmp_path / "full").mkdir()
    counts.ready({"worker": 2})
    assert multiprocess.child_counts() == {"restarts": {}, "children": {"worker": 2}}


def next_directory(system: System) -> str:
    """The directory of the program's metric files."""
    return psutil.Process(system.children("worker")[0].pid).environ()["PROMETHEUS_MULTIPROC_DIR"]


#: How the lines begin that tell people where the server is.
ANNOUNCED = ("asrserver ", "open http")


def check_json_lines(system: System) -> None:
    """Every line but those of the announcement is an object; those about a session or request contain its id."""
    lines = [json.loads(line) for line in system.output().splitlines() if not line.startswith(ANNOUNCED)]
    assert all({"time", "level", "logger", "process", "message"} <= line.keys() for line in lines)
    opened = [line for line in lines if " open mode=" in line["message"]]
    assert len({line["session"] for line in opened}) == len({line["request_id"] for line in opened}) == 6


def test_the_port_of_metrics_knows_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key is asked for there: a page that lets its name resolve to this machine must not read the metrics."""
    monkeypatch.setenv(multiprocess.DIRECTORY, str(tmp_path))
    number = free_port()

    def status(host: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", number, timeout=20)
        connection.request("GET", "/metrics", headers={"Host": host})
        response = connection.getresponse()
        assert response.read().startswith(b"host_not_allowed") == (response.status == 403)
        return response.status

    with metrics_port.metrics_port("127.0.0.1", number, HostNames("metrics.example", "").allow):
        hosts = (
            f"127.0.0.1:{number}",
            f"localhost:{number}",
            "metrics.example",
            "evil.example",
            f"evil.example:{number}",
        )
        assert [status(host) for host in hosts] == [200, 200, 200, 403, 403]


def test_the_port_of_metrics_waits_for_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client has a thread there: one that sends a byte now and then is closed, and so is one too many."""
    monkeypatch.setenv(multiprocess.DIRECTORY, str(tmp_path))
    monkeypatch.setattr(metrics_port, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(metrics_port, "MAX_REQUESTS", 1)
    number = free_port()
    with metrics_port.metrics_port("::1", number, HostNames("", "").allow):
        with socket.create_connection(("::1", number)) as held, socket.create_connection(("::1", number)) as more:
            assert more.recv(1) == b""
            wait_until(lambda: not sends(held), 20, "the slow one is closed")
        wait_until(lambda: read_or_none(number) is not None, 20, "there is room again")


def sends(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"G")
    except OSError:
        return False
    return True


def read_or_none(number: int) -> bytes | None:
    connection = http.client.HTTPConnection("::1", number, timeout=20)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read()
    except OSError:
        return None


def test_metrics_on_a_port_that_is_taken(start: Callable[..., System], system: System) -> None:
    other = start("run", "--metrics-port", str(system.port))
    assert other.process.wait(30) == 1
    assert f"--metrics-port {system.port}" in other.output()
    assert "Traceback" not in other.output()


def test_what_a_killed_supervisor_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next supervisor removes it at its start."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    for name in (multiprocess.DIRECTORY, multiprocess.SLOT):
        monkeypatch.setenv(name, "")
    left, unknown = tmp_path / "asrserver-metrics-left", tmp_path / "asrserver-metrics-unknown"
    for path in (left, unknown):
        path.mkdir()
    (left / ".held").touch()
    with multiprocess.directory():
        (first,) = set(tmp_path.iterdir()) - {unknown}
        with multiprocess.directory():
            assert first.exists()
            assert len(list(tmp_path.iterdir())) == 3
    assert list(tmp_path.iterdir()) == [unknown]


@pytest.mark.usefixtures("processes")
def test_no_room_for_metrics_is_no_reason_not_to_run() -> None:
    code = """if True:
        import os
        os.environ["PROMETHEUS_MULTIPROC_DIR"], os.environ["ASRSERVER_METRICS_SLOT"] = "/nonexistent", "a"
        from asrserver.telemetry import metrics
        metrics.chunks.inc()
        metrics.count_refusal("x")
        print(metrics.exposition().decode())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "asrserver_chunks_total 1.0" in done.stdout


def test_codes_cannot_be_made_up_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_codes", set())
    for number in range(metrics.MAX_CODES + 50):
        metrics.count_refusal(f"made_up_{number}")
    found = re.findall(
        r'asrserver_refusals_total\{code="(made_up_\d+|other)"\} ([\d.]+)', metrics.exposition().decode()
    )
    assert len(found) == metrics.MAX_CODES + 1
    assert dict(found)["other"] == "50.0"


# -- conf/


def names() -> set[str]:
    """All names that a query may use."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    found = {f"{f.name}_total" if f.type == "counter" else f.name: f.type for f in families}
    more = {
        f"{name}_{part}" for name, kind in found.items() if kind == "histogram" for part in ("bucket", "count", "sum")
    }
    return {*found, *more}


def used(text: str) -> set[str]:
    return set(re.findall(r"\basrserver_\w+", text))


def test_the_dashboard_and_the_alerts_ask_for_what_there_is() -> None:
    """They use only metrics that exist, and the dashboard shows all of them."""
    rules, dashboard = RULES.read_text(), DASHBOARD.read_text()
    groups = yaml.safe_load(rules)["groups"]
    expressions = " ".join(rule["expr"] for group in groups for rule in group["rules"])
    panels = [panel for panel in json.loads(dashboard)["panels"] if panel["type"] != "row"]
    queries = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    assert len(used(expressions)) > 5
    assert (used(expressions) | used(queries)) <= names()
    shown = used(queries)
    families = {f.name for f in text_string_to_metric_families(metrics.exposition().decode())}
    assert {name for name in families if not any(other.startswith(name) for other in shown)} == set()
    for group in groups:
        for rule in group["rules"]:
            assert {"alert", "expr", "for", "labels", "annotations"} == rule.keys()
            assert {"summary", "description"} == rule["annotations"].keys()
    ids = [panel["id"] for panel in json.loads(dashboard)["panels"]]
    assert len(ids) == len(set(ids))


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool, of Debian's prometheus, is not here")
    done = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    check_metrics(metrics.exposition().decode())


def check_metrics(text: str) -> None:
    """Check the format as promtool does, with promtool if it is installed."""
    promtool = shutil.which("promtool")
    if promtool is not None:
        done = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


# -- logs


def test_a_line_of_json_says_what_it_is_about() -> None:
    try:
        raise ValueError("bad \ud800 half")
    except ValueError:
        record = logging.getLogger("asrserver.x").makeRecord(
            "asrserver.x", logging.ERROR, __file__, 1, "session=%s failed\nfor chunk=%d", ("a/ü=1", 7), sys.exc_info()
        )
    token = request_id.set("r-1")
    try:
        line = JsonFormatter().format(record)
    finally:
        request_id.reset(token)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["session"], found["request_id"], found["level"]) == ("a/ü=1", "r-1", "error")
    assert found["message"] == "session=a/ü=1 failed\\nfor chunk=7"
    assert "ValueError" in found["error"]
    record = logging.makeLogRecord({"msg": "plain", "levelname": "INFO"})
    assert json.loads(JsonFormatter().format(record)).keys() == {"time", "level", "logger", "process", "message"}
