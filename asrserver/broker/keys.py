"""The names of everything in Redis."""

from __future__ import annotations

TASKS = "asr_tasks"
GROUP = "asr_workers"
OPEN = "asr_open"
DEAD = "asr_dead"
ENDED = "asr_ended"


def session_key(sid: str) -> str:
    return f"asr_session:{{{sid}}}"


def audio_key(sid: str) -> str:
    return f"asr_audio:{{{sid}}}"


def events_key(sid: str) -> str:
    return f"asr_events:{{{sid}}}"


def transcript_key(sid: str) -> str:
    return f"asr_said:{{{sid}}}"


def results_channel(gateway: str) -> str:
    return f"asr_results:{gateway}"


def held_key(kind: str, owner: str) -> str:
    return f"asr_held:{kind}:{owner}"


def starts_key(owner: str, minute: int) -> str:
    return f"asr_starts:{owner}:{minute}"


def quota_key(owner: str, minute: int) -> str:
    return f"asr_quota:{owner}:{minute}"


def alive_key(kind: str) -> str:
    return f"asr_alive:{kind}"


def heartbeat_key(kind: str, name: str) -> str:
    return f"{kind}:{name}:heartbeat"
