"""The Tornado application: the handler of each path, and the life of one gateway process."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream
from tornado.netutil import ssl_wrap_socket
from tornado.routing import PathMatches
from tornado.web import Application, RequestHandler

from asrserver.config import Settings
from asrserver.gateway.gateway import Gateway
from asrserver.handlers.accepting import Acceptor
from asrserver.handlers.assemblyai import AssemblyAiHandler
from asrserver.handlers.audio import RecordingHandler
from asrserver.handlers.auth import normalise
from asrserver.handlers.certificate import Certificate
from asrserver.handlers.client_secrets import ClientSecretsHandler
from asrserver.handlers.connection import WebSocketConnection
from asrserver.handlers.deepgram import DeepgramLiveHandler, DeepgramRecordedHandler
from asrserver.handlers.funasr import FunasrHandler
from asrserver.handlers.keepalive import ConnectionRegistry, OpenConnection
from asrserver.handlers.kikipounamu import SubmissionHandler, SubmissionResultHandler, SubmittedAudioHandler
from asrserver.handlers.live_session import LiveSessionConnection
from asrserver.handlers.metrics import MetricsHandler
from asrserver.handlers.openai import (
    ModelHandler,
    ModelsHandler,
    TranscriptionsHandler,
    TranslationsHandler,
    UnknownPathHandler,
)
from asrserver.handlers.openapi import OpenApiHandler
from asrserver.handlers.page import FOLDER, PAGES, StaticHandler
from asrserver.handlers.realtime import RealtimeHandler
from asrserver.handlers.rest import (
    HealthHandler,
    HistoryHandler,
    LivenessHandler,
    NotFoundHandler,
    QueueStatusHandler,
    ReadinessHandler,
    SessionHandler,
    StatsHandler,
    UserHandler,
)
from asrserver.handlers.root import RootHandler
from asrserver.handlers.transcribe import TranscribeHandler
from asrserver.handlers.vosk import VoskHandler
from asrserver.handlers.websocket import NativeWebSocketHandler
from asrserver.handlers.whisperlive import WhisperLiveHandler
from asrserver.handlers.wrong_scheme import PlainStream, TlsStream
from asrserver.handlers.wyoming import WyomingServer
from asrserver.process.aio import until
from asrserver.telemetry import metrics, traces

log = logging.getLogger("asrserver.app")

#: Bytes of a request's body at most: no request needs one.
MAX_BODY = 1 << 16

#: Seconds after which an HTTP connection without a request is closed.
HTTP_IDLE_SECONDS = 75

#: Seconds that the body of a request may take, unless it is an upload, which has a limit of its own (upload.py).
BODY_SECONDS = 10.0

#: The handler of each route. data/openapi.json describes the same routes.
ROUTES: dict[str, type[RequestHandler]] = {
    "/ws/asr": NativeWebSocketHandler,
    "/livez": LivenessHandler,
    "/readyz": ReadinessHandler,
    "/metrics": MetricsHandler,
    "/api/v1/health": HealthHandler,
    "/api/v1/history": HistoryHandler,
    "/api/v1/session/{session_id}": SessionHandler,
    "/api/v1/session/{session_id}/audio": RecordingHandler,
    "/api/v1/users/{user_id}": UserHandler,
    "/api/v1/stats": StatsHandler,
    "/api/v1/asr/queue/status": QueueStatusHandler,
    "/api/v1/openapi.json": OpenApiHandler,
    "/api/v1/transcribe": TranscribeHandler,
    "/v1/audio/transcriptions": TranscriptionsHandler,
    "/v1/audio/translations": TranslationsHandler,
    "/v1/listen": DeepgramRecordedHandler,
    "/v1/realtime/client_secrets": ClientSecretsHandler,
    "/v1/models": ModelsHandler,
    "/v1/models/{model}": ModelHandler,
}

#: Further paths, as patterns: the server's own pages; clients whose users leave /v1 out of the URL; models whose names
#: have a slash; and errors as OpenAI's clients read them for the rest of /v1.
FURTHER: dict[str, type[RequestHandler]] = {
    **dict.fromkeys(map(re.escape, PAGES), StaticHandler),
    f"{FOLDER}(?P<name>[^/]+)": StaticHandler,
    "/audio/transcriptions": TranscriptionsHandler,
    "/audio/translations": TranslationsHandler,
    "/v1/models/(?P<model>.+)": ModelHandler,
    "/v1": UnknownPathHandler,
    "/v1/.*": UnknownPathHandler,
}

#: The paths of kikipounamu's Python server, as patterns: on request only, because pages of all origins may use them.
KIKIPOUNAMU: dict[str, type[RequestHandler]] = {
    "(?:/api/v1)?/asr/submit": SubmissionHandler,
    "(?:/api/v1)?/asr/result/(?P<session_id>[^/]+)": SubmissionResultHandler,
    "(?:/api/v1)?/asr/audio/(?P<session_id>[^/]+)": SubmittedAudioHandler,
}

#: The handlers of requests for an upgrade to WebSocket, as patterns; other requests for these paths are not theirs.
UPGRADES: dict[str, type[WebSocketConnection]] = {
    "/v1/listen": DeepgramLiveHandler,
    "/v3/ws/?": AssemblyAiHandler,
    "/funasr/?": FunasrHandler,
    "/vosk/?": VoskHandler,
    "/whisperlive/?": WhisperLiveHandler,
    "/": RootHandler,
    "/v1/realtime": RealtimeHandler,
}

#: Seconds in which clients must answer the closing of their connection.
CLOSE_SECONDS = 2.0


class AsrApplication(Application):
    """The routes, around one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        gateway.access.on_change = self._cut_revoked
        self.connections = ConnectionRegistry(gateway.settings)
        rest: dict[str, Any] = {"gateway": gateway}
        websocket = {**rest, "registry": self.connections}
        super().__init__(
            [(_Upgrade(pattern), handler, websocket) for pattern, handler in UPGRADES.items()]
            + [
                (_pattern(path), handler, websocket if issubclass(handler, WebSocketConnection) else rest)
                for path, handler in ROUTES.items()
            ]
            + [(pattern, handler, rest) for pattern, handler in FURTHER.items()]
            + [(pattern, handler, rest) for pattern, handler in KIKIPOUNAMU.items() if gateway.settings.kikipounamu],
            default_handler_class=NotFoundHandler,
            default_handler_args=rest,
            log_function=_log_request,
        )

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        normalise(request, self.gateway.access)  # before anything of the request can be logged
        return super().find_handler(request, **kwargs)

    def _cut_revoked(self) -> None:
        """Close the connections of revoked keys; called when the file of keys has changed."""
        for handler in list(self.connections):
            if handler.key is not None and self.gateway.access.key(handler.key.id) is None:
                handler.close(1008, "the API key is revoked")

    def send_away(self, handlers: Iterable[OpenConnection]) -> None:
        """Ask clients to connect again, and to resume."""
        for handler in handlers:
            handler.close(1012, "the server is restarting: connect again")

    async def interrupt_sessions(self, timeout: float) -> None:
        """End the sessions that cannot be resumed and whose clients go on talking; wait for their last text."""
        talking = [
            one for one in self.connections if isinstance(one, LiveSessionConnection) and one.session is not None
        ]
        for handler in talking:
            handler.interrupt()
        if not await until(lambda: all(handler.session is None for handler in talking), timeout):
            log.warning("not all sessions that were interrupted have their last text")

    async def close_connections(self) -> None:
        """Close every WebSocket: Tornado's server does not."""
        self.send_away(list(self.connections))
        if not await until(lambda: not self.connections, CLOSE_SECONDS):
            log.warning("%d connections did not answer their closing", len(self.connections))


