"""The TLS certificate of a gateway, which is loaded again when its files have changed."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress

from asrserver.auth.tls import tls_context
from asrserver.errors import SettingError
from asrserver.process.watched_file import stamp

log = logging.getLogger("asrserver.app")

#: Seconds between looks at the files. They are loaded when they are the same at two looks: whoever renews a certificate
#: writes the key a moment before or after it.
LOOK_SECONDS = 2.0


class Certificate:
    """A certificate and its key, in one file or two.

    Args:
        certificate: The file of the certificate and its chain.
        key: That of its key; empty where it is in the same file.

    Attributes:
        context: What connections use that begin now.

    Raises:
        SettingError: A file cannot be read or used.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self._certificate = certificate
        self._key = key
        self._loaded = self._seen = self._stamp()  # before reading: a change meanwhile is found later
        self._told: tuple[list[tuple[int, ...]], str] | None = None
        self.context = tls_context(certificate, key)

    def refresh(self) -> bool:
        """Load the files again if they have changed, and no longer do. Blocks for as long as reading them takes.

        Returns:
            Whether `context` is another one.

        Raises:
            SettingError: They cannot be used; what was loaded before stays. They are tried again at each look, because
                the reason may not lie in them, but this is raised once for each change and reason.
        """
        before, self._seen = self._seen, self._stamp()
        if self._seen == self._loaded or self._seen != before:
            return False
        try:
            self.context = tls_context(self._certificate, self._key)
        except SettingError as exc:
            told, self._told = self._told, (self._seen, str(exc))
            if told == self._told:
                return False
            raise
        self._loaded = self._seen
        return True

    async def follow(self, use: Callable[[ssl.SSLContext], None]) -> None:
        """Give each new context to `use`, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if await loop.run_in_executor(None, self.refresh):
                    use(self.context)
                    log.info("the TLS certificate was loaded again from %s", self._certificate)
            except SettingError as exc:
                log.warning("%s; new connections get the TLS certificate that was loaded before", exc)

    def _stamp(self) -> list[tuple[int, ...]]:
        """The stamps of the files; fewer where one is missing."""
        found: list[tuple[int, ...]] = []
        for path in filter(None, (self._certificate, self._key)):
            with suppress(OSError):
                found.append(stamp(path))
        return found
