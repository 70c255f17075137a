"""The server's own forms of texts: for sessions that do not say theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asrserver.config import Settings
from asrserver.gateway.gateway import Gateway
from asrserver.protocol import codec
from asrserver.protocol.options import Normalise, Options, Start
from tests.fakes import FakeWorker


@pytest.fixture
def gateway_settings(gateway_settings: Settings) -> Settings:
    return replace(gateway_settings, normalise="script=hans,numerals=digits")


@pytest.mark.gen_test
async def test_the_setting(gateway: Gateway, worker: FakeWorker) -> None:
    asked = {
        "a": (Options(), Normalise("hans", "digits")),
        "b": (Options(normalise=Normalise(numerals="any")), Normalise("hans", "any")),
        "c": (Options(language="ko"), Normalise("hans", "digits")),  # which its worker leaves as it is
    }
    for sid, (options, expected) in asked.items():
        await gateway.start(Start(sid, "", options, False), lambda event: None)
        await worker.take(sid)
        assert codec.decode_options(worker.claims[sid].fields["options"]).normalise == expected
