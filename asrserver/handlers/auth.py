"""What is checked in every request: the server's name, the page's origin, then the API key.

`normalise` runs before Tornado chooses a handler, and so before anything can be logged: an API key in the query or in
a subprotocol is moved to the Authorization header, and is nowhere else.
"""

from __future__ import annotations

import logging
import re
from typing import Any
from urllib.parse import parse_qsl, urlencode

import orjson
from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from asrserver.auth.access import Access, bearer
from asrserver.auth.keys import Key
from asrserver.errors import AsrError, Refused, Unavailable
from asrserver.gateway.client_secrets import ClientSecret
from asrserver.gateway.gateway import Gateway

log = logging.getLogger("asrserver.rest")

#: Query parameters that may carry an API key.
KEY_PARAMETERS = ("token", "key")

#: CORS: methods and headers that pages of allowed origins may use, headers that they may read, and seconds for which
#: browsers may remember that.
CORS_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
CORS_HEADERS = "Authorization, Content-Type, If-None-Match, If-Range, Range, X-Request-ID"
CORS_EXPOSED_HEADERS = "Accept-Ranges, Content-Range, ETag, Retry-After, X-Request-ID"
CORS_MAX_AGE = "600"

#: Headers besides these that a preflight is allowed, and what a name may be.
MAX_CORS_HEADERS = 50
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")

#: Characters of a refused origin or host that are logged.
MAX_LOGGED_ORIGIN = 200


def normalise(request: HTTPServerRequest, access: Access) -> None:
    """Move the API key, however it was given, to the Authorization header; take the client's address from proxies."""
    tokens: list[bytes] = []
    for name in KEY_PARAMETERS:
        tokens += request.query_arguments.pop(name, [])
        request.arguments.pop(name, None)
    if tokens and request.uri is not None:
        # Tornado's own warnings quote the address: the key must not stand in it.
        kept = [pair for pair in parse_qsl(request.query, keep_blank_values=True) if pair[0] not in KEY_PARAMETERS]
        request.query = urlencode(kept)
        request.uri = request.uri.partition("?")[0] + (f"?{request.query}" if kept else "")
    shown, protocols = bearer(
        request.headers.get("Authorization") or request.headers.get("Api-Key"),  # Azure's clients show the latter
        request.headers.get("Sec-WebSocket-Protocol"),
        tokens[-1].decode(errors="replace") if tokens else None,
    )
    for name, value in (("Authorization", shown), ("Sec-WebSocket-Protocol", protocols)):
        if value is not None:
            request.headers[name] = value
        elif name in request.headers:
            del request.headers[name]
    peer = request.remote_ip or ""
    if access.trusts(peer):
        scheme = request.headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip()
        request.protocol = scheme if scheme in ("http", "https") else request.protocol
    request.remote_ip = access.address(peer, request.headers)


