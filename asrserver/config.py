"""Settings: one table that makes every flag, environment variable, file key and line of documentation."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from click.core import ParameterSource

from asrserver.auth import Access, is_loopback, tls_context
from asrserver.errors import SettingError

#: Which commands take which groups of settings.
COMMANDS = {
    "run": ("server", "redis", "database", "gateway", "worker", "embedded"),
    "gateway": ("server", "redis", "database", "gateway"),
    "worker": ("server", "redis", "worker"),
}


def setting(default: Any, group: str, type: Any, help: str, env: str = "") -> Any:
    """One row of the table: a default, who takes it, a click type and a sentence."""
    return field(default=default, metadata={"group": group, "type": type, "help": help, "env": env})


def default_data_dir() -> str:
    """Where the embedded servers keep their data: the system's place for root, the user's for a user."""
    if os.geteuid() == 0:
        return "/var/lib/asrserver"
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(base, "asrserver")


_SECONDS = click.FloatRange(min=0, min_open=True)
_SECONDS_OR_NONE = click.FloatRange(min=0)
_COUNT_OR_NONE = click.IntRange(min=0)
_COUNT = click.IntRange(min=1)
_COUNT_OR_AUTO = click.IntRange(min=0)


@dataclass(frozen=True)
class Settings:
    """All settings, resolved: flag beats environment beats file beats default. Times are in seconds."""

    log_level: str = setting(
        "info", "server", click.Choice(["debug", "info", "warning", "error"]), "What is logged, from this level up."
    )
    log_format: str = setting(
        "text", "server", click.Choice(["text", "json"]), "How: lines for people, or one JSON object a line."
    )
    metrics_port: int = setting(
        0,
        "server",
        click.IntRange(0, 65535),
        "Port of its own for /metrics, without a key; 0 is none: then gateways answer it on theirs.",
    )
    metrics_host: str = setting("127.0.0.1", "server", str, "Address that metrics-port listens on.")
    drain_timeout: float = setting(
        10.0, "server", _SECONDS, "Seconds that SIGTERM lets sessions and jobs finish before they are cut."
    )
    hang_timeout: float = setting(
        30.0, "server", _SECONDS, "Seconds without a sign of life after which a child process is killed."
    )
    redis_url: str = setting(
        "", "redis", str, "Redis (6.2 or later) as redis://, rediss:// or unix:// URL.", "REDIS_URL"
    )
    redis_addr: str = setting("", "redis", str, "Redis as HOST:PORT; redis-url wins.", "REDIS_ADDR")
    lease: float = setting(
        10.0, "redis", click.FloatRange(min=1), "Seconds without renewal after which a session changes its worker."
    )
    session_ttl: float = setting(
        600.0, "redis", click.FloatRange(min=1), "Seconds that Redis keeps a session after it is stored in PostgreSQL."
    )
    database_url: str = setting(
        "", "database", str, "PostgreSQL as postgresql:// URL or libpq keywords.", "DATABASE_URL"
    )
    db_host: str = setting(
        "", "database", str, "PostgreSQL host or socket directory [127.0.0.1 if any DB_ is given].", "DB_HOST"
    )
    db_port: int = setting(5432, "database", click.IntRange(1, 65535), "PostgreSQL port.", "DB_PORT")
    db_user: str = setting("", "database", str, "PostgreSQL user [postgres].", "DB_USER")
    db_password: str = setting("", "database", str, "PostgreSQL password; better given by environment.", "DB_PASSWORD")
    db_name: str = setting("", "database", str, "PostgreSQL database, created when missing [asrserver].", "DB_NAME")
    host: str = setting(
        "127.0.0.1",
        "gateway",
        str,
        "Address to listen on; other than loopback only with API keys, or with access-control off.",
        "HOST",
    )
    port: int = setting(8080, "gateway", click.IntRange(0, 65535), "TCP port to listen on; 0 takes a free one.", "PORT")
    gateways: int = setting(1, "gateway", _COUNT, "Gateway processes that share the port.")
    keys_file: str = setting(
        "",
        "gateway",
        click.Path(dir_okay=False),
        "File of API keys, made by asrserver keys create; re-read when it changes.",
    )
    api_keys: str = setting(
        "", "gateway", str, "API keys without a file, as NAME:KEY,NAME:KEY; better given by environment."
    )
    access_control: str = setting(
        "auto",
        "gateway",
        click.Choice(["auto", "off"]),
        "auto asks for a key if there are any, and listens on loopback alone if there are none; off lets everybody in.",
    )
    allowed_origins: str = setting(
        "",
        "gateway",
        str,
        "Origins, comma-separated, whose web pages may connect and use REST (CORS); * is all; the server's own may.",
    )
    trusted_proxies: str = setting(
        "",
        "gateway",
        str,
        "Addresses or networks, comma-separated, of proxies whose X-Forwarded-For, -Proto and X-Real-IP are believed.",
    )
    tls_cert: str = setting(
        "", "gateway", click.Path(dir_okay=False), "Certificate, with its chain, in PEM: https and wss instead of http."
    )
    tls_key: str = setting(
        "", "gateway", click.Path(dir_okay=False), "Key of the certificate in PEM, if it is not in the same file."
    )
    save_audio: str = setting(
        "",
        "gateway",
        str,
        "Directory for recordings, one file a session, shared by all gateways; empty records nothing.",
    )
    save_audio_as: str = setting(
        "wav",
        "gateway",
        click.Choice(["wav", "flac"]),
        "What recordings of headerless audio become; files stay as sent.",
    )
    audio_keep_days: float = setting(
        0.0, "gateway", click.FloatRange(min=0), "Days after which a recording is removed; 0 keeps all."
    )
    audio_keep_per_user: int = setting(
        0, "gateway", _COUNT_OR_AUTO, "Recordings kept of each user, the newest; 0 keeps all."
    )
    funasr_addr: str = setting(
        "",
        "gateway",
        str,
        "HOST:PORT or URL of another server that answers stats and queue status in this one's place.",
        "FUNASR_ADDR",
    )
    max_message: int = setting(
        16 * 2**20, "gateway", click.IntRange(min=1024), "Largest WebSocket message in bytes; a larger one is an error."
    )
    unread_timeout: float = setting(
        30.0,
        "gateway",
        _SECONDS,
        "Seconds for which a client may leave unread what waits for it; then its connection is cut.",
    )
    ping_interval: float = setting(20.0, "gateway", _SECONDS, "Seconds between WebSocket pings; no pong closes.")
    resume_timeout: float = setting(
        30.0,
        "gateway",
        click.FloatRange(min=0),
        "Seconds that a session waits for its client to come back; then it ends with what it has.",
    )
    max_connections: int = setting(
        10_000, "gateway", _COUNT_OR_NONE, "WebSocket connections of one gateway process; 0 is no limit, as below."
    )
    max_address_connections: int = setting(
        1000, "gateway", _COUNT_OR_NONE, "Connections of one gateway from one address (of IPv6: from one /64)."
    )
    max_sessions: int = setting(2000, "gateway", _COUNT_OR_NONE, "Sessions of one gateway process that are not over.")
    max_connection_sessions: int = setting(
        100, "gateway", _COUNT_OR_NONE, "Sessions of one connection that are not over."
    )
    max_chunk: int = setting(12 * 2**20, "gateway", click.IntRange(min=1024), "Largest chunk in bytes of audio.")
    max_session: float = setting(
        14_400.0, "gateway", _SECONDS_OR_NONE, "Longest session in seconds of audio; then it is ended."
    )
    max_ahead: float = setting(
        10.0,
        "gateway",
        _SECONDS_OR_NONE,
        "Seconds of audio that a session may send faster than it is spoken and recognised; then it is read slowly.",
    )
    max_speed: float = setting(
        0.0, "gateway", _SECONDS_OR_NONE, "How many times faster than it is spoken a session's audio may come."
    )
    speed_burst: float = setting(
        30.0, "gateway", _SECONDS_OR_NONE, "Seconds of audio that may come at once before max-speed holds."
    )
    max_queue: float = setting(
        3600.0,
        "gateway",
        _SECONDS_OR_NONE,
        "Seconds of audio that wait in the whole system at which no new session starts.",
    )
    session_idle_timeout: float = setting(
        300.0, "gateway", _SECONDS_OR_NONE, "Seconds without audio after which a session is ended."
    )
    idle_timeout: float = setting(
        900.0, "gateway", _SECONDS_OR_NONE, "Seconds without a message, nor a result owed, that close a connection."
    )
    model: str = setting(
        "demo",
        "worker",
        str,
        "demo (in the package), a size such as small or large-v3-turbo, a hub name, or a directory.",
    )
    device: str = setting(
        "auto",
        "worker",
        click.Choice(["auto", "cpu", "cuda"]),
        "Where the model runs; auto takes GPUs if there are any.",
    )
    compute_type: str = setting(
        "default", "worker", str, "CTranslate2 compute type: default, int8, float16, int8_float16, float32, …"
    )
    workers: int = setting(
        0, "worker", _COUNT_OR_AUTO, "Worker processes; 0 is one a GPU, or one a CPU core less one a gateway."
    )
    threads: int = setting(
        1, "worker", _COUNT, "CPU threads a worker computes with; several workers beat several threads."
    )
    batch_size: int = setting(
        0,
        "worker",
        _COUNT_OR_AUTO,
        "Windows recognised in one call; 0 is 8 on a GPU; on a CPU up to 4, of a model so small that they take no "
        "longer than 50 ms.",
    )
    beam_size: int = setting(1, "worker", click.IntRange(1, 20), "Beams of the decoder; 1 is greedy and fastest.")
    window: str = setting(
        "fit",
        "worker",
        click.Choice(["fit", "full"]),
        "What the model is given: the shortest window that fits the speech, or always 30 s.",
    )
    silence: float = setting(
        0.4, "worker", click.FloatRange(0.1, 5), "Seconds of silence that end a segment of speech."
    )
    context: str = setting(
        "off",
        "worker",
        click.Choice(["off", "on"]),
        "Whether a live segment is recognised with the text before it (same language, gap of at most 3 s) as context.",
    )
    call_timeout: float = setting(
        300.0,
        "worker",
        _SECONDS,
        "Seconds that one call of the decoder or the model may take before its worker is taken for hung.",
    )
    max_backlog: float = setting(
        30.0, "worker", _SECONDS, "Seconds of unrecognised audio at which a worker claims no further session."
    )
    max_utterance: float = setting(
        3600.0, "worker", _SECONDS, "Longest utterance in seconds of audio; more is an error for that chunk."
    )
    data_dir: str = setting(
        "",
        "embedded",
        click.Path(file_okay=False),
        "Directory of the embedded Redis and PostgreSQL [/var/lib/asrserver for root, else ~/.local/share/asrserver].",
    )
    embedded_memory: int = setting(
        1024, "embedded", click.IntRange(min=64), "Memory limit of the embedded Redis in MiB."
    )
    embedded_fsync: str = setting(
        "always",
        "embedded",
        click.Choice(["always", "no"]),
        "When the embedded Redis syncs to disk: always survives a power loss, no survives kill -9.",
    )

    @property
    def has_redis(self) -> bool:
        return bool(self.redis_url or self.redis_addr)

    @property
    def has_database(self) -> bool:
        return bool(self.database_url or self.db_host or self.db_user or self.db_password or self.db_name)

    @property
    def redis(self) -> str:
        """The Redis URL, however it was given."""
        return self.redis_url or f"redis://{self.redis_addr}/0"

    @property
    def database(self) -> str:
        """The PostgreSQL URL, however it was given.

        The default host is 127.0.0.1 and not localhost: aiopg 1.4.0 can hang where a name has several addresses (#275).
        """
        if self.database_url:
            return self.database_url
        user = quote(self.db_user or "postgres", safe="")
        password = f":{quote(self.db_password, safe='')}" if self.db_password else ""
        host = quote(self.db_host or "127.0.0.1", safe="")
        return f"postgresql://{user}{password}@{host}:{self.db_port}/{quote(self.db_name or 'asrserver', safe='')}"

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir or default_data_dir()).absolute()


@dataclass(frozen=True)
class Row:
    """One setting as it is documented."""

    key: str
    flag: str
    env: str
    type: Any
    default: Any
    help: str
    group: str


def rows() -> list[Row]:
    """The table, in the order of `Settings`."""
    result = []
    for item in dataclasses.fields(Settings):
        meta = item.metadata
        env = meta["env"] or f"ASRSERVER_{item.name.upper()}"
        flag = "--" + item.name.replace("_", "-")
        result.append(Row(item.name, flag, env, meta["type"], item.default, meta["help"], meta["group"]))
    return result


class _SettingOption(click.Option):
    """A click option whose bad value is one line that names the setting and where the value came from."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().process_value(ctx, value)
        except click.BadParameter as exc:
            assert self.name
            source = ctx.get_parameter_source(self.name)
            name = {
                ParameterSource.ENVIRONMENT: str(self.envvar),
                ParameterSource.DEFAULT_MAP: f"{self.name} in the configuration file",
            }.get(source or ParameterSource.COMMANDLINE, self.opts[0])
            raise click.ClickException(f"{name}: {exc.message}") from None


def settings_options(command: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a click command `--config` and the settings of its groups."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for row in reversed([row for row in rows() if row.group in COMMANDS[command]]):
            function = click.option(
                row.flag,
                row.key,
                cls=_SettingOption,
                envvar=row.env,
                type=row.type,
                default=row.default,
                show_default=row.default not in ("",),
                show_envvar=True,
                help=row.help,
            )(function)
        return click.option(
            "--config",
            type=click.Path(dir_okay=False),
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            envvar="ASRSERVER_CONFIG",
            show_envvar=True,
            help="TOML file with settings: the keys are the flags without dashes, underscores for hyphens.",
        )(function)

    return decorate


def _read_config(ctx: click.Context, _param: click.Parameter, path: str | None) -> None:
    """Make a TOML file the defaults of the command; a key that is no setting at all is refused by name."""
    if path is None:
        return
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise click.ClickException(f"--config: {path}: {exc}") from None
    known = {row.key for row in rows()}
    for key, value in values.items():
        if key not in known:
            raise click.ClickException(f"--config: {path}: {key} is not a setting")
        if isinstance(value, dict | list):
            raise click.ClickException(f"--config: {path}: {key} must be one value")
    # As text, like a flag's value: TOML's 8080.5 and true are no ports.
    ctx.default_map = {**(ctx.default_map or {}), **{key: str(value) for key, value in values.items()}}


def check(settings: Settings, command: str) -> Settings:
    """Refuse combinations that cannot work; raises SettingError."""
    if command != "run" and not settings.has_redis:
        raise SettingError(f"REDIS_URL (or REDIS_ADDR) must be set for asrserver {command}; only run starts its own")
    if command == "gateway" and not settings.has_database:
        raise SettingError("DATABASE_URL (or DB_HOST …) must be set for asrserver gateway; only run starts its own")
    if command != "worker" and settings.save_audio:
        try:
            Path(settings.save_audio).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            raise SettingError(f"--save-audio {settings.save_audio}: {exc.strerror}") from None
        if not os.access(settings.save_audio, os.R_OK | os.W_OK | os.X_OK):
            raise SettingError(f"--save-audio {settings.save_audio}: not writable")
    if settings.redis_url and not settings.redis_url.startswith(("redis://", "rediss://", "unix://")):
        raise SettingError("REDIS_URL must begin with redis://, rediss:// or unix://")
    if command != "worker":
        _check_access(settings)
    return settings


def _check_access(settings: Settings) -> None:
    """An open door must have been asked for in so many words."""
    access = Access(settings.keys_file, settings.api_keys, settings.allowed_origins, settings.trusted_proxies)
    if settings.tls_cert:
        tls_context(settings.tls_cert, settings.tls_key)
    elif settings.tls_key:
        raise SettingError("tls-key: it needs tls-cert too")
    if settings.access_control == "off":
        if access.enabled:
            raise SettingError("access-control: off and API keys exclude each other")
    elif not access.enabled and not is_loopback(settings.host):
        raise SettingError(
            f"--host {settings.host} is open to others and there are no API keys: give keys-file or api-keys, or say "
            "--access-control off"
        )


def documentation() -> str:
    """The settings as a Markdown table; README holds it and a test compares."""
    lines = ["| flag | environment | default | for | what |", "|---|---|---|---|---|"]
    for row in rows():
        commands = ", ".join(name for name, groups in COMMANDS.items() if row.group in groups)
        default = f"`{row.default}`" if row.default != "" else ""
        lines.append(f"| `{row.flag}` | `{row.env}` | {default} | {commands} | {row.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(documentation(), end="")
