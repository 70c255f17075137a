"""config.py: one table of settings, the precedence of their sources, and errors for bad values."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from psycopg2.extensions import parse_dsn

from asrserver.cli.options import settings_options
from asrserver.cli.startup import check_settings
from asrserver.config import COMMANDS, Settings, setting_rows
from asrserver.errors import SettingError
from tests.api_keys import GIVEN

KEYS = f"app:{GIVEN}"

CONF = Path(__file__).parent.parent / "conf"

Parse = Callable[..., Result]


@pytest.fixture
def taken() -> dict[str, Any]:
    """The options of the command that `parse` ran."""
    return {}


@pytest.fixture
def parse(taken: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Parse:
    """parse("--port", "1", command="run", env={…}): what a command's user sees."""
    for row in setting_rows():
        monkeypatch.delenv(row.env, raising=False)

    def run(*arguments: str, command: str = "run", env: dict[str, str] | None = None) -> Result:
        @click.command()
        @settings_options(command)
        def program(**options: Any) -> None:
            taken.clear()
            taken.update(options)

        return CliRunner().invoke(program, list(arguments), env=env)

    return run


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    """file("port = 1"): the path of a configuration file."""

    def write(text: str) -> str:
        path = tmp_path / "asrserver.toml"
        path.write_text(text)
        return str(path)

    return write


def one_line(result: Result) -> str:
    """The one line of the error that the program ended with."""
    assert result.exit_code == 2, result.output
    [line] = result.output.splitlines()
    assert line.startswith("Error: ")
    return line


def test_flag_beats_environment_beats_file_beats_default(
    parse: Parse, taken: dict[str, Any], file: Callable[[str], str]
) -> None:
    config = file("port = 1")
    parse()
    assert taken["port"] == 8080
    parse("--config", config)
    assert taken["port"] == 1
    parse("--config", config, env={"PORT": "2"})
    assert taken["port"] == 2
    parse("--config", config, "--port", "3", env={"PORT": "2"})
    assert taken["port"] == 3
    parse(env={"ASRSERVER_CONFIG": config, "PORT": ""})
    assert taken["port"] == 1


def test_every_setting_comes_by_flag_environment_and_file(
    parse: Parse, taken: dict[str, Any], file: Callable[[str], str]
) -> None:
    """For each row of the table, one by one: its default survives all three ways; what takes no value is set."""
    for row in setting_rows():
        value = "True" if row.type is bool else str(row.default) or "x"
        for arguments, env in (
            ((row.flag,) if row.type is bool else (row.flag, value), None),
            ((), {row.env: value}),
            (("--config", file(f'{row.key} = "{value}"')), None),
        ):
            result = parse(*arguments, env=env)
            assert result.exit_code == 0, result.output
            assert str(taken[row.key]) == value
            Settings(**taken)


def test_the_options_of_a_command_are_settings(parse: Parse, taken: dict[str, Any]) -> None:
    for command in COMMANDS:
        parse(command=command)
        Settings(**taken)
    assert set(taken) < {row.key for row in setting_rows()}


@pytest.mark.parametrize("value", ["abc", "65536", "-1", "8080.5", "true"])
def test_a_bad_value_is_one_line_that_names_where_it_came_from(
    parse: Parse, file: Callable[[str], str], value: str
) -> None:
    assert one_line(parse("--port", value)).startswith("Error: --port: ")
    assert one_line(parse(env={"PORT": value})).startswith("Error: PORT: ")
    quoted = f'"{value}"' if value == "abc" else value
    assert one_line(parse("--config", file(f"port = {quoted}"))).startswith("Error: port in the configuration file: ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prot = 1", "prot is not a setting"),
        ("[port]\na = 1", "port must be one value"),
        ("port = [1]", "port must be one value"),
        ("port =", ""),
        ("\x00", ""),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(parse: Parse, file: Callable[[str], str], text: str, reason: str) -> None:
    path = file(text)
    assert one_line(parse("--config", path)).startswith(f"Error: --config: {path}: {reason}")


def test_a_missing_file_is_one_line(parse: Parse, tmp_path: Path) -> None:
    assert "No such file" in one_line(parse("--config", str(tmp_path / "none.toml")))


def test_a_file_for_all_commands_serves_each(parse: Parse, file: Callable[[str], str]) -> None:
    """A setting of another command is no error: one file can serve all commands."""
    assert parse("--config", file('model = "small"\nport = 1'), command="gateway").exit_code == 0


def test_the_help_shows_flag_variable_and_default(parse: Parse) -> None:
    for command, groups in COMMANDS.items():
        text = re.sub(r"\s+", "", parse("--help", command=command).output)
        for row in setting_rows():
            assert (row.flag in text) == (row.group in groups)
            assert bool(re.search(rf"envvar:{row.env}[;\]]", text)) == (row.group in groups)


