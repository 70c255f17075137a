"""logs.py: what is logged, and what never is."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from asrserver.telemetry.logs import configure_logging


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, restored afterwards."""
    logger = logging.getLogger()
    before = logger.level, logger.handlers[:]
    yield logger
    logger.setLevel(before[0])
    logger.handlers = before[1]


@pytest.mark.parametrize("client", ["httpx", "httpx2"])
def test_a_download_logs_no_request(root: logging.Logger, client: str, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug")
    logging.getLogger(client).info("HTTP Request: GET https://huggingface.co/")
    logging.getLogger(f"{client}.x").warning("the hub is slow")
    logged = capfd.readouterr().err
    assert "the hub is slow" in logged
    assert "GET" not in logged
