"""A PostgreSQL server in a temporary folder, reached by a Unix socket."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DEBIAN_FOLDER = Path("/usr/lib/postgresql")  # Debian does not put initdb and pg_ctl on the PATH
UNPRIVILEGED_USERS = ("postgres", "nobody")  # the server refuses to run as root
PROGRAMS = ("initdb", "pg_ctl", "postgres")
SETTINGS = {
    "listen_addresses": "",  # only the socket
    "max_connections": "200",
    "shared_buffers": "32MB",
}


class Server:
    """A running server, on which each test gets a schema of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()

    @property
    def url(self) -> str:
        """Return the URL of the server's database."""
        return f"postgresql://rlhf@/postgres?host={self.folder}"

    def create_schema(self) -> str:
        """Create an empty schema and return the URL that uses it. A database of its own takes ten times as long."""
        import psycopg

        name = f"test{next(self._numbers)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{self.url}&options=-csearch_path%3D{name}"


def require_programs() -> Path:
    """Return the folder with PostgreSQL's programs. Without them, skip the test, or fail it if RLHF_STRICT is 1."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else []
    folders += sorted(DEBIAN_FOLDER.glob("*/bin"), reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in PROGRAMS):
            return folder
    missing = "PostgreSQL is not installed: initdb was not found"
    if os.environ.get("RLHF_STRICT") == "1":
        pytest.fail(f"{missing}, and RLHF_STRICT is set")
    pytest.skip(missing)


@contextlib.contextmanager
def running_server(*, fsync: str = "off") -> Iterator[Server]:
    """Yield a server that stops at the end. As root, it runs as an unprivileged user.

    Args:
        fsync: Whether commits wait for the disk. The tests kill processes, not the machine.
    """
    programs = require_programs()
    folder = Path(tempfile.mkdtemp(prefix="rlhf-pg-"))  # the path of a socket has at most 107 characters
    user = _unprivileged_user()
    data = folder / "data"

    account = None if user is None else pwd.getpwnam(user)
    identity: dict[str, Any] = (
        {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    )

    def execute(name: str, *arguments: str) -> None:
        command: list[str | Path] = [programs / name, "-D", data, *arguments]
        with (folder / "log").open("ab") as log:  # a pipe would stay open in the server
            ended = subprocess.run(
                command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False, **identity
            )
        assert ended.returncode == 0, (folder / "log").read_text(errors="replace")

    if user is not None:
        shutil.chown(folder, user)
    try:
        execute("initdb", "-U", "rlhf", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        options = " ".join(f"-c {name}={value or repr('')}" for name, value in {**SETTINGS, "fsync": fsync}.items())
        execute("pg_ctl", "-w", "-o", f"{options} -k {folder}", "-l", str(folder / "server.log"), "start")
        try:
            yield Server(folder)
        finally:
            execute("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged_user() -> str | None:
    """Return the user that runs the server, or None for the current one."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in UNPRIVILEGED_USERS if name in known)
