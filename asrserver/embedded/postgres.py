"""The embedded PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import psycopg2

from asrserver.embedded import locate
from asrserver.embedded.identity import Identity, chown_tree
from asrserver.embedded.locate import EmbeddedError
from asrserver.embedded.server import EmbeddedServer, last_lines
from asrserver.process.places import has_shared_memory

#: The server listens on no port; the number is only a part of the socket's name.
POSTGRES_PORT = 5432

#: Seconds that initdb may take: 0.7 s measured, but it syncs about a thousand files, which a slow disk does slowly.
INITDB_TIMEOUT = 300.0


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL server with one database and one role, both named `asrserver`; the role is no superuser."""

    name = "postgres"
    socket_name = f".s.PGSQL.{POSTGRES_PORT}"
    stop_signal = signal.SIGINT  # "fast shutdown": does not wait for open connections

    @property
    def dsn(self) -> str:
        """The connection string for libpq."""
        return self._dsn("asrserver")

    def _dsn(self, name: str) -> str:
        host = str(self.socket_path.parent)
        return str(psycopg2.extensions.make_dsn(host=host, port=POSTGRES_PORT, user=name, dbname=name))

    def _socket_places(self) -> list[Path]:
        try:
            lines = (self.directory / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []
        return [Path(lines[4])] if len(lines) > 4 and lines[4] else []

    def _prepare(self, lock: int) -> list[str]:
        programs = self._choose_identity(locate.postgres(), lock)
        chown_tree(self.directory, self._identity)
        cluster = self.directory / "data"
        if not cluster.exists():
            self._init_cluster(programs / "initdb", cluster, lock)
        created_by, major = (cluster / "PG_VERSION").read_text().strip(), self.version.split(".")[0]
        if created_by != major:
            raise EmbeddedError(
                f"{cluster} was created by PostgreSQL {created_by}, but the installed version is {self.version}: "
                f"install PostgreSQL {created_by}, or dump and restore into another --data-dir"
            )
        (cluster / "postmaster.pid").unlink(missing_ok=True)  # our lock proves that no server runs
        sockets = '"{}"'.format(str(self._choose_sockets()).replace('"', '""'))
        (self.socket_path.parent / f"{self.socket_name}.lock").unlink(missing_ok=True)
        settings = {
            "listen_addresses": "", "unix_socket_directories": sockets, "unix_socket_permissions": "0700",
            "port": POSTGRES_PORT, "max_connections": 100, "shared_buffers": "64MB", "fsync": "on",
            "synchronous_commit": "on", "log_checkpoints": "off",
            "dynamic_shared_memory_type": "posix" if has_shared_memory() else "mmap",
            # Statements and DETAIL quote rows, and rows are transcripts.
            "log_min_error_statement": "panic", "log_error_verbosity": "terse",
        }  # fmt: skip
        options = (word for key, value in settings.items() for word in ("-c", f"{key}={value}"))
        return [str(programs / "postgres"), "-D", str(cluster), *options]

    def _choose_identity(self, programs: Path, lock: int) -> Path:
        """Choose the user to run as, and the directory of programs that this user may execute.

        PostgreSQL refuses uid 0 and, in initdb, a uid without a name. The first choice is a user namespace in which we
        are called nobody: the files stay ours, so a private parent directory or a venv under /root does no harm, and
        no owner changes. All capabilities are lost with it. Where namespaces are forbidden (a container's seccomp,
        user.max_user_namespaces=0), root gives the directory to the real user nobody, and it stays that user's.

        Returns:
            The directory of initdb and postgres: `programs`, or a copy of it.

        Raises:
            EmbeddedError: No user is possible.
        """
        self.version = self._version_of(programs / "postgres", None, lock)
        for identity in self._identities():
            if identity and not identity.namespace and self.data_dir.stat().st_uid == os.geteuid():
                self.data_dir.chmod(0o711)  # to pass through, not to list
            self._identity = identity
            try:
                self._version_of(programs / "postgres", identity, lock)
                return programs
            except PermissionError:  # it cannot reach the programs, but can enter the data directory
                if copy := self._copy_programs(programs, identity):
                    self._version_of(copy / "postgres", identity, lock)
                    return copy
            except subprocess.SubprocessError:  # before exec: it cannot be assumed, or cannot enter the data directory
                continue
        raise EmbeddedError(
            f"PostgreSQL refuses to run as uid {os.geteuid()}, user namespaces are forbidden, and the user nobody "
            f"cannot reach {self.data_dir} or {programs}: choose a --data-dir under /var/lib, "
            "run as an ordinary user, or set DATABASE_URL"
        )

    def _identities(self) -> list[Identity | None]:
        """The users that PostgreSQL may be run as, best first; None: our own."""
        if owner := self._owner():
            return [owner]
        me = os.geteuid()
        with suppress(KeyError):
            if me != 0 and pwd.getpwuid(me):
                return [None]
        with suppress(KeyError):
            _, _, uid, gid, *_ = pwd.getpwnam("nobody")
            disguised, real = Identity(uid, gid, namespace=True), Identity(uid, gid)
            return [disguised, real] if me == 0 else [disguised]
        return []

    def _copy_programs(self, programs: Path, identity: Identity | None) -> Path | None:
        """Copy the wheel's PostgreSQL (40 MB) from a private venv into the data directory, once per version.

        Returns:
            The directory of the copied programs; None if `programs` belong to the system.
        """
        package = programs.parent.parent
        libraries = package.with_name(f"{package.name}.libs")  # where auditwheel's rpath looks
        if not libraries.is_dir():
            return None  # the system's: spread over several directories, and executable by everyone
        copy = self.data_dir / f"postgresql-{self.version}"
        if not copy.exists():
            unfinished = self.data_dir / f"{copy.name}.new"
            shutil.rmtree(unfinished, ignore_errors=True)
            for tree in (package, libraries):
                shutil.copytree(tree, unfinished / tree.name, symlinks=True)
            unfinished.rename(copy)
        chown_tree(copy, identity)
        return copy / programs.relative_to(package.parent)

    def _init_cluster(self, initdb: Path, cluster: Path, lock: int) -> None:
        """Create the cluster under a temporary name: a killed initdb must not leave half of it under the real one."""
        unfinished = cluster.with_name("data.new")
        for locale in ("C.UTF-8", "C"):  # glibc before 2.35 may lack the first
            shutil.rmtree(unfinished, ignore_errors=True)
            options = ["-U", "postgres", "-E", "UTF8", f"--locale={locale}", "--auth=trust", "--no-instructions"]
            done = self._run([initdb, "-D", unfinished, *options], self._identity, lock, timeout=INITDB_TIMEOUT)
            if done.returncode == 0:
                unfinished.rename(cluster)
                return
        raise EmbeddedError(f"initdb failed: {last_lines(done.stderr)}")

    def _answers(self) -> bool:
        """Whether the server answers; the first time, this creates the role and the database."""
        try:
            with closing(psycopg2.connect(self._dsn("postgres"), connect_timeout=2)) as connection:
                connection.autocommit = True  # CREATE DATABASE cannot run in a transaction
                cursor = connection.cursor()
                cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = 'asrserver'")
                if not cursor.fetchone():
                    cursor.execute("CREATE ROLE asrserver LOGIN CREATEDB")
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = 'asrserver'")
                if not cursor.fetchone():
                    cursor.execute("CREATE DATABASE asrserver OWNER asrserver")
        except psycopg2.Error:
            return False  # no socket yet, or still recovering; if this lasts, the end of the log says more
        return True
