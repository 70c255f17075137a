"""The server's own pages: `/`, where people speak, `/captions` and `/docs`; and asrserver.js, which others use too.

The files are in data/web/. They hold no secret and need no key: the requests that they make do. There are few and they
are small, so all of them are kept in memory, and any other name is not found, whatever it looks like.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from tornado.web import HTTPError

from asrserver.handlers.base import NO_PATH, RestHandler

#: The files by their paths. What only the pages use is below /web/.
PAGES = {
    "/": "index.html",
    "/docs": "docs.html",
    "/captions": "captions.html",
    "/asrserver.js": "asrserver.js",
    "/asrserver.d.ts": "asrserver.d.ts",
}
FOLDER = "/web/"

MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "ts": "text/plain; charset=utf-8",
}

#: Nothing from elsewhere, nothing inline, nowhere in a frame. Recordings are played from memory where a key is needed.
SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

HEADERS = {
    # Asked for each time, and answered with 304: after an upgrade nobody has parts of two versions.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": SECURITY_POLICY,
    "Permissions-Policy": "microphone=(self), screen-wake-lock=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file as it is sent."""

    media_type: str
    data: bytes
    etag: str


@cache
def files() -> dict[str, StaticFile]:
    """Read all files, by their names."""
    found = {}
    for entry in resources.files("asrserver").joinpath("data", "web").iterdir():
        media_type = MEDIA_TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            data = entry.read_bytes()
            found[entry.name] = StaticFile(media_type, data, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return found


class StaticHandler(RestHandler):
    """GET of a file of data/web/."""

    public = True
    query_parameters = None

    async def get(self, name: str = "") -> None:
        file = files().get(PAGES.get(self.request.path, name))
        if file is None:
            raise HTTPError(404, NO_PATH)
        for header, value in HEADERS.items():
            self.set_header(header, value)
        self.set_header("Content-Type", file.media_type)
        self.set_header("ETag", file.etag)
        if self.check_etag_header():
            self.set_status(304)
            return
        self.finish(file.data)
