"""The recording of a session, for download and for players, which ask for ranges of it."""

from __future__ import annotations

import asyncio
import os
import re
from typing import BinaryIO

from tornado.web import HTTPError

from asrserver.gateway.archive_files import MEDIA
from asrserver.handlers.base import Rest

#: Bytes read at a time, and seconds that a client may take for them.
STEP = 1 << 18
PATIENCE = 60.0

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class Recording(Rest):
    """GET /api/v1/session/:id/audio: as it is on disk; of a Range, 206."""

    async def get(self, session_id: str) -> None:
        known = await self.gateway.storage.has_audio(session_id, owner=self.owner)
        path = await self.gateway.recordings.find(session_id) if known else None
        if path is None:
            raise HTTPError(404, "there is no recording of such a session")
        loop = asyncio.get_running_loop()
        try:
            file = await loop.run_in_executor(None, open, path, "rb")
        except FileNotFoundError:  # it was removed just now
            raise HTTPError(404, "there is no recording of such a session") from None
        try:
            size = await loop.run_in_executor(None, lambda: os.fstat(file.fileno()).st_size)
            self.set_header("Content-Type", MEDIA[path.suffix[1:]])
            self.set_header("Content-Disposition", f'inline; filename="{path.name}"')
            self.set_header("X-Content-Type-Options", "nosniff")
            self.set_header("Accept-Ranges", "bytes")
            begin, end = self._wanted(size)
            if begin >= end and size:
                self.set_header("Content-Range", f"bytes */{size}")
                self.clear_header("Content-Disposition")
                self.fail(416, "range_not_satisfiable", "the recording has no such range")
                return
            self.set_header("Content-Length", str(end - begin))
            await self.flush()
            if self.request.method != "HEAD":
                await self._send(file, begin, end)
        finally:
            await loop.run_in_executor(None, file.close)

    def _wanted(self, size: int) -> tuple[int, int]:
        """The range that is asked for, perhaps of nothing, or all; of several at once, all (RFC 9110, 14.2)."""
        asked = _RANGE.fullmatch(self.request.headers.get("Range", ""))
        if asked is None or asked[0] == "bytes=-":
            return 0, size
        begin, end = (int(asked[1]), min(int(asked[2] or size - 1) + 1, size)) if asked[1] else (-1, size)
        if begin < 0:
            begin = max(0, size - int(asked[2]))
        if asked[1] and asked[2] and int(asked[2]) < int(asked[1]):
            return 0, size  # not a range at all
        if begin < end:
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        return begin, end

    async def _send(self, file: BinaryIO, begin: int, end: int) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, file.seek, begin)
        while begin < end:
            data = await loop.run_in_executor(None, file.read, min(STEP, end - begin))
            if not data:
                break
            begin += len(data)
            self.write(data)
            async with asyncio.timeout(PATIENCE):
                await self.flush()
