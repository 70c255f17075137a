"""Routes that another server answers where FUNASR_ADDR names one."""

from __future__ import annotations

import logging
from abc import abstractmethod

import orjson
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from asrserver.handlers.base import Rest

log = logging.getLogger("asrserver.rest")

#: Seconds until the other server must have answered.
TIMEOUT = 5.0

#: Largest answer in bytes.
MAX_ANSWER = 1 << 20


class Upstream(Rest):
    """A route that is fetched from FUNASR_ADDR, or answered `here` where that is not set."""

    async def get(self) -> None:
        address = self.gateway.settings.funasr_addr
        if not address:
            await self.here()
            return
        url = (address if "://" in address else f"http://{address}").rstrip("/") + self.request.path
        client = AsyncHTTPClient(force_instance=True, defaults={"request_timeout": TIMEOUT, "connect_timeout": TIMEOUT})
        try:
            response = await client.fetch(url, headers={"X-Request-ID": self.request_id}, follow_redirects=False)
            body = orjson.loads(response.body)
        except (HTTPClientError, OSError, ValueError) as exc:
            reason = f"status {exc.code}" if isinstance(exc, HTTPClientError) and exc.code < 599 else str(exc)
            log.warning("FUNASR_ADDR %s: %s", address, reason)
            self.fail(502, "bad_gateway", f"the recognition server at FUNASR_ADDR gave no usable answer: {reason}")
        else:
            self.answer(body)
        finally:
            client.close()

    @abstractmethod
    async def here(self) -> None:
        """Answer from this system's own numbers."""
