"""/metrics for Prometheus: what the gateways and workers of this supervisor count."""

from __future__ import annotations

import asyncio

from asrserver.handlers.base import Rest
from asrserver.telemetry import metrics


class Metrics(Rest):
    """GET /metrics: the text format, of all processes together, whichever of them is asked."""

    async def get(self) -> None:
        text = await asyncio.get_running_loop().run_in_executor(None, metrics.exposition)
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(text)
