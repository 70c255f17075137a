"""What several tests of the handlers use."""

from __future__ import annotations

from typing import Any

from asrserver.handlers.app import AsrApplication

AUDIO = bytes(range(256)) * 8


def only_socket(app: AsrApplication) -> Any:
    """The handler of the only open WebSocket; tests look at parts of it that are not public."""
    [handler] = app.connections
    return handler
