"""Announces the Wyoming port in the local network (DNS-SD over multicast DNS), where Home Assistant looks for such.

`zeroconf` does it in a thread of its own. It is Home Assistant's own library for this, and the only one in Python that
is maintained.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import socket
from concurrent.futures import Future
from typing import Any

log = logging.getLogger("asrserver.supervisor")

SERVICE = "_wyoming._tcp.local."

#: Somewhere in the group of multicast DNS: the address that reaches it is the one by which others reach this machine.
MULTICAST = ("224.0.0.251", 5353)

#: Characters of the machine's name in that of the service, whose parts have 63 bytes at most.
MAX_HOST_NAME = 40


def is_possible() -> bool:
    """Whether the library is installed."""
    return importlib.util.find_spec("zeroconf") is not None


class Announcement:
    """A port that is announced from `publish` to `close`.

    Args:
        host: The address at which it listens; an unspecified one, such as 0.0.0.0, means all of the machine's.
        port: Its number.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._zeroconf: Any = None

    def publish(self) -> None:
        """Begin; it takes a second. What fails is logged: the port can be used without."""
        import asyncio

        import zeroconf

        name = socket.gethostname().partition(".")[0][:MAX_HOST_NAME]
        try:
            address, everywhere = _reachable(self._host)
            info = zeroconf.ServiceInfo(
                SERVICE,
                f"asrserver on {name}.{SERVICE}",
                port=self._port,
                server=f"{name}.local.",
                parsed_addresses=[address],
            )
            self._zeroconf = zeroconf.Zeroconf(zeroconf.InterfaceChoice.All if everywhere else [address])
            registering = self._zeroconf.async_register_service(info, allow_name_change=True)
            asyncio.run_coroutine_threadsafe(registering, self._zeroconf.loop).add_done_callback(_log_outcome)
        except (OSError, zeroconf.Error) as exc:
            log.warning("the port for Home Assistant cannot be announced: %s", exc)

    def close(self) -> None:
        """Tell the network that the port is gone."""
        if self._zeroconf is not None:
            self._zeroconf.close()


def _reachable(host: str) -> tuple[str, bool]:
    """The address by which others reach a listening one, and whether that listens everywhere; raises OSError."""
    address = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    if not ipaddress.ip_address(address).is_unspecified:
        return address, False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(MULTICAST)  # sends nothing
        return str(probe.getsockname()[0]), True


def _log_outcome(registering: Future[Any]) -> None:
    if registering.cancelled():
        return
    failure = registering.exception()
    if failure is None:
        log.info("the port for Home Assistant is announced in the local network")
    else:
        log.warning("the port for Home Assistant cannot be announced: %s", failure or type(failure).__name__)
