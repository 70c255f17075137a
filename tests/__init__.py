"""The tests of asrserver. See needs.py for what each needs, and conftest.py for what they share."""

import os

import pytest

# Before numpy: one thread, as the supervisor gives its workers. OpenBLAS's threads wait by spinning, and where other
# processes want the cores too, a product of small matrices takes ten times as long.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# So that an assertion in a helper shows its values as one in a test does.
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
