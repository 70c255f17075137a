"""Requests to the REST interface of a server."""

from __future__ import annotations

import ipaddress
import urllib.error
import urllib.request
from typing import IO
from urllib.parse import urlsplit

from asrserver.client.connection import authorization
from asrserver.client.errors import no_tls


def open_url(url: str, key: str, timeout: float) -> IO[bytes]:
    """Request a URL of a server.

    The request goes through the proxy of the environment (http_proxy, https_proxy, no_proxy), but never for a loopback
    address: no proxy can reach it, and no_proxy is often not set.

    Args:
        url: The URL.
        key: The API key, if the server requires one.
        timeout: Seconds to wait for a connection and for each read.

    Returns:
        The body of the answer, to be read and closed.

    Raises:
        urllib.error.HTTPError: The server answers with an error status.
        OSError: The server cannot be reached.
        ValueError: The URL cannot be requested.
    """
    request = urllib.request.Request(url, headers=authorization(key))
    # A new opener each time: urlopen() would use the proxies that the environment named at its first call.
    direct = _is_loopback(urlsplit(url).hostname or "")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if direct else []))
    try:
        answer: IO[bytes] = opener.open(request, timeout=timeout)
    except urllib.error.URLError as exc:
        raise (no_tls(exc.reason) or exc) from None
    return answer


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
