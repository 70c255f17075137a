"""/metrics for Prometheus: the metrics of this supervisor's gateways and workers."""

from __future__ import annotations

import asyncio

from asrserver.handlers.base import RestHandler
from asrserver.telemetry import metrics


class MetricsHandler(RestHandler):
    """GET /metrics: the text format, with the numbers of all processes together, whichever gateway is asked."""

    query_parameters = None
    operators_only = True

    async def get(self) -> None:
        text = await asyncio.get_running_loop().run_in_executor(None, metrics.exposition)
        self.set_header("Content-Type", metrics.CONTENT_TYPE)
        self.finish(text)
