"""Database URLs, connections and transactions: SQLite by default, PostgreSQL by URL."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from rlhf_cli.errors import DataError, DiskError, RecipeError, RlhfError
from rlhf_cli.feedback.store import tables
from rlhf_cli.feedback.store_input import URL_VARIABLE
from rlhf_cli.formatting import format_path

URL_HINT = f"Set feedback.store or {URL_VARIABLE} to a file, or to a URL such as postgresql://user@host/database."
BUSY_SECONDS = 60  # how long SQLite waits for another process that writes
CONNECT_SECONDS = 10  # limit on connecting to PostgreSQL
POOL_SIZE = 20  # connections
RETRIES = 5  # of a transaction that PostgreSQL aborted to resolve a conflict
CREATION_LOCK = 7_206_114_309  # of PostgreSQL; any number that other programs do not use
POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
CONFLICTS = ("40001", "40P01")  # SQLSTATE of a serialization failure and a deadlock


class Database:
    """An open database: runs functions in transactions and converts the errors of its driver.

    Args:
        url: Path of an SQLite file, or a PostgreSQL URL.
    """

    def __init__(self, url: str) -> None:
        self.url = _parse_url(url)
        self.is_sqlite = self.url.drivername == "sqlite"
        self.location = format_path(Path(self.url.database or "")) if self.is_sqlite else _without_password(self.url)
        self._write_lock = threading.Lock()  # SQLite has one writer; its own waiting is unfair and slow
        self.engine = _sqlite_engine(self.url) if self.is_sqlite else _postgresql_engine(self.url)
        try:
            with self.write() as connection:
                _create_tables(connection, self.location)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that may write; commit at the end, or roll back if an error is raised."""
        lock = self._write_lock if self.is_sqlite else contextlib.nullcontext()
        with self._convert_errors(), lock, self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that sees the database at one moment and does not write."""
        options: dict[str, Any] = (
            {"read_only": True}
            if self.is_sqlite
            else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )
        with self._convert_errors(), self.engine.connect() as connection:
            connection.execution_options(**options)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def _convert_errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._converted(error) from error
        except sqlalchemy.exc.TimeoutError:
            hint = "Try again, or start fewer processes."
            raise DataError("feedback.busy", "all connections are in use.", location=self.location, hint=hint) from None

    def _converted(self, error: DBAPIError) -> RlhfError:
        reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
        if self.is_sqlite:
            return _sqlite_error(error, reason, self.location)
        if getattr(error.orig, "sqlstate", None) in CONFLICTS:
            message = f"others changed the same rows at the same time: {reason}."
            return DataError("feedback.busy", message, location=self.location, hint="Try again.")
        is_connecting = error.statement is None
        if is_connecting or error.connection_invalidated or isinstance(error, sqlalchemy.exc.OperationalError):
            hint = f"Check that the server runs and that the URL is right. {URL_HINT}"
            message = f"the database cannot be used: {reason}."
            return DataError("feedback.unreachable", message, location=self.location, hint=hint)
        return DataError("feedback.failed", f"the database failed: {reason}.", location=self.location)


def is_conflict(error: BaseException) -> bool:
    """Return whether PostgreSQL aborted the transaction because of a concurrent one, so that it can be repeated."""
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and getattr(cause.orig, "sqlstate", None) in CONFLICTS


def wait_for_others(connection: Connection) -> None:
    """Wait for other processes that open the store, as what they create is not visible yet."""
    if connection.dialect.name == "postgresql":  # a transaction of SQLite waits in any case
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({CREATION_LOCK})")


def _parse_url(text: str) -> URL:
    """Return the SQLAlchemy URL of a path or a PostgreSQL URL.

    Raises:
        RecipeError: It is a URL of another database, or invalid.
    """
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).expanduser().absolute()))
    try:
        url = sqlalchemy.make_url(text)
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.drivername not in POSTGRESQL:
        found = "an invalid URL" if url is None else f"{url.drivername}://"
        message = f"feedback.store: unsupported database; found {found}, expected a file or postgresql://."
        raise RecipeError("recipe.invalid-value", message, hint=URL_HINT)
    return url.set(drivername="postgresql+psycopg")


def _without_password(url: URL) -> str:
    """Return a URL for messages: without a password, and without its parameters, which may hold one."""
    return url.set(drivername="postgresql", password=None, query={}).render_as_string()


# --- SQLite ---------------------------------------------------------------------------------------------------------


def _sqlite_engine(url: URL) -> Engine:
    engine = sqlalchemy.create_engine(
        url,
        hide_parameters=True,
        pool_size=POOL_SIZE,
        max_overflow=POOL_SIZE,
        connect_args={"timeout": BUSY_SECONDS, "isolation_level": None},
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    """Set WAL, so that readers do not wait for the writer, and FULL, so that a commit survives a power failure.

    WAL is a setting of the file, which must not change if it belongs to another program.
    """
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not names or tables.store.name in names:
        connection.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: Connection) -> None:
    """Start a transaction. A writer takes the lock at once: a reader that became one could fail halfway."""
    is_reader = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")


def _sqlite_error(error: DBAPIError, reason: str, location: str) -> RlhfError:
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # without the extended code
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        message = f"another process has been writing for more than {BUSY_SECONDS} s."
        hint = "Try again, and stop processes that hold the file open for writing."
        return DataError("feedback.busy", message, location=location, hint=hint)
    if code == sqlite3.SQLITE_FULL:
        return DiskError("disk.full", "not enough disk space is left.", location=location, hint="Free some space.")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR):
        message = f"the feedback store cannot be opened or written: {reason}."
        hint = "Check that its directory exists and that you may write to it."
        return DiskError("disk.not-writable", message, location=location, hint=hint)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        hint = "Restore it from a backup, or set feedback.store to another file."
        return DataError("feedback.damaged", f"not an intact SQLite file: {reason}.", location=location, hint=hint)
    return DataError("feedback.failed", f"the database failed: {reason}.", location=location)


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


def _postgresql_engine(url: URL) -> Engine:
    options = url.query.get("options", "")
    return sqlalchemy.create_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=POOL_SIZE,
        pool_pre_ping=True,  # a server that was restarted since is connected to again
        hide_parameters=True,
        # A server may acknowledge commits before they are on disk; a judgment must not be lost by that.
        connect_args={"connect_timeout": CONNECT_SECONDS, "options": f"{options} -c synchronous_commit=on"},
    )


# --- tables ---------------------------------------------------------------------------------------------------------


def _create_tables(connection: Connection, location: str) -> None:
    """Create the tables if the database has none of ours.

    Raises:
        DataError: The database belongs to another program, or to a newer version of rlhf.
    """
    wait_for_others(connection)
    existing = sqlalchemy.inspect(connection).get_table_names()
    if tables.store.name not in existing:
        if existing and connection.dialect.name == "sqlite":
            message = "not a feedback store: the SQLite file has tables of another program."
            hint = "Set feedback.store to another file."
            raise DataError("feedback.foreign-file", message, location=location, hint=hint)
        tables.metadata.create_all(connection)
        connection.execute(tables.store.insert().values(schema_version=tables.SCHEMA_VERSION))
        return
    version = connection.execute(sqlalchemy.select(tables.store.c.schema_version)).scalar()
    if version != tables.SCHEMA_VERSION:
        message = f"unsupported version of the store; found {version}, expected {tables.SCHEMA_VERSION}."
        hint = "Install the version of rlhf that wrote it, or a newer one."
        raise DataError("feedback.schema-version", message, location=location, hint=hint)