class AuthenticatedHandler(RequestHandler):
    """The base of every handler.

    Attributes:
        key: The client's API key; None while the server has no keys.
        secret: The client secret that it used in place of a key, if it did.
    """

    gateway: Gateway

    #: Whether the route answers without a key.
    public = False

    #: Whether pages of all origins may use the route.
    any_origin = False

    #: Whether only operators' keys open the route.
    operators_only = False

    #: Whether a client secret may replace a key: only for recognition.
    takes_secrets = False

    key: Key | None = None
    secret: ClientSecret | None = None

    def initialize(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @property
    def key_id(self) -> str:
        """The owner of sessions that this client starts; empty while the server has no keys."""
        return self.key.id if self.key else ""

    @property
    def owner(self) -> str | None:
        """The owner whose sessions this client sees; None: those of all owners."""
        return self.key.scope if self.key else None

    @property
    def is_operator(self) -> bool:
        """Whether this client may see the server as a whole; without keys, everybody may."""
        return self.owner is None

    def set_default_headers(self) -> None:
        super().set_default_headers()
        # Here and not in prepare(): Tornado clears the headers before it writes an error, and pages read errors too.
        origin = self.request.headers.get("Origin")
        if origin is not None and self._allows_pages_of(origin):
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Expose-Headers", CORS_EXPOSED_HEADERS)
        if origin is not None:
            self.set_header("Vary", "Origin")

    async def prepare(self) -> None:
        origin = self.request.headers.get("Origin")
        try:
            if not self.public and not self.gateway.access.allows_host(self.request.host):
                log.info("host %s is not one of --allowed-hosts", ascii(self.request.host[:MAX_LOGGED_ORIGIN]))
                message = "this server has no API keys and is not known by the name in the Host header (allowed_hosts)"
                raise Refused(403, "host_not_allowed", message)
            is_foreign = origin is not None and not self.gateway.access.allows_origin(origin, self.request.host)
            if origin is not None and is_foreign and not self.any_origin:
                # The page itself sees only that its connection failed: what helps the operator is in the log.
                log.info("origin %s is not one of --allowed-origins", ascii(origin[:MAX_LOGGED_ORIGIN]))
                raise Refused(403, "origin_not_allowed", "pages of this origin may not use this server")
            authorization = self.request.headers.get("Authorization")
            if not self._is_open_to(origin, authorization):
                await self._authenticate(authorization)
        except (Refused, Unavailable) as exc:
            self.refuse_request(exc)

    async def _authenticate(self, authorization: str | None) -> None:
        if self.takes_secrets:
            self.secret = await self.gateway.client_secrets.find(authorization)
        if self.secret is not None:
            self.key = self.secret.key
        else:
            self.key = self.gateway.access.authenticate(authorization)
        if self.operators_only and not self.is_operator:
            raise Refused(403, "operator_required", "an operator's key is required (asrserver keys create --operator)")

    @property
    def needs_no_key(self) -> bool:
        """Whether the operator lets programs that can send no key use this route."""
        return False

    def _is_open_to(self, origin: str | None, authorization: str | None) -> bool:
        """Whether no key is asked for: what a page of this origin, or no page, shows is then not looked at."""
        # A page of any name can let that name resolve to this machine, and then is of the server's own origin.
        is_trusted = origin is None or self._allows_pages_of(origin)
        return self.public or self._preflight or (authorization is None and is_trusted and self.needs_no_key)

    def _allows_pages_of(self, origin: str) -> bool:
        access = self.application.gateway.access  # type: ignore[attr-defined]  # `self.gateway` may not be set yet
        return self.any_origin or bool(access.allows_pages_of(origin))

    @property
    def _preflight(self) -> bool:
        """Whether this is a browser's CORS preflight, which never carries a key."""
        return self.request.method == "OPTIONS" and "Access-Control-Request-Method" in self.request.headers

    def options(self, *_args: str, **_kwargs: str) -> None:
        """Answer a CORS preflight."""
        self.set_header("Access-Control-Allow-Methods", CORS_METHODS)
        # Libraries send headers of their own (x-stainless-…), and a page of an allowed origin may send any: `*` would
        # leave out Authorization.
        asked = self.request.headers.get("Access-Control-Request-Headers", "")
        further = [name for name in map(str.strip, asked.split(",")) if _HEADER_NAME.fullmatch(name)]
        self.set_header("Access-Control-Allow-Headers", ", ".join([CORS_HEADERS, *further[:MAX_CORS_HEADERS]]))
        self.set_header("Access-Control-Max-Age", CORS_MAX_AGE)
        self.set_status(204)
        self.finish()

    def refuse_request(self, error: AsrError) -> None:
        """Finish the request with a refusal: its status, Retry-After where that is known, and the error as JSON."""
        self.gateway.refused(error, self.request.remote_ip, self.key_id, is_request=True)
        status = error.status if isinstance(error, Refused) else 503
        self.set_status(status)
        if status == 401:
            self.set_header("WWW-Authenticate", 'Bearer realm="asrserver"')
        if "retry_after" in error.details:
            self.set_header("Retry-After", str(max(1, round(error.details["retry_after"]))))
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(orjson.dumps(self.error_body(status, error.code, error.message, **error.details)))

    def error_body(self, status: int, code: str, message: str, **details: Any) -> dict[str, Any]:
        """Return an error as the interface writes it."""
        return {"error": {"code": code, "message": message, **details}}
