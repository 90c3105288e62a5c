"""The tables of the state store and the ladder by which older files climb to them.

Rows of every table but `store`, `reads` and `journal` are sealed: their digests add up to the seal in `store`, so that
a row which was changed, lost or doubled by anything but a transaction is found when the file is opened. Reads and
journal rows are checked when they are read: `progress` says how many there are. SQLite itself has no checksums.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from streambatch.version import __version__

APPLICATION_ID = 0x73626368
"""`sbch`, in the file's header."""
SEAL_BYTES = 8
_SEAL_MASK = (1 << 8 * SEAL_BYTES) - 1
_UNSEALED = ("store", "reads", "journal")

KEYS: dict[str, tuple[str, ...]] = {
    "sources": ("name",),
    "partitions": ("source", "name"),
    "outputs": ("name",),
    "steps": ("id",),
    "counts": ("source",),
    "intents": ("batch",),
    "runs": ("number",),
    "progress": ("number",),
    "reads": ("number", "source", "name"),
}
"""The columns, always the first ones, that tell a table's rows apart."""

_VERSION_1 = """
CREATE TABLE store (
    id INTEGER PRIMARY KEY CHECK (id = 1), written_by TEXT, state_id TEXT, runs INTEGER, next_batch INTEGER,
    journal INTEGER, at REAL, seal BLOB
);
CREATE TABLE sources (name TEXT PRIMARY KEY, reading TEXT) WITHOUT ROWID;
CREATE TABLE partitions (
    source TEXT, name TEXT, position INTEGER, read_to INTEGER, records INTEGER, digest TEXT, notes TEXT,
    PRIMARY KEY (source, name)
) WITHOUT ROWID;
CREATE TABLE outputs (name TEXT PRIMARY KEY, mark TEXT) WITHOUT ROWID;
CREATE TABLE steps (id INTEGER PRIMARY KEY CHECK (id = 1), states BLOB);
CREATE TABLE counts (source TEXT PRIMARY KEY, before TEXT, now TEXT) WITHOUT ROWID;
CREATE TABLE intents (batch INTEGER PRIMARY KEY, ranges BLOB);
CREATE TABLE runs (number INTEGER PRIMARY KEY, run TEXT, begun TEXT, steps_from BLOB);
CREATE TABLE progress (
    number INTEGER PRIMARY KEY, checkpoints INTEGER, at REAL, journal_from INTEGER, journal_to INTEGER, reads INTEGER,
    reads_seal BLOB, detail TEXT, ended TEXT
);
CREATE TABLE reads (
    number INTEGER, source TEXT, name TEXT, first INTEGER, last INTEGER, records INTEGER, digest TEXT, notes TEXT,
    PRIMARY KEY (number, source, name)
) WITHOUT ROWID;
CREATE TABLE journal (id INTEGER PRIMARY KEY, at REAL, packed BLOB, digest BLOB);
"""


class StoreHead(msgspec.Struct):
    """The one row of `store`, but for its id and seal; its fields are the columns, in order."""

    written_by: str
    state_id: str
    runs: int
    """The number of the last run."""
    next_batch: int
    journal: int
    """The id of the last journal row."""
    at: float | None
    """When the last checkpoint was stored."""


def _create(connection: sqlite3.Connection) -> None:
    # One by one: `executescript` would first commit the transaction that `climb` has begun.
    for statement in _VERSION_1.split(";\n"):
        if statement.strip():
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    head = StoreHead(__version__, secrets.token_hex(8), 0, 0, 0, None)
    write_head(connection, head, 0)


LADDER: list[Callable[[sqlite3.Connection], None]] = [_create]
"""Step n takes a file from version n to n + 1. The last one leads to this version's tables."""


def climb(connection: sqlite3.Connection) -> None:
    """Take the file to this version, in one transaction; its seal is checked before and computed again after."""
    version = schema_version(connection)
    if version == len(LADDER):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in LADDER[version:]:
            step(connection)
        head, _ = read_head(connection)
        head.written_by = __version__
        write_head(connection, head, sum_of_seals(connection))
        connection.execute(f"PRAGMA user_version = {len(LADDER)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def schema_version(connection: sqlite3.Connection) -> int:
    """Return the version of the file's tables."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def written_by(connection: sqlite3.Connection) -> str:
    """Return the version of streambatch that made the file's tables; every version has this column."""
    return str(connection.execute("SELECT written_by FROM store").fetchone()[0])


def read_head(connection: sqlite3.Connection) -> tuple[StoreHead, int]:
    """Return the store's own row and the sum of the seals of all others."""
    _, *fields, seal = connection.execute("SELECT * FROM store").fetchone()
    head = StoreHead(*fields)
    return head, (int.from_bytes(seal, "big") - _seal_of_head(head)) & _SEAL_MASK


def write_head(connection: sqlite3.Connection, head: StoreHead, seals: int) -> None:
    """Store the store's own row with the seal over it and all other rows."""
    seal = ((seals + _seal_of_head(head)) & _SEAL_MASK).to_bytes(SEAL_BYTES, "big")
    fields = msgspec.structs.astuple(head)
    connection.execute(f"INSERT OR REPLACE INTO store VALUES (1, {_places(len(fields) + 1)})", (*fields, seal))


def is_sealed_rightly(connection: sqlite3.Connection) -> bool:
    """Whether the sealed rows are those that were stored; reads them all."""
    return read_head(connection)[1] == sum_of_seals(connection)


def sum_of_seals(connection: sqlite3.Connection) -> int:
    """Return the sum of the digests of all sealed rows."""
    # A sum, in any order: a transaction adds and subtracts its own rows, and need not read the others.
    return sum(seal_of(table, row) for table, row in _sealed_rows(connection)) & _SEAL_MASK


def seal_of(table: str, row: Sequence[Any]) -> int:
    """Return the digest of a row as a number."""
    content = msgspec.msgpack.encode((table, *row))
    return int.from_bytes(blake2b(content, digest_size=SEAL_BYTES).digest(), "big")


def replace_row(connection: sqlite3.Connection, table: str, row: Sequence[Any]) -> int:
    """Store a row in place of the one with its key. Returns by how much that changes the sum of seals."""
    before = find_row(connection, table, row[: len(KEYS[table])])
    connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({_places(len(row))})", row)
    return seal_of(table, row) - (seal_of(table, before) if before else 0)


def remove_row(connection: sqlite3.Connection, table: str, key: Sequence[Any]) -> int:
    """Remove the row with this key, if it is there. Returns by how much that changes the sum of seals."""
    before = find_row(connection, table, key)
    if before is None:
        return 0
    connection.execute(f"DELETE FROM {table} WHERE {_condition(table)}", key)
    return -seal_of(table, before)


def find_row(connection: sqlite3.Connection, table: str, key: Sequence[Any]) -> tuple[Any, ...] | None:
    """Return the row with this key."""
    found: tuple[Any, ...] | None = connection.execute(
        f"SELECT * FROM {table} WHERE {_condition(table)}", key
    ).fetchone()
    return found


def _sealed_rows(connection: sqlite3.Connection) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield the rows of all tables that there are: an older version may have others than this one."""
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
    for (table,) in tables.fetchall():
        if table not in _UNSEALED:
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                yield table, row


def _seal_of_head(head: StoreHead) -> int:
    return seal_of("store", msgspec.structs.astuple(head))


def _condition(table: str) -> str:
    return " AND ".join(f"{column} = ?" for column in KEYS[table])


def _places(count: int) -> str:
    return ", ".join("?" * count)
