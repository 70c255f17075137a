"""Access control: API keys and their file, allowed origins of web pages, trusted proxies, TLS.

Knows neither Tornado nor Redis.
"""

from __future__ import annotations


def comma_separated(text: str) -> list[str]:
    """The items of a list as settings and headers have it, without blanks around them and without empty ones."""
    return [item.strip() for item in text.split(",") if item.strip()]
