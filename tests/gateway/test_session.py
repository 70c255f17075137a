"""session.py and chunk_order.py: the order of chunks and results, without servers and sockets."""

from __future__ import annotations

from typing import Any

import pytest

from asrserver.errors import BadRequest
from asrserver.gateway.chunk_order import MAX_INDEX
from asrserver.gateway.missing_audio import MAX_REFUSED
from asrserver.gateway.session import MAX_UNACKNOWLEDGED, MAX_UNACKNOWLEDGED_BYTES, Session
from asrserver.protocol.events import ChunkResult, Partial, Received, Result, SessionEvent
from asrserver.protocol.options import Options
from tests.events import durable


class Client:
    """Keeps the events of a session."""

    def __init__(self) -> None:
        self.got: list[SessionEvent] = []
        self.session = Session("s", "", Options(), self.got.append)

    def send(self, index: int | None, size: int = 10) -> int:
        """Offer a chunk, as the gateway does."""
        index, fresh = self.session.check_chunk(index)
        if fresh:
            self.session.appending(index, 1, size)
        else:
            self.session.repeat(index)
        return index

    def code(self, index: Any) -> str:
        """The code with which a chunk is refused."""
        with pytest.raises(BadRequest) as caught:
            self.session.check_chunk(index)
        return caught.value.code

    def summary(self) -> list[tuple[str, int | None]]:
        return [(kind(event), getattr(event, "chunk_index", None)) for event in self.got]


@pytest.fixture
def client() -> Client:
    return Client()


def result(seq: int, index: int | None = None, kind: str = "chunk") -> Result:
    return durable(kind, seq, **({} if index is None else {"chunk_index": index}))


def kind(event: SessionEvent) -> str:
    """The event's type, or `ack`."""
    return "ack" if isinstance(event, Received) else str(event.__struct_config__.tag)


# -- the order of chunks


def test_the_first_index_may_be_any_and_then_each_is_the_next(client: Client) -> None:
    assert client.send(7) == 7
    assert client.send(None) == 8
    assert client.send(9) == 9
    assert client.code(11) == "chunk_gap"
    assert client.code(6) == "chunk_gap"
    with pytest.raises(BadRequest) as caught:
        client.session.check_chunk(12)
    assert (caught.value.details["expected"], caught.value.details["chunk_index"]) == (10, 12)


def test_a_gap_costs_nothing_but_itself(client: Client) -> None:
    client.send(0)
    assert client.code(5) == "chunk_gap"
    assert client.send(1) == 1


@pytest.mark.parametrize("index", [-1, 1.0, "1", True, 2**48, [0]])
def test_an_index_that_is_none(client: Client, index: Any) -> None:
    assert client.code(index) == "bad_index"


def test_a_chunk_twice_is_acknowledged_twice(client: Client) -> None:
    """Before the first acknowledgement and after it."""
    client.send(0)
    client.send(0)
    assert client.got == []
    client.session.appended(0)
    client.send(0)
    assert client.summary() == [("ack", 0)] * 3
    assert client.session.chunk_count == 1


def test_after_a_refused_chunk_the_next_index_or_the_same_again(client: Client) -> None:
    client.send(0)
    client.session.order.refuse(1)
    assert client.send(2) == 2
    assert client.code(1) == "chunk_refused"
    client.session.order.refuse(3)
    assert client.send(3) == 3
    assert client.code(5) == "chunk_gap"


def test_several_refused_chunks_in_a_row(client: Client) -> None:
    """They were refused before they were parsed, so that their indexes are unknown."""
    client.send(0)
    client.session.order.refuse()
    client.session.order.refuse()
    assert client.code(4) == "chunk_gap"
    assert client.send(None) == 3


def test_a_refused_first_chunk_leaves_the_first_index_open(client: Client) -> None:
    client.session.order.refuse(0)
    assert client.send(1) == 1


def test_what_is_remembered_of_refusals_is_bounded(client: Client) -> None:
    client.send(0)
    for _ in range(MAX_REFUSED + 10):
        client.session.order.refuse()
    assert client.code(MAX_REFUSED + 5) == "chunk_gap"
    assert client.send(1) == 1


def test_no_audio_after_the_end(client: Client) -> None:
    client.session.state = "finishing"
    assert client.code(0) == "session_finished"


# -- the order of results


def test_a_result_waits_for_its_chunk_s_acknowledgement(client: Client) -> None:
    """Later events wait too, above all the final result."""
    client.send(0)
    client.send(1)
    assert client.session.deliver(result(1, 0))
    client.session.deliver(result(2, kind="error"))
    client.session.deliver(result(3, 1))
    client.session.deliver(result(4, kind="final"))
    assert client.got == []
    client.session.appended(0)
    assert client.summary() == [("ack", 0), ("chunk", 0), ("error", None)]
    client.session.appended(1)
    assert client.summary()[3:] == [("ack", 1), ("chunk", 1), ("final", None)]
    assert client.session.state == "over"


