"""Addresses and names: of clients, of trusted proxies, and by which a server may be addressed."""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from asrserver.auth import comma_separated
from asrserver.errors import SettingError


class HostNames:
    """The names by which a server that asks for no key may be addressed.

    A page of any name can let that name resolve to this machine (DNS rebinding): for the browser, the server then is of
    the page's own origin. So it must be addressed by what nobody else can own: an IP address, a name without a dot,
    localhost, its own name, or a configured one.

    Args:
        hosts: The setting allowed-hosts.
        origins: The setting allowed-origins: the names in it are this server's too.
    """

    def __init__(self, hosts: str, origins: str) -> None:
        own = (socket.gethostname(), *(_host_name(urlsplit(origin).netloc) for origin in comma_separated(origins)))
        self._names = frozenset(name.lower().rstrip(".") for name in (*comma_separated(hosts), *own))

    def allow(self, host: str) -> bool:
        """Whether a Host header may be this."""
        name = _host_name(host).lower().rstrip(".")
        if "." not in name or is_address(name) or "*" in self._names:
            return True
        return name in self._names or name.endswith(".localhost")


def unmapped(address: str) -> str:
    """An address without the IPv4-mapped IPv6 form in which a dual-stack socket reports IPv4 (RFC 4291, 2.5.5.2)."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address


def address_block(address: str) -> str:
    """The block that counts as one client: the address of IPv4, the /64 of IPv6, which every customer gets at least."""
    if ":" not in address or not is_address(address):
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))


def is_loopback(host: str) -> bool:
    """Whether a socket bound to this address can be reached only from this machine."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return host != "" and all(ipaddress.ip_address(str(item[4][0]).partition("%")[0]).is_loopback for item in found)


def is_address(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str:
    """A Host header, or the authority of a URL, without user, port and brackets."""
    name = host.rpartition("@")[2].strip()
    literal = re.fullmatch(r"\[([^\]]*)\](:\d*)?", name)
    return literal[1] if literal else re.sub(r":\d*$", "", name)


def parse_networks(text: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Parse the setting trusted-proxies: addresses and networks; raises SettingError."""
    try:
        return [ipaddress.ip_network(item, strict=False) for item in comma_separated(text)]
    except ValueError as exc:
        raise SettingError(f"trusted-proxies: {exc}") from None
