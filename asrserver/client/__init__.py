"""The Python client of the native WebSocket protocol: `from asrserver.client import Client`."""

from asrserver.client.client import Client
from asrserver.client.connection import Watch, authorization
from asrserver.client.errors import ConnectionLost, ServerError
from asrserver.client.session import ClientSession

__all__ = ["Client", "ClientSession", "ConnectionLost", "ServerError", "Watch", "authorization"]
