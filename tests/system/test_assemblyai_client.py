"""AssemblyAI's own Python library against the whole system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from assemblyai.streaming.v3 import (
    RealTimeEvents,
    RealTimeParameters,
    RealTimeTranscriber,
    RealTimeTranscriberOptions,
)

from asrserver.auth.keys import KeyLimits
from tests.gateway.limits.support import Keyed
from tests.program import System
from tests.recordings import Utterance
from tests.system.support import Start, robust
from tests.waiting import wait_until


class Conversation:
    """A stream and all that its client is told; `turns` has the last of each turn."""

    def __init__(self, system: System, key: str, **options: Any) -> None:
        self.events: list[Any] = []
        self.errors: list[Any] = []
        self.turns: dict[int, str] = {}
        self.client = RealTimeTranscriber(
            RealTimeTranscriberOptions(api_host=f"ws://127.0.0.1:{system.port}", api_key=key, terminate_timeout=30)
        )
        for kind in RealTimeEvents:
            self.client.on(kind, self._heard)
        self.client.connect(RealTimeParameters(sample_rate=16000, **options))

    def _heard(self, _client: Any, event: Any) -> None:
        if isinstance(event, Exception):
            self.errors.append(event)
        else:
            self.events.append(event)
            if event.type == "Turn" and event.end_of_turn:
                self.turns[event.turn_order] = event.transcript

    def say(self, said: Utterance) -> None:
        """Send an utterance and a pause, in pieces of 100 ms."""
        pcm = said.pcm + bytes(48000)
        self.client.stream(pcm[at : at + 3200] for at in range(0, len(pcm), 3200))

    def kinds(self) -> list[str]:
        return [event.type for event in self.events]


def test_assemblyai_s_library(start: Start, utterances: list[Utterance], tmp_path: Path) -> None:
    """Turns and their words, while the worker is killed; a clean end; and what its users know of errors."""
    keys = Keyed(tmp_path / "keys.json", KeyLimits(starts_per_minute=1))
    system = start("run", "--workers", "1", "--keys-file", str(keys.file.path)).wait_ready()
    said = robust(utterances, 4)
    talk = Conversation(system, keys.free_text, speech_model="universal-streaming-english", format_turns=True)
    for one in said[:2]:
        talk.say(one)
    wait_until(lambda: len(talk.turns) == 2)
    [worker] = system.children("worker")
    worker.kill()
    for one in said[2:]:
        talk.say(one)
    talk.client.disconnect(terminate=True)
    assert list(talk.turns.values()) == [one.text for one in said]
    assert talk.errors == []
    kinds = talk.kinds()
    assert (kinds[0], kinds[-1], kinds.count("Termination")) == ("Begin", "Termination", 1)
    ends = [event for event in talk.events if event.type == "Turn" and event.end_of_turn]
    assert [event.turn_is_formatted for event in ends] == [False, True] * len(said)
    assert [word.text for event in ends[1::2] for word in event.words] == " ".join(one.text for one in said).split()

    for key, options, code in (("wrong", {}, 401), (keys.free_text, {"language_codes": ["klingon"]}, 400)):
        [error] = Conversation(system, key, **options).errors
        assert error.code == code
    limited = [Conversation(system, keys.text) for _ in range(2)]
    wait_until(lambda: limited[1].errors)
    assert [error.code for error in limited[1].errors] == [3009]
    for each in limited:
        each.client.disconnect()
