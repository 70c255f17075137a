"""Finished recordings: which keys they are encrypted with; encrypting, decrypting and re-encrypting them in place.

All functions block, and work beside gateways that run.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asrserver.encryption import is_encrypted
from asrserver.encryption.header import recipient
from asrserver.encryption.keys import KeyPair, Keyring
from asrserver.gateway import archive_files
from asrserver.gateway.archive_parts import COPY_BYTES, MAX_LINE


def recordings(directory: Path) -> Iterator[Path]:
    """The paths of all recordings, in no particular order; links are none."""
    for path in directory.glob("??/*"):
        links = path.parent.is_symlink() or path.is_symlink()
        if path.suffix[1:] in archive_files.MEDIA and not links and path.is_file():
            yield path


def parts(directory: Path) -> Iterator[Path]:
    """The paths of all parts: what gateways write of sessions that are open, or left of others."""
    for path in directory.glob(f"{archive_files.INCOMING}/*.part"):
        if not path.is_symlink() and path.is_file():
            yield path


def needed_key(path: Path) -> str:
    """The public half of the key that a recording or a part needs; empty: it is not encrypted.

    Raises:
        DecryptionError: It is encrypted, and not by this program.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        if path.suffix == ".part":
            file.readline(MAX_LINE)
        return recipient(file) if is_encrypted(file) else ""


def reencrypt(directory: Path, path: Path, keys: Keyring, key: KeyPair | None) -> bool:
    """Replace a recording by the same encrypted with `key`, atomically, unless it is encrypted with it already.

    To be called in `exclusive`: two at once would write the same temporary file.

    Args:
        directory: The directory of all recordings.
        path: The recording.
        keys: The keys that may be needed to read it.
        key: The key to encrypt it with; None: it is decrypted.

    Returns:
        Whether it was replaced; it is not if a gateway removed or replaced it meanwhile.

    Raises:
        DecryptionError: It cannot be read.
        OSError: It cannot be read or written.
    """
    wanted = key.public if key is not None else ""
    temporary = path.with_suffix(".rewritten")
    try:
        before = path.lstat()
        if needed_key(path) == wanted:
            return False
        source = archive_files.open_recording(path, keys)
    except FileNotFoundError:
        return False
    with source.file:
        try:
            with archive_files.create_recording(temporary, key, path.stem, like=before) as target:
                shutil.copyfileobj(source.file, target, COPY_BYTES)
            with archive_files.locked(directory):  # so that what was deleted meanwhile does not come back
                if not _is_still(path, before):
                    return False
                os.replace(temporary, path)
            return True
        finally:
            temporary.unlink(missing_ok=True)


def _is_still(path: Path, before: os.stat_result) -> bool:
    try:
        return path.lstat().st_ino == before.st_ino
    except FileNotFoundError:
        return False


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Exclude other programs that re-encrypt recordings, and as root, act as the user of the gateways meanwhile.

    That user may put a link in the place of anything below the directory at any time: with root's rights it would lead
    anywhere. And what is made here, he must be able to read and lock.

    Raises:
        BlockingIOError: Another one is running.
        OSError: The directory cannot be used.
    """
    incoming = directory / archive_files.INCOMING
    try:
        owner = incoming.lstat()
    except FileNotFoundError:  # no gateway has used the directory yet
        owner = directory.stat()
    with _acting_as(owner.st_uid, owner.st_gid):
        incoming.mkdir(mode=0o700, exist_ok=True)
        with archive_files.locked(directory, ".rewrite.lock", wait=False):
            yield


@contextmanager
def _acting_as(user: int, group: int) -> Iterator[None]:
    """Have the rights of a user instead of root's; without root's, nothing changes."""
    if os.geteuid() != 0 or user == 0:
        yield
        return
    groups, own = os.getgroups(), os.getegid()
    try:
        theirs = os.getgrouplist(pwd.getpwuid(user).pw_name, group)
    except KeyError:  # a user without a name, as in a container
        theirs = [group]
    try:
        os.setgroups(theirs)
        os.setegid(group)
        os.seteuid(user)
        yield
    finally:
        os.seteuid(0)
        os.setegid(own)
        os.setgroups(groups)