def test_a_result_that_came_before_changes_nothing(client: Client) -> None:
    client.send(0)
    client.session.appended(0)
    assert client.session.deliver(result(1, 0))
    assert client.session.deliver(result(1, 0))
    assert client.summary() == [("ack", 0), ("chunk", 0)]


def test_a_missing_result_is_asked_for(client: Client) -> None:
    client.send(0)
    client.send(1)
    client.session.appended(0)
    client.session.appended(1)
    assert not client.session.deliver(result(2, 1))
    assert client.session.last_event == "0-1"
    assert client.session.deliver(result(1, 0))
    assert client.session.deliver(result(2, 1))
    assert [event.seq for event in client.got if isinstance(event, ChunkResult)] == [1, 2]


def test_what_is_owed(client: Client) -> None:
    """Every acknowledged chunk has a result to come, and after finish there is a final one."""
    assert not client.session.owed
    client.send(0)
    client.session.appended(0)
    assert client.session.owed
    client.session.deliver(result(1, 0, "error"))
    assert not client.session.owed
    client.session.state = "finishing"
    assert client.session.owed


def test_a_client_that_is_gone_gets_nothing(client: Client) -> None:
    client.send(0)
    client.session.send = None
    client.session.appended(0)
    assert client.session.deliver(result(1, 0))
    assert client.got == []


def test_a_guess_is_passed_on_when_what_it_follows_was(client: Client) -> None:
    """A partial after a missing durable event asks for that event; it does not wait and is not kept."""

    def guess(follows: int) -> Partial:
        return Partial(session_id="s", start=0.0, end=1.0, text="a", stable="", language="en", follows=follows)

    assert client.session.deliver_passing(guess(0))
    assert not client.session.deliver_passing(guess(1))
    client.session.deliver(result(1, kind="segment"))
    assert client.session.deliver_passing(guess(1))
    assert [kind(event) for event in client.got] == ["partial", "segment", "partial"]
    client.send(0)
    client.session.deliver(result(2, 0))  # before its acknowledgement
    assert client.session.deliver_passing(guess(2))
    assert client.got[3:] == []
    client.session.state = "over"
    assert client.session.deliver_passing(guess(2))
    assert len(client.got) == 3


# -- acknowledgements at intervals


@pytest.fixture
def patient(client: Client) -> Client:
    client.session.ack_interval = 0.5
    return client


def acks(client: Client) -> list[tuple[int, bool]]:
    return [(event.chunk_index, event.through) for event in client.got if isinstance(event, Received)]


def test_one_acknowledgement_for_several_chunks(patient: Client) -> None:
    for _ in range(3):
        patient.send(None)
    assert [patient.session.appended(index, 100) for index in range(3)] == [True, False, False]
    assert patient.got == []
    patient.session.acknowledge()
    patient.session.acknowledge()  # of a timer that was overtaken
    assert acks(patient) == [(2, True)]
    patient.send(2)  # again: Redis has it
    patient.send(3)
    assert patient.session.appended(3, 100)
    assert acks(patient) == [(2, True), (2, False)]


@pytest.mark.parametrize("interval", [0.0, 0.5])
def test_chunks_that_are_appended_together(client: Client, interval: float) -> None:
    """They are acknowledged as the client asked, and each is a duplicate if it comes again."""
    session, session.ack_interval = client.session, interval
    assert session.order.follows(0, 3)
    assert session.order.follows(None, 3)
    assert not session.order.follows(1, 3)
    assert not session.order.follows(0, MAX_INDEX + 1)
    session.appending(0, 3, 300)
    assert (session.order.last, session.order.next_index, session.in_flight, session.bytes_in) == (2, 3, 3, 300)
    assert client.send(1) == 1  # again, before Redis has it
    assert session.appended(0, 300, 3) == bool(interval)
    assert session.in_flight == 0
    session.acknowledge()
    assert acks(client) == ([(2, True)] if interval else [(0, False), (1, False), (1, False), (2, False)])
    assert session.order.follows(3, 2)
    for index in (3, 4, 5):
        session.order.refuse(index)
    assert not session.order.follows(3, 2)  # it may be the one that was refused, or the one after
    session.appending(3, 1, 10)
    session.appending(4, 2, 20)
    session.appended(4, 20, 2)
    assert session.check_chunk(5) == (5, False)  # again, and no more refused


@pytest.mark.parametrize(("count", "size"), [(MAX_UNACKNOWLEDGED, 1), (2, MAX_UNACKNOWLEDGED_BYTES // 2)])
def test_many_chunks_are_acknowledged_at_once(patient: Client, count: int, size: int) -> None:
    for index in range(count):
        assert patient.got == []
        patient.send(None)
        patient.session.appended(index, size)
    assert acks(patient) == [(count - 1, True)]


def test_no_result_before_its_acknowledgement(patient: Client) -> None:
    """And no acknowledgement after the end."""
    for _ in range(2):
        patient.send(None)
    patient.session.appended(0)
    patient.session.deliver(result(1, 0))
    assert patient.summary() == [("ack", 0), ("chunk", 0)]
    patient.session.state = "finishing"
    assert not patient.session.appended(1)
    assert acks(patient) == [(0, True), (1, True)]
