"""tools/install below a folder of the test's, and the units of conf/ as systemd reads them.

Services, users and a rolling restart need a machine of their own: docs/run/install.md says how that was tried.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from asrserver.cli.options import BadSetting
from asrserver.supervisor.children import EXIT_BOOT

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
UNITS = sorted(CONF.glob("*.service"))

#: The exposure that `systemd-analyze security` may find, of 100: 50 and more is called medium, 100 is no protection.
EXPOSURE = 20

Installer = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def installer(tmp_path: Path, processes: None) -> Installer:
    """Return a function that calls tools/install on tmp_path/root, with no package index."""

    options = ("--prefix", tmp_path / "root", "--no-gpu", "--python", sys.executable)

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "tools" / "install", *options, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PIP_NO_INDEX": "1", "TMPDIR": str(tmp_path)},
        )

    return call


def wheel(folder: Path, version: str) -> Path:
    """A wheel that is called asrserver, with nothing in it."""
    folder.mkdir(exist_ok=True)
    path, info = folder / f"asrserver-{version}-py3-none-any.whl", f"asrserver-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        extras = "Provides-Extra: embedded\nProvides-Extra: whisper\n"
        archive.writestr("asrserver/__init__.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: asrserver\nVersion: {version}\n{extras}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def contents(folder: Path) -> dict[str, tuple[str, float]]:
    """Every link and file below a folder, with where it points to, and when it was written."""
    return {
        str(path.relative_to(folder)): (os.readlink(path) if path.is_symlink() else "", path.lstat().st_mtime)
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }


def test_install_upgrade_and_the_way_back(installer: Installer, tmp_path: Path) -> None:
    """Versions lie side by side, and `current` says which is active; settings are the operator's."""
    first, second = wheel(tmp_path / "wheels", "8.0"), wheel(tmp_path / "wheels", "9.0")
    home, etc = tmp_path / "root/opt/asrserver", tmp_path / "root/etc/asrserver"
    assert (done := installer(first)).returncode == 0, done.stderr
    (before,) = home.glob("versions/8.0-*")
    assert (home / "current").resolve() == before
    assert {path.name: path.stat().st_mode & 0o777 for path in etc.iterdir()} == {
        "asrserver.toml": 0o640,
        "environment": 0o600,
        "keys.json": 0o640,
    }
    assert {path.name for path in (tmp_path / "root/etc/systemd/system").iterdir()} == {unit.name for unit in UNITS}
    (etc / "asrserver.toml").write_text("port = 9000\n")

    state = contents(tmp_path / "root/opt")
    assert "is installed" in installer(first).stdout
    assert contents(tmp_path / "root/opt") == state

    after = home / re.findall("versions/9.0-[0-9a-f]+", installer("--dry-run", second).stdout)[0]
    (after / "lib").mkdir(parents=True)  # as an interrupted call leaves it
    (after / "lib/half").touch()
    assert (done := installer(second)).returncode == 0, done.stderr
    assert not (after / "lib/half").exists()
    assert ((home / "current").resolve(), (home / "previous").resolve()) == (after, before)
    assert installer("--rollback").returncode == 0
    assert ((home / "current").resolve(), (home / "previous").resolve()) == (before, after)
    (after / "complete").unlink()
    assert "is not there any more" in installer("--rollback").stderr
    assert (home / "current").resolve() == before

    assert (etc / "asrserver.toml").read_text() == "port = 9000\n"
    assert installer("--uninstall").returncode == 0
    assert {path.name for path in (tmp_path / "root").rglob("*") if path.is_file()} == {
        "asrserver.toml",
        "environment",
        "keys.json",
    }
    assert installer("--uninstall", "--purge").returncode == 0
    assert [path for path in (tmp_path / "root").rglob("*") if not path.is_dir()] == []


def test_a_dry_run_changes_nothing(installer: Installer, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    done = installer("--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "+ ln -sfn versions/" in done.stdout
    assert list((tmp_path / "root").rglob("*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rol", "worker"), "there is no option --rol; --help shows those that there are"),
        (("--role", "cook"), "--role cook: it is all, gateway, worker or none"),
        (("--role",), "--role needs a value; --help shows the options"),
        (("no.whl",), "no.whl: there is no such file"),
        (("--purge",), "--purge goes with --uninstall"),
        (("--rollback",), "there is no version before this one in "),
    ],
)
def test_what_cannot_be_done_is_said(installer: Installer, arguments: tuple[str, ...], message: str) -> None:
    done = installer(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"tools/install: {message}")


def test_the_page_has_every_option() -> None:
    script, page = (ROOT / "tools/install").read_text(), (ROOT / "docs/run/install.md").read_text()
    options = set(re.findall(r"--[a-z][a-z-]+", script[script.index("usage() {") : script.index("\nsay()")]))
    assert len(options) > 8
    assert {option for option in options if f"`{option}" not in page} == set()


# -- units -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with the units, and the program's name as systemd looks for it; skips where there is no systemd."""
    if shutil.which("systemd-analyze") is None:
        assert "CI" not in os.environ
        pytest.skip("systemd-analyze is not there: apt install systemd")
    folder = tmp_path / "etc/systemd/system"
    folder.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(unit, folder)
        if "gateway" not in unit.name:
            (folder / f"{unit.name}.d").mkdir()
            shutil.copy(CONF / "gpu.conf", folder / f"{unit.name}.d")
    return tmp_path


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_the_units(unit: Path, machine: Path) -> None:
    """Every line of them; that the program is not installed here is all that it may say."""
    unit = machine / "etc/systemd/system" / unit.name.replace("@", "@8081")
    template = unit.with_name(unit.name.replace("@8081", "@"))
    template.write_text(template.read_text().replace("/opt/asrserver/current/bin/python", "/bin/true"))
    if unit != template:
        unit.symlink_to(template.name)
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_leave_little_open(unit: Path, machine: Path) -> None:
    name = unit.name.replace("@", "@8081")
    done = analyze("security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}", f"--root={machine}", name)
    assert done.returncode == 0, done.stdout


def test_units_know_where_the_installer_puts_things() -> None:
    script = (ROOT / "tools/install").read_text()
    for unit in UNITS:
        text = unit.read_text()
        assert "ExecStart=/opt/asrserver/current/bin/python -m asrserver " in text
        assert "EnvironmentFile=-/etc/asrserver/environment" in text
        assert "--config /etc/asrserver/asrserver.toml" in text
        assert (
            f"\nRestartPreventExitStatus={BadSetting.exit_code} {EXIT_BOOT}\n" in text
        )  # the same start would fail again
    assert "home=$prefix/opt/asrserver etc=$prefix/etc/asrserver" in script
