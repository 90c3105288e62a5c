"""The SQLite file under the state store: made, checked, written in whole transactions, put aside when it is damaged.

A file appears under its name only once it is complete and durable. One that is damaged is renamed, never written over;
one of another program or of a newer version is left alone. A full disk or a read error is not damage.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from streambatch.core.errors import DamagedStateError, StateError, StateOutage
from streambatch.durability.store.schema import (
    APPLICATION_ID,
    KEYS,
    LADDER,
    StoreHead,
    climb,
    is_sealed_rightly,
    read_head,
    remove_row,
    replace_row,
    schema_version,
    write_head,
    written_by,
)
from streambatch.storage.files import sync_folder

FILE_NAME = "state.sqlite3"
QUICK_CHECK_BYTES_MAX = 1 << 30
"""A larger file is not read whole at every start: only the tables that are needed to resume."""
_SIDES = ("-wal", "-shm", "-journal")
_MAGIC = b"SQLite format 3\0"
_BUSY_SECONDS = 10.0
_PASSING = {
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip
# Final: the system may have dropped the data and cleared the error, so that another try would seem to succeed.
_FSYNC = {sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC}
_MISUSE = (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.NotSupportedError)


class Transaction:
    """One transaction: rows put and dropped, and the store's own row, which is written last."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.head, self._seals = read_head(connection)

    def put(self, table: str, *row: Any) -> None:
        """Store a sealed row in place of the one with its key."""
        self._seals += replace_row(self.connection, table, row)

    def drop(self, table: str, *key: Any) -> None:
        """Remove a sealed row, if it is there."""
        self._seals += remove_row(self.connection, table, key)

    def clear(self, table: str, condition: str = "1", *values: Any) -> None:
        """Remove the sealed rows that meet a condition."""
        columns = ", ".join(KEYS[table])
        query = f"SELECT {columns} FROM {table} WHERE {condition}"
        for key in self.connection.execute(query, values).fetchall():
            self.drop(table, *key)

    def finish(self) -> None:
        """Write the store's own row."""
        write_head(self.connection, self.head, self._seals)


class Database:
    """An open state file. Calls may come from any thread; they take turns.

    Every method raises StateOutage for what may pass, DamagedStateError for content that can't be what was stored,
    and StateError for what trying again won't cure.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._connection = path, connection
        self._turn = threading.RLock()
        self._lost: StateError | None = None

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """Make all changes of the context durable, or none of them."""
        with self._turn, translated_errors(self.path):
            if self._lost is not None:
                raise self._lost
            try:
                yield from self._transaction()
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", None) in _FSYNC:
                    self._lost = as_state_error(self.path, error)
                raise

    def _transaction(self) -> Iterator[Transaction]:
        # IMMEDIATE takes the lock for writing at once. Else the first write does, and fails half-way if another has it.
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            changes = Transaction(self._connection)
            yield changes
            changes.finish()
            self._connection.execute("COMMIT")
        except BaseException:
            # SQLite rolls back by itself after some errors, such as a full disk.
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
            raise

    def head(self) -> StoreHead:
        """Return the store's own row."""
        with self._turn, translated_errors(self.path):
            return read_head(self._connection)[0]

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return what a query finds."""
        with self._turn, translated_errors(self.path):
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other threads from writing while several rows are read."""
        with self._turn:
            yield

    def close(self) -> None:
        """Close the file."""
        with self._turn, suppress(sqlite3.Error):
            self._connection.close()


def open_database(folder: Path, now: Callable[[], float]) -> Database:
    """Open the state file for writing; make it if there is none. now: wall seconds, to name a file that is put aside.

    Raises DamagedStateError once a damaged file was put aside, StateError for one that isn't ours or is too new.
    """
    path = folder / FILE_NAME
    try:
        with translated_errors(path):
            if not path.exists():
                _check_nothing_left(path)
                _make(path)
            return _opened(path)
    except DamagedStateError as error:
        with translated_errors(path):
            aside = _put_aside(path, now())
        raise DamagedStateError(
            path,
            f"damaged: {error.problem}; it was put aside as {aside}; put a copy that is whole in its place, or run "
            "again to start anew: then every record is read again",
            aside,
        ) from error


def read_database(folder: Path) -> Database:
    """Open the state file for reading, as it is at this moment; another process may go on writing."""
    path = folder / FILE_NAME
    if not path.exists():
        raise StateError(path, "there is none yet; `streambatch run` makes it")
    with translated_errors(path):
        check_header(path)
        connection = _snapshot(path)
        try:
            with _undecodable(path):
                _check_version(path, connection, is_reader=True)
                _check_seal(path, connection)
        except BaseException:
            connection.close()
            raise
    return Database(path, connection)


def check_header(path: Path) -> None:
    """Look at the file's first bytes, before SQLite does: a file that isn't ours is not touched."""
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(_MAGIC):
        raise DamagedStateError(path, "not an SQLite file" if header else "an empty file")
    # Bytes 68 to 71 of an SQLite file hold `PRAGMA application_id`.
    found = int.from_bytes(header[68:72], "big")
    if found != APPLICATION_ID:
        raise StateError(
            path,
            f"an SQLite file of another program (application id {found:#x}; ours is {APPLICATION_ID:#x}); "
            "move it away, or choose another state_dir",
        )


def as_state_error(path: Path, error: sqlite3.Error) -> StateError:
    """Return what an error of SQLite means."""
    code = getattr(error, "sqlite_errorcode", None)
    if code in _FSYNC:
        return StateError(path, f"what was stored last may be lost: {error}; start again")
    # An extended code has the primary one in its lowest byte.
    if code is not None and code & 0xFF in _PASSING:
        return StateOutage(path, str(error))
    return DamagedStateError(path, str(error))


@contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Raise errors of SQLite and of the system as errors of the state."""
    try:
        yield
    except _MISUSE:
        raise
    except sqlite3.Error as error:
        raise as_state_error(path, error) from error
    except OSError as error:
        raise StateOutage(path, str(error.strerror or error).lower()) from error


def _check_nothing_left(path: Path) -> None:
    """Keep a log from being replayed into a new file: its own was lost."""
    for side in ("-wal", "-journal"):
        log = path.with_name(path.name + side)
        if log.exists() and log.stat().st_size:
            raise DamagedStateError(path, f"missing, though its log {log.name} is there")
        log.unlink(missing_ok=True)


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.new")
    for side in ("", *_SIDES):
        partial.with_name(partial.name + side).unlink(missing_ok=True)
    # The file of a process that was killed while it made one was removed above.
    with closing(_connected(partial, "mode=rwc")) as connection:
        _write_ahead(connection)
        climb(connection)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # `close` would do it too, and keep quiet if it fails
    # In this order: the name appears only once the file is whole on disk.
    _fsync(partial)
    partial.rename(path)
    sync_folder(path.parent)


def _opened(path: Path) -> Database:
    check_header(path)
    with closing(_connected(path, "mode=ro")) as connection, _undecodable(path):  # leaves a damaged file as it is
        _check_version(path, connection)
        _check_structure(path, connection)
        _check_seal(path, connection)
    connection = _connected(path, "mode=rw")
    try:
        _write_ahead(connection)
        climb(connection)
        _check_writable(connection)
    except BaseException:
        connection.close()
        raise
    return Database(path, connection)


def _connected(path: Path, option: str) -> sqlite3.Connection:
    # Quoted: a path may hold `?`, `#` or `%`, and bytes that are no Unicode.
    uri = f"file:{quote(os.fsencode(path.absolute()))}?{option}"
    # No isolation level, or the module would begin transactions of its own; any thread, since `Database` has them take
    # turns.
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    # Damage is found on the page where it is, and a schema that was tampered with can call no functions.
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Use a write-ahead log, so that others read while this one writes, and fsync every transaction."""
    connection.execute("PRAGMA journal_mode = WAL")
    # NORMAL would not fsync the log at a commit: the last transactions could be lost with the machine's power.
    connection.execute("PRAGMA synchronous = FULL")


def _check_writable(connection: sqlite3.Connection) -> None:
    """Raise for a connection that SQLite made read-only, since it couldn't open the file or its log for writing.

    No waiting cures that connection. Its transactions begin all the same, so something is written, and rolled back.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(f"PRAGMA user_version = {schema_version(connection)}")
    finally:
        connection.execute("ROLLBACK")


def _snapshot(path: Path) -> sqlite3.Connection:
    """Return a connection that sees the file as it is now.

    Without a log no process writes to the file, or one has only begun to and won't touch it for long. Then it can be
    read without a file beside it, and so also where only reading is allowed.
    """
    is_at_rest = not path.with_name(f"{path.name}-wal").exists()
    connection = _connected(path, "immutable=1" if is_at_rest else "mode=ro")
    # The first read decides what is seen, and this keeps it so for all later ones.
    connection.execute("BEGIN")
    return connection


def _check_version(path: Path, connection: sqlite3.Connection, *, is_reader: bool = False) -> None:
    version = schema_version(connection)
    if version > len(LADDER):
        raise StateError(
            path,
            f"written by a newer streambatch (schema {version}; this one knows up to {len(LADDER)}); "
            f"run streambatch {written_by(connection)} or later, or choose another state_dir",
        )
    if version < 1:
        raise DamagedStateError(path, f"schema version {version}, which no streambatch writes")
    if is_reader and version < len(LADDER):
        raise StateError(
            path, f"written by streambatch {written_by(connection)}; `streambatch run` brings it up to this version"
        )


@contextmanager
def _undecodable(path: Path) -> Iterator[None]:
    """Raise as damage what is raised for values of other types than were stored, also from SQLite's own messages."""
    try:
        yield
    except (TypeError, ValueError, LookupError) as error:
        raise DamagedStateError(path, f"content that can't be decoded ({error})") from error


def _check_structure(path: Path, connection: sqlite3.Connection) -> None:
    is_small = path.stat().st_size <= QUICK_CHECK_BYTES_MAX
    for scope in [""] if is_small else [f"('{table}')" for table in KEYS]:
        findings = [row[0] for row in connection.execute(f"PRAGMA quick_check{scope}")]
        if findings != ["ok"]:
            raise DamagedStateError(path, str(findings[0]).replace("\n", ", "))


def _check_seal(path: Path, connection: sqlite3.Connection) -> None:
    if not is_sealed_rightly(connection):
        raise DamagedStateError(path, "rows are not those that were stored")


def _put_aside(path: Path, now: float) -> Path:
    """Rename the file and what belongs to it, durably; the file first, for its log alone is never replayed."""
    stem = f"{path.name}.corrupt-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}"
    aside, number = path.with_name(stem), 1
    while any(aside.with_name(aside.name + side).exists() for side in ("", *_SIDES)):
        number += 1
        aside = path.with_name(f"{stem}-{number}")
    for side in ("", *_SIDES):
        with suppress(FileNotFoundError):
            path.with_name(path.name + side).rename(aside.with_name(aside.name + side))
    sync_folder(path.parent)
    return aside


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
