"""Recordings that are there already: which keys they need, and how they are written again with another, or without.

All functions block, and work beside gateways that run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from asrserver.encryption import is_encrypted
from asrserver.encryption.header import key_of
from asrserver.encryption.keys import Keyring
from asrserver.gateway import archive_files
from asrserver.gateway.archive_parts import COPY_BYTES


def recordings(directory: Path) -> Iterator[Path]:
    """The paths of all recordings, in no particular order."""
    for path in directory.glob("??/*"):
        if path.suffix[1:] in archive_files.MEDIA and path.is_file():
            yield path


def needed_key(path: Path) -> str:
    """The public half of the key that a recording needs; empty: it is not encrypted.

    Raises:
        DecryptionError: It is encrypted, and not by this program.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return key_of(file) if is_encrypted(file) else ""


def rewrite(directory: Path, path: Path, keys: Keyring, encrypt: bool) -> bool:
    """Write a recording again, unless it is as it is wanted. At any time there is a whole one in its place.

    Args:
        directory: The directory of all recordings.
        path: The recording.
        keys: All keys that may be needed.
        encrypt: Whether to encrypt it with the first of them; otherwise it is decrypted.

    Returns:
        Whether it was written; it is not if it was removed meanwhile.

    Raises:
        DecryptionError: It cannot be read.
        OSError: It cannot be read or written.
    """
    wanted = keys.first.public if encrypt and keys.first else ""
    temporary = path.with_suffix(".rewritten")
    try:
        if needed_key(path) == wanted:
            return False
        before = path.stat()
        source = archive_files.opened(path, keys)
        with source.file, archive_files.created(temporary, keys if encrypt else None, path.stem) as target:
            shutil.copyfileobj(source.file, target, COPY_BYTES)
        shutil.copystat(path, temporary)
        if os.geteuid() == 0:  # the gateways are another user
            os.chown(temporary, before.st_uid, before.st_gid)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        with archive_files.locked(directory):  # so that what was deleted meanwhile does not come back
            if path.stat().st_ino != before.st_ino:
                return False
            os.replace(temporary, path)
        return True
    except FileNotFoundError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
