"""The errors of the system, each with the code that a client, a log line or an exit status carries.

AsrError                 what a client may be told: code, message, details
├── BadRequest           the message itself is wrong
├── AudioError           the bytes are not audio that can be decoded
├── Refused              not by this client, or not so much: keys, limits, quotas
└── Unavailable          not now: Redis away, no room, shutting down
ModelError               the model cannot be loaded (exit status 3)
SettingError             a setting has a bad value (one line, exit status 2)
"""

from __future__ import annotations

from typing import Any


class AsrError(Exception):
    """Raised when something a client asked for cannot be done; `code` is stable, `message` is for people."""

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class BadRequest(AsrError):
    """Raised when a message cannot be understood or is not allowed in the state the session is in."""


class AudioError(AsrError):
    """Raised when bytes are not audio that can be decoded."""


class Refused(AsrError):
    """Raised at the door, or when a limit is reached; `status` is HTTP's, `retry_after` (seconds) is in the details."""

    def __init__(self, status: int, code: str, message: str, **details: Any) -> None:
        super().__init__(code, message, **details)
        self.status = status


class Unavailable(AsrError):
    """Raised when a request is right but cannot be served now; `retry_after` (seconds) is in the details."""

    def __init__(self, code: str, message: str, retry_after: float = 2.0, **details: Any) -> None:
        super().__init__(code, message, retry_after=retry_after, **details)


class ModelError(Exception):
    """Raised when a model cannot be found or loaded: the message is one line an operator can act on."""


class SettingError(Exception):
    """Raised when a setting has a value that cannot be used: the message names the setting."""