def test_every_setting_has_names_of_its_own() -> None:
    rows = setting_rows()
    assert (
        len({row.env for row in rows})
        == len({row.flag for row in rows})
        == len(rows)
        == len(dataclasses.fields(Settings))
    )


def test_the_units_name_commands_and_settings_that_there_are() -> None:
    """The systemd units, with what they need for a reload and a drain."""
    units = list(CONF.glob("*.service"))
    assert len(units) == 3
    for unit in units:
        text = unit.read_text()
        command, *arguments = re.findall(r"^ExecStart=\S+/python -m asrserver (.*)$", text, re.M)[0].split()
        flags = {row.flag for row in setting_rows() if row.group in COMMANDS[command]} | {"--config"}
        assert {argument for argument in arguments if argument.startswith("-")} <= flags
        assert "ExecReload=/bin/kill -HUP $MAINPID" in text
        assert "KillMode=mixed" in text


def test_the_names_of_the_ancestor_stay() -> None:
    assert {"PORT", "REDIS_ADDR", "DB_HOST", "DB_PORT", "DB_USER", "DB_PASSWORD", "DB_NAME"} <= {
        row.env for row in setting_rows()
    }


@pytest.mark.parametrize(
    ("given", "command", "named"),
    [
        ({}, "gateway", "REDIS_URL"),
        ({}, "worker", "REDIS_URL"),
        ({"redis_addr": "h:1"}, "gateway", "DATABASE_URL"),
        ({"redis_url": "localhost"}, "run", "REDIS_URL"),
        ({"wyoming_port": 1, "api_keys": KEYS}, "run", "--allow-keyless wyoming"),
        ({"wyoming_port": 1, "wyoming_host": "0.0.0.0"}, "run", "--allow-keyless wyoming"),
        ({"wyoming_port": 1, "host": "0.0.0.0", "api_keys": KEYS}, "run", "--allow-keyless wyoming"),
        (
            {"normalise": "numerals=roman"},
            "run",
            "--normalise numerals=roman: normalise can have as numerals only digits",
        ),
        ({"allow_keyless": "wyoming,native"}, "run", "--allow-keyless native"),
        ({"also_ports": "2700, vosk"}, "run", "--also-ports vosk: it must be a number"),
        ({"also_ports": "65536"}, "run", "--also-ports 65536"),
        ({"wyoming_port": 1, "zeroconf": "on"}, "run", "--zeroconf on"),
    ],
)
def test_what_cannot_work_is_refused_by_name(given: dict[str, Any], command: str, named: str) -> None:
    with pytest.raises(SettingError, match=named):
        check_settings(Settings(**given), command)


def test_what_works_is_let_through() -> None:
    both = Settings(redis_addr="h:1", db_host="h")
    assert all(check_settings(both, command) is both for command in COMMANDS)
    assert check_settings(Settings(), "run") == Settings()
    allowed: list[dict[str, Any]] = [
        {"wyoming_port": 1},
        {"also_ports": "2700, 9090,"},
        {"wyoming_port": 1, "wyoming_host": "0.0.0.0", "allow_keyless": "wyoming", "zeroconf": "on"},
        {"wyoming_port": 1, "host": "0.0.0.0", "api_keys": KEYS, "allow_keyless": " wyoming "},
        {"wyoming_port": 1, "host": "0.0.0.0", "access_control": "off"},
    ]
    for given in allowed:
        settings = Settings(**given)
        assert check_settings(settings, "run") is settings


def test_an_announcement_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only if it is asked for."""
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    given: dict[str, Any] = {"wyoming_port": 1, "wyoming_host": "0.0.0.0", "allow_keyless": "wyoming"}
    check_settings(Settings(**given), "run")
    with pytest.raises(SettingError, match=r"pip install 'asrserver\[zeroconf\]'"):
        check_settings(Settings(**given, zeroconf="on"), "run")


def test_servers_may_be_given_in_either_way() -> None:
    assert Settings(redis_addr="h:1").redis == "redis://h:1/0"
    assert Settings(redis_addr="h:1", redis_url="unix:///x").redis == "unix:///x"
    assert Settings(database_url="x", db_host="h").database == "x"
    found = parse_dsn(Settings(db_host="/run/a b", db_user="u@x", db_password="p/w:%", db_name="n?m").database)
    assert found == {"host": "/run/a b", "port": "5432", "user": "u@x", "password": "p/w:%", "dbname": "n?m"}
    assert parse_dsn(Settings(db_password="p").database) == {
        "host": "127.0.0.1",
        "port": "5432",
        "user": "postgres",
        "password": "p",
        "dbname": "asrserver",
    }
