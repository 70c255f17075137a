"""The errors of the system. Clients and logs identify them by their codes, and shells by the exit status.

AsrError                 an error that a client is told: code, message, details
├── BadRequest           the request itself is wrong
├── AudioError           the bytes are not audio that can be decoded
├── Refused              this client may not do it, or a limit is reached
├── Unavailable          not possible now: Redis is away, there is no room, the server is shutting down
└── DecryptionError      a recording that is encrypted cannot be read
    └── MissingKey       for want of its key
ModelError               the model cannot be loaded (exit status 3)
SettingError             a setting has a bad value (exit status 2)
"""

from __future__ import annotations

from typing import Any


class AsrError(Exception):
    """Raised when something that a client asked for cannot be done.

    Attributes:
        code: What went wrong, for programs; codes are stable.
        message: The same for humans.
        details: Further fields that the client is told.
    """

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class BadRequest(AsrError):
    """Raised when a message cannot be understood, or is not allowed in the present state of the session."""


class AudioError(AsrError):
    """Raised when bytes are not audio that can be decoded."""


class Refused(AsrError):
    """Raised when a client is not authorised, or a limit is reached.

    Attributes:
        status: The HTTP status for it. Where a later try may succeed, `retry_after` (seconds) is in the details.
    """

    def __init__(self, status: int, code: str, message: str, **details: Any) -> None:
        super().__init__(code, message, **details)
        self.status = status


class Unavailable(AsrError):
    """Raised when a valid request cannot be served now; `retry_after` (seconds) is in the details."""

    def __init__(self, code: str, message: str, retry_after: float = 2.0, **details: Any) -> None:
        super().__init__(code, message, retry_after=retry_after, **details)


class DecryptionError(AsrError):
    """Raised when encrypted audio cannot be read: its key is not there, or it is not what was written.

    Args:
        reason: One of the two, as a clause that follows a name of the audio.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("recording_unreadable", reason)


class MissingKey(DecryptionError):
    """Raised when encrypted audio cannot be read before its key is there."""


class ModelError(Exception):
    """Raised when a model cannot be found or loaded; the message is one line that an operator can act on."""


class SettingError(Exception):
    """Raised when a setting has a bad value; the message is one line that names the setting."""
