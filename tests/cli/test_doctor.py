"""asrserver doctor: what it says of a machine and of settings."""

from __future__ import annotations

import json
import resource
import socket
from pathlib import Path

import pytest

from asrserver import models
from asrserver.cli.doctor import (
    check_clock,
    check_cpus,
    check_disks,
    check_files,
    check_limits,
    check_models,
    check_port,
    check_sandbox,
    check_shared_memory,
)
from asrserver.config import Settings
from tests.program import NONE, cli


def found(output: str, subject: str) -> list[tuple[str, str]]:
    return [(one["level"], one["text"]) for one in json.loads(output) if one["subject"] == subject]


@pytest.mark.usefixtures("processes")
def test_a_machine_with_servers_that_can_be_used_is_well(redis_url: str, database_url: str) -> None:
    servers = {**NONE, "REDIS_URL": redis_url, "DATABASE_URL": database_url}
    assert cli("db", "upgrade", env=servers).returncode == 0
    done = cli("doctor", "--json", "--model", "tiny.en", "--max-connections", "10", env=servers)
    assert done.stderr == ""
    assert done.returncode == 0, done.stdout
    assert {level for level, _ in found(done.stdout, "PostgreSQL")} == {"ok"}
    assert found(done.stdout, "Redis")[0][0] == "ok"
    assert any("ctranslate2" in text for _, text in found(done.stdout, "program"))


@pytest.mark.usefixtures("processes")
def test_what_does_not_work_fails_by_name(tmp_path: Path) -> None:
    broken = {**NONE, "REDIS_URL": "redis://127.0.0.1:9/0", "DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:9/x"}
    done = cli("doctor", "--json", "--host", "0.0.0.0", "--model", "/no/such", "--data-dir", str(tmp_path), env=broken)
    assert done.returncode == 1
    assert done.stderr == ""
    for subject, told in (("Redis", "127.0.0.1:9"), ("PostgreSQL", "127.0.0.1"), ("settings", "no API keys")):
        [(level, text)] = found(done.stdout, subject)
        assert level == "fail"
        assert told in text
    assert "s3cret" not in done.stdout
    [(level, text)] = found(done.stdout, "model")
    assert level == "fail"
    assert "/no/such" in text


@pytest.mark.usefixtures("processes")
def test_a_worker_s_machine_needs_neither_database_nor_port(redis_url: str) -> None:
    done = cli("doctor", "--for", "worker", "--model", "demo", env={**NONE, "REDIS_URL": redis_url})
    assert done.returncode == 0, done.stdout
    assert "PostgreSQL" not in done.stdout
    assert "disk" not in done.stdout


def test_too_few_files_and_too_little_room_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [few] = check_files(Settings(max_connections=10**9))
    assert (few.level, few.subject) == ("warn", "open files")
    assert "LimitNOFILE" in few.text
    monkeypatch.setattr("asrserver.cli.doctor.LOW_DISK", 2**60)
    [disk] = check_disks(Settings(data_dir=str(tmp_path / "not" / "there")))
    assert disk.level == "warn"
    monkeypatch.setattr("asrserver.cli.doctor.FULL_DISK", 2**60)
    assert [one.level for one in check_disks(Settings(save_audio=str(tmp_path), data_dir=str(tmp_path)))] == [
        "fail"
    ] * 2


def test_a_port_that_is_taken_is_a_warning_and_an_address_of_others_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        [finding] = check_port(Settings(port=port))
        assert finding.level == "warn"
        assert f"{port} of 127.0.0.1: is taken" in finding.text
    assert [one.level for one in check_port(Settings(port=port))] == ["ok"]
    assert [one.level for one in check_port(Settings(host="192.0.2.1", port=port))] == ["fail"]


def test_a_quota_below_one_core_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asrserver.cli.doctor.available_cpus", lambda: 0.5)
    [finding] = check_cpus()
    assert finding.level == "warn"
    assert "quota" in finding.text


def test_limits_of_memory_files_and_threads_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = dict.fromkeys((resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE), resource.RLIM_INFINITY)
    limits[resource.RLIMIT_NPROC] = 4096
    monkeypatch.setattr("resource.getrlimit", lambda kind: (limits[kind], resource.RLIM_INFINITY))
    assert [one.level for one in check_limits()] == ["ok"]
    limits |= {resource.RLIMIT_AS: 2**30, resource.RLIMIT_FSIZE: 2**20, resource.RLIMIT_NPROC: 100}
    texts = [one.text for one in check_limits() if one.level == "warn"]
    assert [text.partition(",")[0] for text in texts[:2]] == ["ulimit -v is 1048576", "ulimit -f is 1024"]
    assert texts[2].startswith("ulimit -u is 100:")


def test_little_shared_memory_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 100 * 2**20
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": free}))
    assert [one.level for one in check_shared_memory(embedded=False)] == ["ok"]
    [finding] = check_shared_memory(embedded=True)
    assert (finding.level, finding.subject) == ("warn", "shm")
    assert finding.text.startswith("100 MiB free, metrics and the embedded PostgreSQL take up to 128: ")
    monkeypatch.setattr("asrserver.process.places.SHARED_MEMORY", str(tmp_path / "not"))
    [finding] = check_shared_memory(embedded=False)
    assert (finding.level, "not writable" in finding.text) == ("warn", True)


def test_a_kernel_without_filters_of_system_calls_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for able, level in ((True, "ok"), (False, "warn")):
        monkeypatch.setattr("asrserver.cli.doctor.can_forbid_system_calls", lambda able=able: able)
        [finding] = check_sandbox()
        assert (finding.level, finding.subject) == (level, "sandbox")


@pytest.mark.parametrize(("state", "level"), [(0, "ok"), (1, "ok"), (-1, "ok"), (5, "warn")])
def test_a_clock_that_nothing_synchronises_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, state: int, level: str
) -> None:
    [asked] = check_clock()
    assert (asked.subject, asked.level in ("ok", "warn")) == ("clock", True)
    monkeypatch.setattr("asrserver.cli.doctor._clock_state", lambda: state)
    assert [one.level for one in check_clock()] == [level]


def test_the_toy_and_too_little_memory_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asrserver.cli.doctor._free_memory", lambda: 1)
    findings = list(check_models(Settings(model="demo", device="cpu")))
    assert [(one.level, one.subject) for one in findings] == [("warn", "model"), ("warn", "memory")]


def test_damaged_weights_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.bin").write_bytes(b"not these")
    monkeypatch.setitem(models.CHECKSUMS, str(tmp_path), "0" * 64)
    first, *_ = check_models(Settings(model=str(tmp_path), device="cpu"))
    assert first.level == "fail"
    assert "damaged" in first.text
