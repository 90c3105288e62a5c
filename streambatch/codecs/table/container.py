"""Arrow and Parquet files from payloads that are IPC streams.

All rows of a file have the same columns: what comes later is widened to them (an integer id becomes text where text is,
float32 becomes float64), and a payload that can't be is a Misfit, for which a new file is begun. The next file starts
with the columns that the last one was widened to, so that mixed ids don't begin a file each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from streambatch.codecs.containers import Misfit
from streambatch.codecs.table.encoder import STREAM_END

ROW_GROUP_ROWS = 128 << 10
ROW_GROUP_BYTES = 8 << 20
"""A row group is written once it has so many rows or bytes, which are held until then."""


class ArrowStream:
    """An IPC stream, readable up to the last payload and ended when the file is closed; one record batch a write."""

    is_whole_only = False
    held = 0

    def __init__(self, compression: str) -> None:
        self.backlog = b""
        self._codec = None if compression == "none" else compression
        self.is_quick = self._codec is None
        self._schema: Any = None
        self.is_ended = False

    def begin(self) -> None:
        self.backlog, self.is_ended = b"", False

    def resume(self, head: bytes) -> None:
        """Take the columns from the file."""
        self._schema = ipc.read_schema(pa.py_buffer(head))

    def add(self, payload: bytes, *, is_first: bool) -> bytes:
        batches = _batches(payload)
        schema = _schema_for(batches, self._schema, is_first=is_first)
        start = schema.serialize().size
        # Already the bytes that the file needs: not written once more.
        if len(batches) == 1 and self._codec is None and batches[0].schema.equals(schema):
            stream = payload
        else:
            stream = self._written(_joined(batches, schema))
        # Only now that nothing can fail any more: after a Misfit, the file's own columns stay.
        self._schema = schema
        # The columns stand at the start of the file only, and the end mark is written once, by `end`.
        return stream[0 if is_first else start : -len(STREAM_END)]

    def end(self) -> None:
        if not self.is_ended:
            self.backlog, self.is_ended = STREAM_END, True

    def _written(self, table: Any) -> bytes:
        out = pa.BufferOutputStream()
        with ipc.new_stream(out, table.schema, options=ipc.IpcWriteOptions(compression=self._codec)) as writer:
            writer.write_table(table)
        stream: bytes = out.getvalue().to_pybytes()
        return stream


class ParquetFile:
    """A Parquet file: row groups as they fill up, readable once it is closed."""

    is_whole_only = True
    is_quick = False

    def __init__(self, compression: str) -> None:
        self._compression = compression
        self._schema: Any = None
        self.begin()

    @property
    def backlog(self) -> bytes:
        """The bytes that the writer made; its setter empties it."""
        return bytes(self._out.made)

    @backlog.setter
    def backlog(self, left: bytes) -> None:
        self._out.made = bytearray(left)

    def begin(self) -> None:
        self._out = _Collected()
        self._writer: Any = None
        self._pending: list[Any] = []
        self._rows = self.held = 0
        self._is_fresh, self.is_ended = True, False

    def resume(self, head: bytes) -> None:
        """Refuse: rows that were not closed were not kept."""
        raise ValueError("a Parquet file can't be continued")

    def add(self, payload: bytes, *, is_first: bool) -> bytes:
        batches = _batches(payload)
        schema = _schema_for(batches, self._schema, is_first=self._is_fresh)
        table = _joined(batches, schema)
        self._schema, self._is_fresh = schema, False
        self._pending.append(table)
        self._rows += table.num_rows
        self.held += table.nbytes
        if self._rows >= ROW_GROUP_ROWS or self.held >= ROW_GROUP_BYTES:
            self._write_row_groups()
        return b""

    def end(self) -> None:
        if self.is_ended or self._is_fresh:
            return
        self._write_row_groups()
        self._writer.close()
        self.is_ended = True

    def _write_row_groups(self) -> None:
        if self._writer is None:
            # Made this late because the columns are known only with the first payload.
            self._writer = pq.ParquetWriter(self._out, self._schema, compression=self._compression)
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending), row_group_size=ROW_GROUP_ROWS)
        self._pending, self._rows, self.held = [], 0, 0


class _Collected:
    """A file object that keeps the bytes written to it."""

    closed = False

    def __init__(self) -> None:
        self.made = bytearray()

    def write(self, data: Any) -> int:
        before = len(self.made)
        self.made += data
        return len(self.made) - before

    def flush(self) -> None:
        """Do nothing: what was written is there."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def _batches(payload: bytes) -> list[Any]:
    """Return the record batches of IPC streams that follow each other, without copying them."""
    source = pa.BufferReader(payload)
    batches: list[Any] = []
    while source.tell() < len(payload):
        batches += ipc.open_stream(source)
    return batches


def _schema_for(batches: Sequence[Any], so_far: Any, *, is_first: bool) -> Any:
    """Return the columns that hold all batches; they are the file's own if it has some. Raises Misfit."""
    schema = so_far
    for batch in batches:
        if schema is None or not batch.schema.equals(schema):
            schema = batch.schema if schema is None else _wider(schema, batch.schema)
    if not is_first and not schema.equals(so_far):
        raise Misfit(f"the columns so far are {_named(so_far)}, and now {_named(schema)} are needed")
    return schema


def _wider(known: Any, found: Any) -> Any:
    pairs = zip(known, found, strict=True)
    return pa.schema([pa.field(new.name, _wider_type(old.type, new.type)) for old, new in pairs])


def _wider_type(known: Any, found: Any) -> Any:
    if known.equals(found) or pa.types.is_null(found):
        return known
    if pa.types.is_null(known) or pa.types.is_nested(known) or pa.types.is_nested(found):
        return found
    for is_one in (pa.types.is_signed_integer, pa.types.is_unsigned_integer, pa.types.is_floating):
        if is_one(known) and is_one(found):
            return known if known.bit_width > found.bit_width else found
    # Most types can be cast to text; for the others `_joined` raises Misfit.
    return pa.string()


def _joined(batches: Sequence[Any], schema: Any) -> Any:
    """Return one table with these columns, each in one piece. Raises Misfit."""
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    try:
        return pa.concat_tables([table.cast(schema) for table in tables]).combine_chunks()
    except pa.ArrowException as error:
        raise Misfit(f"the columns {_named(schema)} don't hold what comes ({error})") from error


def _named(schema: Any) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
