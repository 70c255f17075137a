"""Settings: one table defines every flag, environment variable, configuration key and line of documentation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from asrserver.process.places import default_data_dir

#: The groups of settings that each command takes.
COMMANDS = {
    "run": ("server", "redis", "leases", "database", "gateway", "worker", "embedded"),
    "doctor": ("server", "redis", "leases", "database", "gateway", "worker", "embedded"),
    "gateway": ("server", "redis", "leases", "database", "gateway"),
    "worker": ("server", "redis", "leases", "worker"),
    "drain": ("redis",),
    "bench": ("worker",),
}

#: Files that a gateway opens besides its clients' connections: libraries, Redis, PostgreSQL, recordings.
OTHER_FILES = 200


def setting(default: Any, group: str, type: Any, help: str, env: str = "") -> Any:
    """A row of the table: default, group, click type, help text and, if not ASRSERVER_<NAME>, environment variable."""
    return field(default=default, metadata={"group": group, "type": type, "help": help, "env": env})


_SECONDS = click.FloatRange(min=0, min_open=True)
_SECONDS_OR_NONE = click.FloatRange(min=0)
_COUNT_OR_NONE = click.IntRange(min=0)
_COUNT = click.IntRange(min=1)
_COUNT_OR_AUTO = click.IntRange(min=0)
_BYTES = click.IntRange(min=1024)
_PORT_OR_ZERO = click.IntRange(0, 65535)
_FILE = click.Path(dir_okay=False)
_SWITCH = click.Choice(["off", "on"])


@dataclass(frozen=True)
class Settings:
    """All settings, resolved: a flag overrides the environment, which overrides the file. Times are in seconds."""

    log_level: str = setting(
        "info", "server", click.Choice(["debug", "info", "warning", "error"]), "Minimum level of log messages."
    )
    log_format: str = setting(
        "text",
        "server",
        click.Choice(["text", "json"]),
        "Log format: text for humans, json (one object per line) for machines.",
    )
    traces: str = setting(
        "off",
        "server",
        _SWITCH,
        "on: export OpenTelemetry traces of sessions, as the variables OTEL_… say; it needs the extra otel.",
    )
    metrics_port: int = setting(
        0,
        "server",
        _PORT_OR_ZERO,
        "Dedicated port for /metrics, without API key. 0: the gateways serve /metrics on their own port.",
    )
    metrics_host: str = setting("127.0.0.1", "server", str, "Listen address of metrics-port.")
    allowed_hosts: str = setting(
        "",
        "server",
        str,
        "Comma-separated names by which clients may address a server without API keys, and metrics-port; * allows all. "
        "IP addresses, localhost, its own host name and names without a dot always are.",
    )
    drain_timeout: float = setting(
        10.0, "server", _SECONDS, "Seconds that sessions may take to finish after SIGTERM; then they are interrupted."
    )
    hang_timeout: float = setting(
        30.0,
        "server",
        _SECONDS,
        "Seconds without a heartbeat after which a child process is killed and replaced, not counting those that it "
        "waited for a CPU.",
    )
    redis_url: str = setting(
        "",
        "redis",
        str,
        "URL of a Redis 6.2 or later (redis, rediss, unix, redis+sentinel or rediss+sentinel), or several with commas.",
        "REDIS_URL",
    )
    redis_addr: str = setting("", "redis", str, "Redis as HOST:PORT; redis-url takes precedence.", "REDIS_ADDR")
    lease: float = setting(
        10.0,
        "leases",
        click.FloatRange(min=1),
        "Seconds after which another worker takes over a session whose worker stopped renewing its lease.",
    )
    session_ttl: float = setting(
        600.0, "leases", click.FloatRange(min=1), "Seconds that Redis keeps a session after PostgreSQL has stored it."
    )
    database_url: str = setting(
        "", "database", str, "PostgreSQL as a postgresql:// URL or as libpq keywords.", "DATABASE_URL"
    )
    db_host: str = setting(
        "", "database", str, "PostgreSQL host or socket directory [127.0.0.1 if any db- setting is given].", "DB_HOST"
    )
    db_port: int = setting(5432, "database", click.IntRange(1, 65535), "PostgreSQL port.", "DB_PORT")
    db_user: str = setting("", "database", str, "PostgreSQL user [postgres].", "DB_USER")
    db_password: str = setting(
        "", "database", str, "PostgreSQL password; prefer the environment variable.", "DB_PASSWORD"
    )
    db_name: str = setting("", "database", str, "PostgreSQL database; created if missing [asrserver].", "DB_NAME")
    host: str = setting(
        "127.0.0.1",
        "gateway",
        str,
        "Listen address. Other than loopback, it requires API keys or access-control off.",
        "HOST",
    )
    port: int = setting(8080, "gateway", _PORT_OR_ZERO, "TCP port to listen on. 0: any free port.", "PORT")
    gateways: int = setting(1, "gateway", _COUNT, "Number of gateway processes, which share the port.")
    also_ports: str = setting(
        "",
        "gateway",
        str,
        "Comma-separated further ports where the same is served, for clients that know only the port of their own "
        "server: 2700 (Vosk), 9090 (WhisperLive), 10095 (FunASR).",
    )
    wyoming_port: int = setting(
        0, "gateway", _PORT_OR_ZERO, "Port for Home Assistant (the Wyoming protocol), usually 10300. 0: none."
    )
    wyoming_host: str = setting("", "gateway", str, "Listen address of wyoming-port [that of host].")
    zeroconf: str = setting(
        "auto",
        "gateway",
        click.Choice(["auto", "on", "off"]),
        "Announce wyoming-port in the local network, so that Home Assistant finds it. auto: if the extra zeroconf is "
        "installed and other machines can connect.",
    )
    keys_file: str = setting(
        "", "gateway", _FILE, "File of API keys, created by asrserver keys create; reloaded when it changes."
    )
    api_keys: str = setting(
        "", "gateway", str, "API keys as NAME:KEY,NAME:KEY:operator; prefer the environment variable."
    )
    access_control: str = setting(
        "auto",
        "gateway",
        click.Choice(["auto", "off"]),
        "auto: require an API key if any is configured, else listen on loopback only. off: allow everybody.",
    )
    allow_keyless: str = setting(
        "",
        "gateway",
        str,
        "Comma-separated protocols whose clients, which cannot send an API key, need none: wyoming, vosk, funasr, "
        "whisperlive. Whoever can reach the port may use them.",
    )
    kikipounamu: bool = setting(
        False,
        "gateway",
        bool,
        "Serve /asr/submit, /asr/result and /asr/audio like kikipounamu's Python server, to web pages of all origins.",
    )
    allowed_origins: str = setting(
        "",
        "gateway",
        str,
        "Comma-separated origins whose web pages may use the server (CORS); * allows all. Its own origin always may.",
    )
    trusted_proxies: str = setting(
        "",
        "gateway",
        str,
        "Comma-separated addresses or networks of proxies whose X-Forwarded-For, -Proto and X-Real-IP are trusted.",
    )
    tls_cert: str = setting(
        "", "gateway", _FILE, "TLS certificate chain (PEM): serve https and wss instead of http and ws."
    )
    tls_key: str = setting(
        "", "gateway", _FILE, "Private key of the TLS certificate (PEM), if it is in a file of its own."
    )
    save_audio: str = setting(
        "",
        "gateway",
        str,
        "Directory for recordings, one file per session, shared by all gateways. Empty: record nothing.",
    )
    save_audio_as: str = setting(
        "wav",
        "gateway",
        click.Choice(["wav", "flac"]),
        "File format for recordings of raw PCM; files in a container are kept as sent.",
    )
    save_audio_keys: str = setting(
        "",
        "gateway",
        click.Path(dir_okay=False),
        "File of keys, the newest first, that recordings are encrypted with; reloaded when it changes.",
    )
    keep_days: float = setting(
        0.0,
        "gateway",
        click.FloatRange(min=0),
        "Days after which a session is deleted, with its texts and its recording; a key may have its own. 0: never.",
    )
    audit_log: str = setting(
        "off",
        "gateway",
        _SWITCH,
        "on: a log line (asrserver.audit) for each time that texts or recordings are read or deleted over REST.",
    )
    audio_keep_days: float = setting(
        0.0, "gateway", click.FloatRange(min=0), "Days after which a recording is deleted. 0: never."
    )
    audio_keep_per_user: int = setting(
        0, "gateway", _COUNT_OR_AUTO, "Number of recordings kept per user, newest first. 0: all."
    )
    funasr_addr: str = setting(
        "",
        "gateway",
        str,
        "HOST:PORT or URL of another server, to which stats and queue status requests are proxied.",
        "FUNASR_ADDR",
    )
    max_message: int = setting(
        64 * 2**20, "gateway", _BYTES, "Maximum size of a WebSocket message in bytes; a larger one is refused."
    )
    message_memory: int = setting(
        256 * 2**20,
        "gateway",
        _BYTES,
        "Maximum bytes per gateway process of messages and chunks that cannot be handled yet, shared out among API "
        "keys; beyond it large ones are refused.",
    )
    max_upload: int = setting(
        2**30,
        "gateway",
        _BYTES,
        "Maximum size of an HTTP upload in bytes. A large one is in a temporary file while it is transcribed.",
    )
    upload_space: int = setting(
        4 * 2**30,
        "gateway",
        _BYTES,
        "Maximum bytes per gateway process of HTTP uploads that are being transcribed, shared out among API keys; "
        "beyond it they are refused.",
    )
    served_model_names: str = setting(
        "",
        "gateway",
        str,
        "Comma-separated names by which clients may ask for a model, as NAME or NAME=MODEL, besides its own and those "
        "of OpenAI and Deepgram.",
    )
    hotwords_file: str = setting(
        "",
        "gateway",
        _FILE,
        "File of words that are likely in all sessions, or in those of an API key; reloaded when it changes.",
    )
    normalise: str = setting(
        "",
        "gateway",
        str,
        "How texts are written if a session does not say: script=hans or hant (Chinese), numerals=digits or words, "
        "separated by a comma.",
    )
    unread_timeout: float = setting(
        30.0, "gateway", _SECONDS, "Seconds after which the connection of a client that does not read is closed."
    )
    ping_interval: float = setting(
        20.0, "gateway", _SECONDS, "Seconds between WebSocket pings; a client that does not answer is disconnected."
    )
    resume_timeout: float = setting(
        30.0,
        "gateway",
        click.FloatRange(min=0),
        "Seconds that a disconnected session waits for resume; then it is finished as interrupted.",
    )
    max_connections: int = setting(
        10_000, "gateway", _COUNT_OR_NONE, "Maximum WebSocket connections per gateway process. 0: no limit."
    )
    max_address_connections: int = setting(
        1000,
        "gateway",
        _COUNT_OR_NONE,
        "Maximum connections per gateway process from one address (IPv6: one /64). 0: no limit.",
    )
    max_sessions: int = setting(
        2000, "gateway", _COUNT_OR_NONE, "Maximum open sessions per gateway process. 0: no limit."
    )
    max_connection_sessions: int = setting(
        100, "gateway", _COUNT_OR_NONE, "Maximum open sessions per connection. 0: no limit."
    )
    max_chunk: int = setting(48 * 2**20, "gateway", _BYTES, "Maximum size of a chunk in bytes of audio.")
    max_session: float = setting(
        14_400.0,
        "gateway",
        _SECONDS_OR_NONE,
        "Maximum length of a session in seconds of audio; then it is ended. 0: no limit.",
    )
    max_ahead: float = setting(
        10.0,
        "gateway",
        _SECONDS_OR_NONE,
        "Seconds of unrecognised audio that a session may be ahead of real time; then it is read slowly. 0: no limit.",
    )
    max_speed: float = setting(
        0.0,
        "gateway",
        _SECONDS_OR_NONE,
        "Maximum speed of a session's audio, as a multiple of real time. 0: unlimited.",
    )
    speed_burst: float = setting(
        30.0, "gateway", _SECONDS_OR_NONE, "Seconds of audio that a session may send at once before max-speed applies."
    )
    max_queue: float = setting(
        3600.0,
        "gateway",
        _SECONDS_OR_NONE,
        "Seconds of audio queued in the whole system at which new sessions are refused. 0: no limit.",
    )
    session_idle_timeout: float = setting(
        0.0, "gateway", _SECONDS_OR_NONE, "Seconds without audio after which a session is ended. 0: no limit."
    )
    idle_timeout: float = setting(
        900.0,
        "gateway",
        _SECONDS_OR_NONE,
        "Seconds without a message after which a connection without a session is closed. 0: no limit.",
    )
    model: str = setting(
        "auto",
        "worker",
        str,
        "auto (base if the extra whisper is installed, else demo), demo (packaged toy), a size such as small or "
        "large-v3-turbo, a hub repository, or a directory. Several, separated by commas: sessions may name one; the "
        "first is that of the others.",
    )
    model_ttl: float = setting(
        300.0,
        "worker",
        _SECONDS_OR_NONE,
        "Seconds without a session after which a worker unloads a model other than its first. 0: never.",
    )
    device: str = setting(
        "auto", "worker", click.Choice(["auto", "cpu", "cuda"]), "Device of the model. auto: GPUs if there are any."
    )
    compute_type: str = setting(
        "default",
        "worker",
        str,
        "CTranslate2 compute type, such as int8, float16 or float32. default: int8 on a CPU, but not for demo.",
    )
    workers: int = setting(
        0,
        "worker",
        _COUNT_OR_AUTO,
        "Number of worker processes. 0: one per GPU or CPU; for demo on CPUs, minus one per gateway.",
    )
    threads: int = setting(1, "worker", _COUNT, "CPU threads per worker; more workers are faster than more threads.")
    batch_size: int = setting(
        0,
        "worker",
        _COUNT_OR_AUTO,
        "Maximum windows per model call. 0: 8 on a GPU; on a CPU up to 4 if the model is so small that the call takes "
        "at most 50 ms.",
    )
    beam_size: int = setting(1, "worker", click.IntRange(1, 20), "Beam size of the decoder. 1: greedy, the fastest.")
    window: str = setting(
        "fit",
        "worker",
        click.Choice(["fit", "full"]),
        "Input window of the model. fit: the shortest that fits the speech. full: always 30 s.",
    )
    silence: float = setting(
        0.0,
        "worker",
        click.FloatRange(0, 5),
        "Seconds of silence that end a segment of speech (endpointing), at least 0.1. 0: what suits the model, 0.4 for "
        "demo and 0.8 for others.",
    )
    context: str = setting(
        "off",
        "worker",
        _SWITCH,
        "Give a live segment the preceding text as context (same language, gap of at most 3 s).",
    )
    call_timeout: float = setting(
        300.0,
        "worker",
        _SECONDS,
        "Seconds after which a call of the model counts as hung. For a step on audio it is 10.",
    )
    max_backlog: float = setting(
        30.0, "worker", _SECONDS, "Seconds of unrecognised audio at which a worker claims no more sessions."
    )
    max_utterance: float = setting(
        3600.0, "worker", _SECONDS, "Maximum length of an utterance in seconds of audio; a longer chunk is refused."
    )
    data_dir: str = setting(
        "",
        "embedded",
        click.Path(file_okay=False),
        "Data directory of the embedded servers [/var/lib/asrserver for root, else ~/.local/share/asrserver].",
    )
    embedded_memory: int = setting(
        1024, "embedded", click.IntRange(min=64), "Memory limit of the embedded Redis in MiB."
    )
    embedded_fsync: str = setting(
        "always",
        "embedded",
        click.Choice(["always", "no"]),
        "fsync of the embedded Redis. always: survives a power failure. no: survives only killed processes.",
    )

    @property
    def has_redis(self) -> bool:
        return bool(self.redis_url or self.redis_addr)

    @property
    def has_database(self) -> bool:
        return bool(self.database_url or self.db_host or self.db_user or self.db_password or self.db_name)

    @property
    def redis(self) -> str:
        """The Redis URL, from redis-url or redis-addr; or several of them."""
        return self.redis_url or f"redis://{self.redis_addr}/0"

    @property
    def models(self) -> list[str]:
        """The models of the setting model, the first one first."""
        return list(dict.fromkeys(name.strip() for name in self.model.split(",")))

    @property
    def database(self) -> str:
        """The PostgreSQL URL, from database-url or the db- settings.

        The default host is 127.0.0.1 and not localhost: aiopg 1.4.0 can hang where a name has several addresses (#275).
        """
        if self.database_url:
            return self.database_url
        user = quote(self.db_user or "postgres", safe="")
        password = f":{quote(self.db_password, safe='')}" if self.db_password else ""
        host = quote(self.db_host or "127.0.0.1", safe="")
        return f"postgresql://{user}{password}@{host}:{self.db_port}/{quote(self.db_name or 'asrserver', safe='')}"

    @property
    def further_ports(self) -> list[str]:
        """The ports of the setting also-ports, as they are written."""
        return [port for item in self.also_ports.split(",") if (port := item.strip())]

    @property
    def keyless(self) -> frozenset[str]:
        """The protocols of the setting allow-keyless."""
        return frozenset(name for item in self.allow_keyless.split(",") if (name := item.strip()))

    @property
    def wanted_files(self) -> int:
        """The open files that a gateway may need."""
        return self.max_connections + OTHER_FILES

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir or default_data_dir()).absolute()


@dataclass(frozen=True)
class SettingRow:
    """A setting with its names, as documentation and click need it."""

    key: str
    flag: str
    env: str
    type: Any
    default: Any
    help: str
    group: str


def setting_rows() -> list[SettingRow]:
    """The table, in the order of `Settings`."""
    result = []
    for item in dataclasses.fields(Settings):
        meta = item.metadata
        env = meta["env"] or f"ASRSERVER_{item.name.upper()}"
        flag = "--" + item.name.replace("_", "-")
        result.append(SettingRow(item.name, flag, env, meta["type"], item.default, meta["help"], meta["group"]))
    return result
