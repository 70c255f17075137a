"""The user that an embedded server runs as: our own, another user, or another name in a user namespace."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: nothing may be imported between fork and exec


@dataclass(frozen=True)
class Identity:
    """The user and group that a child process runs as.

    Attributes:
        uid: The user id.
        gid: The group id.
        namespace: The child runs in a user namespace: it sees itself as `uid`, all other processes see it as our user.
    """

    uid: int
    gid: int
    namespace: bool = False

    def assume(self) -> None:
        """Become this identity. Call it in the child, between fork and exec.

        Raises:
            OSError: The kernel refuses, such as where user namespaces are forbidden.
        """
        if not self.namespace:
            os.setgroups([])
            os.setgid(self.gid)
            os.setuid(self.uid)
            return
        uid, gid = os.geteuid(), os.getegid()  # read before: inside, both are the overflow id until mapped
        if _libc.unshare(_CLONE_NEWUSER):
            raise OSError(ctypes.get_errno(), "unshare")
        # Without CAP_SETGID outside, gid_map is refused until setgroups is denied (user_namespaces(7)).
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"{self.gid} {gid} 1")
        Path("/proc/self/uid_map").write_text(f"{self.uid} {uid} 1")


def chown_tree(top: Path, identity: Identity | None) -> None:
    """Give a directory tree to another user; the top comes last, so that an interrupted change is repeated.

    Args:
        top: The directory.
        identity: The new owner. Nothing is done for None and in a user namespace: then the files stay ours.
    """
    if not identity or identity.namespace or top.stat().st_uid == identity.uid:
        return
    for directory, folders, files in os.walk(top):
        for name in (*folders, *files):
            os.chown(os.path.join(directory, name), identity.uid, identity.gid, follow_symlinks=False)
    os.chown(top, identity.uid, identity.gid)
