"""The Python client of the native WebSocket protocol: `from asrserver.client import Client`."""

from asrserver.client.client import Client, ClientSession, ConnectionLost, ServerError, Watch, authorization

__all__ = ["Client", "ClientSession", "ConnectionLost", "ServerError", "Watch", "authorization"]
