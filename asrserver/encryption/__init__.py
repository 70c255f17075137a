"""Encryption of files in the format of age, by keys of the operator's.

The format is https://c2sp.org/age (age-encryption.org/v1), so that other programs can decrypt the files, without this
one: age, rage. It begins with a header, which holds a random key of this file, wrapped by the operator's (X25519,
HKDF-SHA-256). Blocks of 64 KiB follow, each sealed with ChaCha20-Poly1305 under its number and whether it is the last
(https://c2sp.org/agead; STREAM, https://eprint.iacr.org/2015/189). So any block can be read without those before it,
and none can be changed, moved, or cut off.

The header has one more line, which other programs skip as the format demands:

    -> asrserver/recording age1… NAME

It says which key is needed, and what the file is. Without that, whoever may write to the disk could put a file of
somebody else's in the place of his own, and let the server decrypt it for him. The line, as all of the header, is
authenticated with the file's key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from asrserver.encryption.keys import Keyring

# Only what costs nothing to load: the library takes 8 MB, which a gateway without keys has no use for.

#: The first line of every file in this format.
MAGIC = b"age-encryption.org/v1\n"

#: Bytes of a block, and bytes that sealing adds to it.
BLOCK = 1 << 16
TAG = 16


def is_encrypted(file: BinaryIO) -> bool:
    """Whether a file is in this format, from where it stands and stays."""
    at = file.tell()
    try:
        return file.read(len(MAGIC)) == MAGIC
    finally:
        file.seek(at)


def load_keys(path: str) -> Keyring | None:
    """Load the keys of a file; None if there is no file, and no key is needed.

    Raises:
        SettingError: They cannot be used.
    """
    if not path:
        return None
    from asrserver.encryption.keys import Keyring

    return Keyring(path)
