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

POSTGRES_PORT = 5432  # only part of the socket's name


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL with one database and one role, both `asrserver`; the role is no superuser."""

    name = "postgres"
    socket_name = f".s.PGSQL.{POSTGRES_PORT}"
    stop_signal = signal.SIGINT  # "fast": open connections are no reason to wait

    @property
    def dsn(self) -> str:
        return self._dsn("asrserver")

    def _dsn(self, name: str) -> str:
        host = str(self.socket_path.parent)
        return str(psycopg2.extensions.make_dsn(host=host, port=POSTGRES_PORT, user=name, dbname=name))

    def _prepare(self, lock: int) -> list[str]:
        programs = self._choose_identity(locate.postgres(), lock)
        chown_tree(self.directory, self._identity)
        cluster = self.directory / "data"
        if not cluster.exists():
            self._init_cluster(programs / "initdb", cluster, lock)
        made_by, major = (cluster / "PG_VERSION").read_text().strip(), self.version.split(".")[0]
        if made_by != major:
            raise EmbeddedError(
                f"{cluster} was made by PostgreSQL {made_by}, but this is {self.version}: "
                f"install PostgreSQL {made_by}, or dump and restore into another --data-dir"
            )
        (cluster / "postmaster.pid").unlink(missing_ok=True)  # our lock says that nobody is there
        sockets = '"{}"'.format(str(self._choose_sockets()).replace('"', '""'))
        (self.socket_path.parent / f"{self.socket_name}.lock").unlink(missing_ok=True)
        settings = {
            "listen_addresses": "", "unix_socket_directories": sockets, "unix_socket_permissions": "0700",
            "port": POSTGRES_PORT, "max_connections": 50, "shared_buffers": "64MB", "fsync": "on",
            "synchronous_commit": "on", "dynamic_shared_memory_type": "posix", "log_checkpoints": "off",
            # Statements and DETAIL quote rows, and rows are transcripts.
            "log_min_error_statement": "panic", "log_error_verbosity": "terse",
        }  # fmt: skip
        options = (word for key, value in settings.items() for word in ("-c", f"{key}={value}"))
        return [str(programs / "postgres"), "-D", str(cluster), *options]

    def _choose_identity(self, programs: Path, lock: int) -> Path:
        """Decide whom to run as, and return where the programs are that this identity may run.

        PostgreSQL refuses uid 0 and, in initdb, a uid without a name. First choice is a user namespace in
        which we are called nobody: the files stay ours, so no private parent directory and no venv under
        /root is in the way, and no owner changes. All capabilities are lost with it. Where namespaces are
        forbidden (a container's seccomp, user.max_user_namespaces=0) root gives the directory to the real
        nobody, whose it stays.
        """
        self.version = self._version_of(programs / "postgres", None, lock)
        for identity in self._identities():
            if identity and not identity.namespace and self.data_dir.stat().st_uid == os.geteuid():
                self.data_dir.chmod(0o711)  # to pass through, not to list
            self._identity = identity
            try:
                self._version_of(programs / "postgres", identity, lock)
                return programs
            except PermissionError:  # the programs are out of its reach, the data directory is not
                if copy := self._copy_programs(programs, identity):
                    self._version_of(copy / "postgres", identity, lock)
                    return copy
            except subprocess.SubprocessError:  # before exec: it may not be that, or not come here
                continue
        raise EmbeddedError(
            f"PostgreSQL refuses uid {os.geteuid()}, user namespaces are forbidden, and "
            f"nobody cannot reach {self.data_dir} or {programs}: choose a --data-dir under "
            "/var/lib, run as an ordinary user, or give DATABASE_URL"
        )

    def _identities(self) -> list[Identity | None]:
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
        """Copy the wheel's PostgreSQL (40 MB) out of a private venv, once a version."""
        package = programs.parent.parent
        libraries = package.with_name(f"{package.name}.libs")  # where auditwheel's rpath looks
        if not libraries.is_dir():
            return None  # the system's own: not one tree, and for all to run
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
        unfinished = cluster.with_name("data.new")  # a killed initdb leaves no half cluster
        for locale in ("C.UTF-8", "C"):  # glibc before 2.35 may lack the first
            shutil.rmtree(unfinished, ignore_errors=True)
            done = self._run([initdb, "-D", unfinished, "-U", "postgres", "-E", "UTF8", f"--locale={locale}",
                              "--auth=trust", "--no-instructions"], self._identity, lock)  # fmt: skip
            if done.returncode == 0:
                unfinished.rename(cluster)
                return
        raise EmbeddedError(f"initdb failed: {last_lines(done.stderr)}")

    def _answers(self) -> bool:
        """Whether the database is there: the first time, it is created here."""
        try:
            with closing(psycopg2.connect(self._dsn("postgres"), connect_timeout=2)) as connection:
                connection.autocommit = True  # CREATE DATABASE is not for transactions
                cursor = connection.cursor()
                cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = 'asrserver'")
                if not cursor.fetchone():
                    cursor.execute("CREATE ROLE asrserver LOGIN CREATEDB")
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = 'asrserver'")
                if not cursor.fetchone():
                    cursor.execute("CREATE DATABASE asrserver OWNER asrserver")
        except psycopg2.Error:
            return False  # no socket yet, or still recovering; if it stays so, the log's end says more
        return True