class _Upgrade(PathMatches):
    """Matches requests for an upgrade to WebSocket."""

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        upgrade = request.headers.get("Upgrade", "").lower() == "websocket"
        return super().match(request) if upgrade else None


def _pattern(path: str) -> str:
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(path))


def _log_request(handler: RequestHandler) -> None:
    status = handler.get_status()
    if not isinstance(handler, WebSocketConnection):
        metrics.requests.labels(str(status)).inc()
    level = logging.ERROR if status >= 500 and status != 503 else logging.DEBUG
    log.log(
        level,
        "%s %s %d %.1f ms",
        handler.request.method,
        handler.request.path,
        status,
        1000 * handler.request.request_time(),
    )


class BoundedHttpServer(HTTPServer):
    """Bounds connections that send no request: beyond max_connections of them, a new one is closed without an answer.

    An upgraded WebSocket is no longer one of them; the gateway counts those.
    """

    _following: asyncio.Task[None] | None = None

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept connections on these sockets."""
        for one in sockets:
            self._sockets[one.fileno()] = one
            self._handlers[one.fileno()] = Acceptor(one, self._handle_connection).stop

    def follow(self, certificate: Certificate) -> None:
        """Use what a certificate is renewed with for connections that begin after that, until `stop`."""

        def use(context: ssl.SSLContext) -> None:
            self.ssl_options = context

        self._following = asyncio.create_task(certificate.follow(use), name="tls-certificate")

    def stop(self) -> None:
        """Accept no more."""
        if self._following is not None:
            self._following.cancel()
        super().stop()

    def _handle_connection(self, connection: socket.socket, address: Any) -> None:
        """As Tornado's, but for the classes of streams."""
        try:
            if self.ssl_options is not None:
                connection = ssl_wrap_socket(
                    connection, self.ssl_options, do_handshake_on_connect=False, server_side=True
                )
            sizes = {"max_buffer_size": self.max_buffer_size, "read_chunk_size": self.read_chunk_size}
            self.handle_stream((PlainStream if self.ssl_options is None else TlsStream)(connection, **sizes), address)
        except OSError:  # the client has left already
            connection.close()

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        assert isinstance(self.request_callback, AsrApplication)
        limit = self.request_callback.gateway.settings.max_connections
        if limit and len(self._connections) >= limit:
            stream.close()
            return
        super().handle_stream(stream, address)


