"""Routes that another server answers, where the setting FUNASR_ADDR names one."""

from __future__ import annotations

import logging
from abc import abstractmethod

import orjson
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from asrserver.handlers.base import RestHandler

log = logging.getLogger("asrserver.rest")

#: Seconds in which the other server must answer.
UPSTREAM_TIMEOUT_SECONDS = 5.0


class ProxyHandler(RestHandler):
    """A route that is fetched from FUNASR_ADDR, or answered by `local_answer` where that is not set."""

    async def get(self) -> None:
        address = self.gateway.settings.funasr_addr
        if not address:
            await self.local_answer()
            return
        url = (address if "://" in address else f"http://{address}").rstrip("/") + self.request.path
        limits = {"request_timeout": UPSTREAM_TIMEOUT_SECONDS, "connect_timeout": UPSTREAM_TIMEOUT_SECONDS}
        client = AsyncHTTPClient(force_instance=True, defaults=limits)
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
    async def local_answer(self) -> None:
        """Answer with this system's own numbers."""
