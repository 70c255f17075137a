"""The user that an embedded server runs as: ourselves, another user, or another name in a user namespace."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: nothing may be imported between fork and exec


@dataclass(frozen=True)
class Identity:
    """Whom a child runs as. In a namespace it is that only to itself, and who we are to all others."""

    uid: int
    gid: int
    namespace: bool = False

    def assume(self) -> None:
        """In the child, between fork and exec."""
        if not self.namespace:
            os.setgroups([])
            os.setgid(self.gid)
            os.setuid(self.uid)
            return
        uid, gid = os.geteuid(), os.getegid()  # asked before: inside, both are the overflow id until mapped
        if _libc.unshare(_CLONE_NEWUSER):
            raise OSError(ctypes.get_errno(), "unshare")
        # Without CAP_SETGID outside, gid_map is refused until setgroups is denied (user_namespaces(7)).
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"{self.gid} {gid} 1")
        Path("/proc/self/uid_map").write_text(f"{self.uid} {uid} 1")


def chown_tree(top: Path, identity: Identity | None) -> None:
    """Hand a tree over, its top last: one that was interrupted is done again."""
    if not identity or identity.namespace or top.stat().st_uid == identity.uid:
        return
    for directory, folders, files in os.walk(top):
        for name in (*folders, *files):
            os.chown(os.path.join(directory, name), identity.uid, identity.gid, follow_symlinks=False)
    os.chown(top, identity.uid, identity.gid)