def _http_server(application: AsrApplication, settings: Settings) -> BoundedHttpServer:
    options: dict[str, Any] = {
        "max_body_size": MAX_BODY,
        "idle_connection_timeout": HTTP_IDLE_SECONDS,
        "body_timeout": BODY_SECONDS,
    }
    if not settings.tls_cert:
        return BoundedHttpServer(application, **options)
    certificate = Certificate(settings.tls_cert, settings.tls_key)
    server = BoundedHttpServer(application, ssl_options=certificate.context, **options)
    server.follow(certificate)
    return server


async def serve(
    settings: Settings,
    listeners: Mapping[str, socket.socket],
    alive: Callable[[], None],
    ready: Callable[[], None],
    strict: bool,
) -> None:
    """Run a gateway until SIGTERM.

    Args:
        settings: The settings.
        listeners: Bound sockets by name: http, and perhaps wyoming; further ones of HTTP are called http-PORT.
        alive: Is called often, as a sign of life for the supervisor.
        ready: Is called once, when the gateway accepts connections.
        strict: See Gateway.open.

    Raises:
        Unavailable: Redis cannot be reached.
        SettingError: A setting cannot be used: the TLS certificate, for example.
        StorageError: The database cannot be used, and `strict`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    gateway = Gateway(settings, alive)
    if settings.traces == "on":
        traces.configure("asrserver-gateway", gateway.name)
    await gateway.open(strict)
    application = AsrApplication(gateway)
    server = _http_server(application, settings)
    server.add_sockets(listener for name, listener in listeners.items() if name.startswith("http"))
    wyoming = WyomingServer(gateway, listeners["wyoming"]) if "wyoming" in listeners else None
    gateway.accepting_since = time.monotonic()
    ready()
    log.info("gateway %s ready", gateway.name)
    await stop.wait()
    gateway.closing = True
    server.stop()
    if wyoming is not None:
        wyoming.stop()
    application.send_away([handler for handler in application.connections if handler.resumable])
    await gateway.drain(settings.drain_timeout)
    await application.interrupt_sessions(settings.drain_timeout)
    if wyoming is not None:
        await wyoming.close()
    await application.close_connections()
    await server.close_all_connections()
    await gateway.sessions.hand_over(settings.drain_timeout)
    await gateway.close()
    await loop.run_in_executor(None, traces.close)
    log.info("gateway %s stopped", gateway.name)
