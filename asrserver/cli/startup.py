"""The check of settings before anything starts: combinations that cannot work are refused."""

from __future__ import annotations

import os
from pathlib import Path

from asrserver.auth.access import Access
from asrserver.auth.addresses import is_loopback
from asrserver.auth.tls import tls_context
from asrserver.broker.addresses import SCHEMES, addresses, label
from asrserver.config import Settings
from asrserver.encryption import load_keys
from asrserver.errors import BadRequest, SettingError
from asrserver.gateway.hotwords import Hotwords
from asrserver.protocol.options import Normalise
from asrserver.supervisor import announcement
from asrserver.telemetry import traces

#: Protocols whose clients cannot send an API key.
KEYLESS = ("wyoming", "vosk", "funasr", "whisperlive")


def check_settings(settings: Settings, command: str) -> Settings:
    """Refuse combinations of settings that cannot work; create the directory of recordings.

    Args:
        settings: The settings.
        command: run, gateway or worker.

    Returns:
        The settings.

    Raises:
        SettingError: Names the setting and what is wrong with it.
    """
    if command != "run" and not settings.has_redis:
        raise SettingError("REDIS_URL or REDIS_ADDR must be set: only asrserver run starts a Redis of its own")
    if command == "gateway" and not settings.has_database:
        raise SettingError("DATABASE_URL or DB_HOST must be set: only asrserver run starts a PostgreSQL of its own")
    if command != "worker" and settings.save_audio:
        try:
            Path(settings.save_audio).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            raise SettingError(f"--save-audio {settings.save_audio}: {exc.strerror}") from None
        if not os.access(settings.save_audio, os.R_OK | os.W_OK | os.X_OK):
            raise SettingError(f"--save-audio {settings.save_audio}: not writable")
        load_keys(settings.save_audio_keys)
    elif command != "worker" and settings.save_audio_keys:
        raise SettingError("--save-audio-keys requires --save-audio")
    if settings.traces == "on" and not traces.is_installed():
        raise SettingError("--traces on needs OpenTelemetry's SDK and exporter: pip install 'asrserver[otel]'")
    if settings.redis_url:
        _check_redis(settings.redis_url)
    if command != "worker":
        _check_access(settings)
        Hotwords(settings.hotwords_file)
        try:
            Normalise.parse(settings.normalise)
        except BadRequest as exc:
            raise SettingError(f"--normalise {settings.normalise}: {exc.message}") from None
    return settings


def _check_redis(url: str) -> None:
    """Refuse what is no address of a Redis, and two addresses of one."""
    if url.partition("://")[0] not in SCHEMES:
        raise SettingError(f"REDIS_URL must begin with one of {', '.join(SCHEMES)}, and ://")
    labels = [label(each) for each in addresses(url)]
    if twice := next((each for each in labels if labels.count(each) > 1), None):
        raise SettingError(f"REDIS_URL names {twice} twice: each of several Redis servers is a shard of its own")


def _check_access(settings: Settings) -> None:
    """Refuse to be open to other machines without API keys unless the operator says so explicitly."""
    access = Access(settings.keys_file, settings.api_keys, settings.allowed_origins, settings.trusted_proxies)
    if settings.tls_cert:
        tls_context(settings.tls_cert, settings.tls_key)
    elif settings.tls_key:
        raise SettingError("--tls-key requires --tls-cert")
    if settings.access_control == "off":
        if access.enabled:
            raise SettingError("--access-control off and API keys exclude each other")
    elif not access.enabled and not is_loopback(settings.host):
        raise SettingError(
            f"--host {settings.host} is reachable from other machines and no API keys are configured: "
            "set --keys-file or --api-keys, or --access-control off"
        )
    for port in settings.further_ports:
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
            raise SettingError(f"--also-ports {port}: it must be a number from 1 to 65535")
    if unknown := sorted(settings.keyless.difference(KEYLESS)):
        raise SettingError(f"--allow-keyless {unknown[0]}: it must be one of {', '.join(KEYLESS)}")
    if settings.wyoming_port:
        _check_wyoming(settings, access.enabled, "wyoming" in settings.keyless)


def _check_wyoming(settings: Settings, keys: bool, allowed: bool) -> None:
    """Refuse to open the port for Home Assistant to more than the operator knows of."""
    host = settings.wyoming_host or settings.host
    if keys and not allowed:
        raise SettingError(
            "--wyoming-port: Home Assistant cannot send an API key. To let everybody in who can reach the port, set "
            "--allow-keyless wyoming"
        )
    if not is_loopback(host) and not allowed and settings.access_control != "off":
        raise SettingError(
            f"--wyoming-host {host} is reachable from other machines, and clients of the port need no API key: set "
            "--allow-keyless wyoming if that is meant"
        )
    if settings.zeroconf == "on" and is_loopback(host):
        raise SettingError(f"--zeroconf on: other machines cannot reach --wyoming-host {host}")
    if settings.zeroconf == "on" and not announcement.is_possible():
        raise SettingError("--zeroconf on needs the Python package zeroconf: pip install 'asrserver[zeroconf]'")
