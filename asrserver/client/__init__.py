"""The Python client of the native WebSocket protocol: `from asrserver.client import Client`."""

from asrserver.client.client import Client
from asrserver.client.connection import ConnectionObserver, authorization
from asrserver.client.errors import ConnectionLost, HandshakeRefused, ServerError
from asrserver.client.session import ClientSession

__all__ = [
    "Client",
    "ClientSession",
    "ConnectionLost",
    "ConnectionObserver",
    "HandshakeRefused",
    "ServerError",
    "authorization",
]
