"""Audio that the tests of the handlers send."""

from __future__ import annotations

from typing import Any

from asrserver.handlers.app import AsrApplication

AUDIO = bytes(range(256)) * 8


def only_socket(app: AsrApplication) -> Any:
    """The one open WebSocket's handler, of which tests look at parts that are not public."""
    [handler] = app.connections
    return handler
