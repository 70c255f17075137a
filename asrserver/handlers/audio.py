"""The download of a session's recording, whole or by ranges, which players and resumed downloads ask for.

Not a tornado.web.StaticFileHandler, for four reasons (Tornado 6.6): it reads the file in the event loop, where a slow
disk would hold up every live session of the gateway; it waits without limit for a client that does not read; its ETag
is a hash of the whole file, computed in the event loop too; and it knows no If-Range.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import BinaryIO, cast

from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError

from asrserver.errors import DecryptionError
from asrserver.gateway.archive_files import MEDIA, Opened
from asrserver.handlers.base import RestHandler

log = logging.getLogger("asrserver.rest")

#: Bytes that are read and written at a time, and seconds in which the client must take them.
BLOCK_BYTES = 1 << 18
BLOCK_SECONDS = 60.0

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def requested_range(header: str, size: int) -> tuple[int, int] | None:
    """Read a Range header (RFC 9110, 14.2) for a file of `size` bytes.

    Returns:
        The first byte and the one after the last; the first is not below the second where no byte of the file is
        asked for. None if all of the file is to be sent: without a header, for one that is not valid, and for several
        ranges at once.
    """
    match = _RANGE.fullmatch(header)
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size  # the last bytes of the file
    first = int(match[1])
    last = int(match[2]) if match[2] else size - 1
    if match[2] and last < first:
        return None
    return first, min(last + 1, size)


#: Whether there is no such session, or only no recording of it.
NO_RECORDING = "there is no recording of such a session"


class RecordingHandler(RestHandler):
    """GET /api/v1/session/:id/audio: the recording as a file; 206 for a Range of it."""

    async def get(self, session_id: str) -> None:
        known = await self.gateway.storage.has_audio(session_id, owner=self.owner)
        try:
            recording = await self.gateway.recordings.open(session_id) if known else None
        except DecryptionError as exc:
            raise self._unreadable(session_id, exc) from None
        if recording is None:
            kept = self.gateway.settings.save_audio
            raise HTTPError(404, NO_RECORDING if kept else f"{NO_RECORDING}: this server keeps none (--save-audio)")
        self.audit("listen", session_id)
        try:
            await self._answer(recording)
        except StreamClosedError:
            pass  # the client has had enough
        except TimeoutError:
            log.warning("session=%s its recording was not read for %g s: cut", session_id, BLOCK_SECONDS)
            self._cut()
        except DecryptionError as exc:
            error = self._unreadable(session_id, exc)
            if not self._headers_written:
                raise error from None
            self._cut()
        finally:
            await asyncio.get_running_loop().run_in_executor(None, recording.file.close)

    def _cut(self) -> None:
        """Close the connection in the middle of the answer, so that its client knows that it has not all of it."""
        cast(HTTP1Connection, self.request.connection).stream.close()

    @staticmethod
    def _unreadable(session_id: str, exc: DecryptionError) -> DecryptionError:
        """Log that a recording cannot be read, and return the error for its client."""
        log.error("session=%s its recording cannot be read: %s", session_id, exc)
        return DecryptionError(f"the recording cannot be read: {exc}")

    async def _answer(self, recording: Opened) -> None:
        size = recording.size
        self.set_header("ETag", f'"{recording.written:x}-{size:x}"')  # it is written once, and never changed
        if self.check_etag_header():
            self.set_status(304)
            return
        self.set_header("Content-Type", MEDIA[recording.name.rpartition(".")[2]])
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Accept-Ranges", "bytes")
        wanted = requested_range(self.request.headers.get("Range", ""), size) if self._same_file else None
        begin, end = (0, size) if wanted is None else wanted
        if wanted is not None and begin >= end:
            self.set_header("Content-Range", f"bytes */{size}")
            self.fail(416, "range_not_satisfiable", f"the recording has {size} bytes, and none of this range")
            return
        if wanted is not None:
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.set_header("Content-Disposition", f'inline; filename="{recording.name}"')
        self.set_header("Content-Length", str(end - begin))
        if self.request.method != "HEAD":
            await self._send(recording.file, begin, end)
        if not self._headers_written:
            await self.flush()

    @property
    def _same_file(self) -> bool:
        """Whether the file is the one that the client has a part of, as far as it says so in If-Range."""
        known = self.request.headers.get("If-Range")
        return known is None or known == self._headers["ETag"]

    async def _send(self, file: BinaryIO, begin: int, end: int) -> None:
        """Send the bytes from `begin` to `end`; the headers go out with the first of them.

        Raises:
            TimeoutError: The client does not take them.
            DecryptionError: They were changed.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, file.seek, begin)
        while begin < end:
            data = await loop.run_in_executor(None, file.read, min(BLOCK_BYTES, end - begin))
            if not data:
                break
            begin += len(data)
            self.write(data)
            async with asyncio.timeout(BLOCK_SECONDS):
                await self.flush()
