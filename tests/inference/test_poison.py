"""poison.py: crash attribution."""

from __future__ import annotations

from asrserver.inference.poison import InFlight


def test_what_is_in_flight_is_written_and_timed() -> None:
    """Entries of all threads together; a native call that hangs in any of them shows by its duration."""
    written: list[bytes] = []
    in_flight = InFlight(written.append)
    assert in_flight.longest == 0.0
    in_flight.hold("engine", ["one 1-0", "two 3-0"])
    in_flight.hold("prepare", ["three 1-0"])
    assert written[-1] == b"one 1-0\ntwo 3-0\nthree 1-0"
    assert in_flight.longest > 0.0
    in_flight.hold("engine", [])
    assert written[-1] == b"three 1-0"
    in_flight.hold("prepare", [])
    assert written[-1] == b""
    assert in_flight.longest == 0.0
