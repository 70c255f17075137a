"""What the client raises."""

from __future__ import annotations

from typing import Any

#: A message of the server: JSON, as docs/reference/websocket.md describes it.
Event = dict[str, Any]


class ServerError(Exception):
    """Raised for an error the server reported: `event` is all of it."""

    def __init__(self, event: Event) -> None:
        super().__init__(f"{event.get('code', 'error')}: {event.get('message', '')}")
        self.event = event


class ConnectionLost(Exception):
    """Raised when the connection ended, and could not be had again, before what was waited for came."""
