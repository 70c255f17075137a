"""The tests. What asserts in these helper modules fails as telling as in a test."""

import pytest

pytest.register_assert_rewrite(
    "tests.audio.streams",
    "tests.broker.support",
    "tests.fakes",
    "tests.gateway.limits.support",
    "tests.gateway.resuming",
    "tests.loadtest.faulty_proxy",
    "tests.program",
    "tests.storage.postgres",
    "tests.system.support",
    "tests.worker_harness",
    "tests.ws_client",
)
