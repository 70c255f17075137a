"""announcement.py: the port is found in the network as Home Assistant looks for it, and is gone after its end."""

from __future__ import annotations

import queue
import socket

import pytest
from zeroconf import ServiceBrowser, ServiceListener, Zeroconf

from asrserver.supervisor.announcement import SERVICE, Announcement

LOOPBACK = "127.0.0.1"


class Listener(ServiceListener):
    """Notes what comes and goes."""

    def __init__(self) -> None:
        self.seen = queue.Queue[tuple[str, str]]()

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.seen.put(("add", name))

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.seen.put(("remove", name))

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        pass


def test_the_port_is_found_and_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    """Two servers on one machine have different names."""
    listener, announcements = Listener(), [Announcement(LOOPBACK, 10300), Announcement(LOOPBACK, 10301)]
    with Zeroconf([LOOPBACK]) as network:
        browser = ServiceBrowser(network, SERVICE, listener)
        found = []
        for announcement in announcements:
            announcement.publish()
            kind, name = listener.seen.get(timeout=20)
            assert kind == "add"
            info = network.get_service_info(SERVICE, name, timeout=5000)
            assert info is not None
            found.append((name, info.parsed_addresses(), info.port))
        names = [name for name, *_ in found]
        assert found == [(names[0], [LOOPBACK], 10300), (names[1], [LOOPBACK], 10301)]
        assert all(name.startswith(f"asrserver on {socket.gethostname().partition('.')[0]}") for name in names)
        assert len(set(names)) == 2
        for announcement, name in zip(announcements, names, strict=True):
            announcement.close()
            assert listener.seen.get(timeout=20) == ("remove", name)
        browser.cancel()


def test_without_a_network_the_port_can_be_used_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    announcement = Announcement("no such host", 10300)
    announcement.publish()
    announcement.close()
    assert "cannot be announced" in caplog.text
