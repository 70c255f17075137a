"""What tests of the Python client share."""

from __future__ import annotations

from asrserver.client import Client


def cut(client: Client) -> None:
    """Break the connection without a closing handshake, as a lost network does."""
    assert client.connection is not None
    assert client.connection.protocol is not None
    assert client.connection.protocol.stream is not None
    client.connection.protocol.stream.close()
