"""Client secrets: short-lived keys for pages, which must not know their server's API key.

A secret is `ek_` and 256 random bits. It stands for the API key that it was made with: the same owner, the same limits,
and it ends with it.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from asrserver.auth.access import Access, credential
from asrserver.auth.keys import Key
from asrserver.broker.client_secrets import MAX_SECRETS, ClientSecretStore
from asrserver.errors import Refused

PREFIX = "ek_"

#: Seconds after which to ask again for a secret where there are too many.
RETRY_AFTER = 60.0


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """A valid secret.

    Attributes:
        key: The API key that it stands for; None where there are no keys.
        session: What sessions are like that are started with it, in the words of the protocol that asked for it.
    """

    key: Key | None
    session: dict[str, Any]


class ClientSecrets:
    """Makes and finds client secrets. Methods raise Unavailable if Redis does not answer."""

    def __init__(self, access: Access, store: ClientSecretStore) -> None:
        self._access = access
        self._store = store

    async def make(self, owner: str, session: dict[str, Any], seconds: int) -> tuple[str, int]:
        """Make a secret.

        Args:
            owner: The id of the API key that it stands for; empty where there are no keys.
            session: See ClientSecret.
            seconds: For how long it is valid. Connections that were opened with it go on.

        Returns:
            The secret, and when it expires, in seconds since the epoch.

        Raises:
            Refused: The key has too many.
        """
        text = PREFIX + secrets.token_urlsafe(32)
        expires = await self._store.keep(_digest(text), owner, session, seconds)
        if expires is None:
            message = f"this API key has {MAX_SECRETS} client secrets that are still valid"
            raise Refused(429, "too_many_secrets", message, retry_after=RETRY_AFTER)
        return text, expires

    async def find(self, authorization: str | None) -> ClientSecret | None:
        """The secret of an Authorization header; None if it has none, or one that is not valid."""
        text = credential(authorization)
        found = await self._store.find(_digest(text)) if text.startswith(PREFIX) else None
        if found is None:
            return None
        owner, session = found
        if not self._access.enabled:
            return ClientSecret(None, session)
        key = self._access.key(owner)
        return ClientSecret(key, session) if key is not None else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
