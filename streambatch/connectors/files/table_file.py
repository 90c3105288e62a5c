"""Reads the record batches of one Arrow or Parquet file in order, from any row on. Blocking: call it in a thread.

An Arrow stream is unpacked on the way; an Arrow file and Parquet are read from their end, so that a compressed one is
first unpacked into a temporary file without a name, which is gone when it is closed. What comes before a fault is
handed out before the fault is raised.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from streambatch.codecs.compression import Corrupt, Unpacker, compression_of, unpacker
from streambatch.codecs.table.chunk import size_of
from streambatch.connectors.files.globs import kind_of
from streambatch.connectors.files.identity import HEAD_BYTES
from streambatch.connectors.files.opening import open_without_waiting
from streambatch.core.units import format_size

ROWS_MAX = 1 << 16
"""Rows that are read at once, where that can be chosen."""
BATCH_BYTES = 4 << 20
"""Bytes that are read at once, where that can be chosen."""
SAMPLE_ROWS = 256
"""Rows of a Parquet file that are decoded to see how large they are."""
FEW_ROWS = 4 << 10
"""Batches that are smaller are joined to more than so many rows."""
PARQUET_BUFFER_BYTES = 256 << 10
"""Compressed bytes of a column read at once: with none set, a whole row group's would be."""
UNPACKED_BYTES = 1 << 30
"""What may be unpacked into a temporary file, whatever the ratio."""
UNPACKED_RATIO = 100
"""How many times its size a larger one may be unpacked to."""

_BLOCK_BYTES = 1 << 20
_ARROW_FILE, _PARQUET = b"ARROW1\0\0", b"PAR1"
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


class TableError(Exception):
    """A file can't be read on as a table. Says why."""


class TableFile:
    """One file, open for reading. Raises TableError, Corrupt and OSError.

    batch_bytes_max: a larger record batch of an Arrow stream or file is refused. row: where to start. head, status:
    what begins the file, and what it was when it was opened.
    """

    def __init__(self, path: str, format: str, compression: str, *, batch_bytes_max: int, row: int = 0) -> None:
        self._raw = io.FileIO(path, opener=open_without_waiting)
        self._opened: list[Any] = [self._raw]
        self._batch_bytes_max = batch_bytes_max
        self._rows_before = row
        try:
            self._batches = self._open(format, compression)
        except BaseException:
            self.close()
            raise

    def read(self) -> Any | None:
        """Return the next record batch, of at least one row; None at the end."""
        with _raising_table_errors():
            return next(self._batches, None)

    @property
    def rows_missing(self) -> int:
        """Rows that it should have before those to be read, and hasn't; known at the end."""
        return self._rows_before

    def close(self) -> None:
        """Close everything that was opened."""
        for each in reversed(self._opened):
            each.close()

    def _open(self, format: str, compression: str) -> Iterator[Any]:
        self.status = status = os.fstat(self._raw.fileno())
        kind = kind_of(status.st_mode)
        if kind is not None:
            raise TableError(f"it is {kind}, not a file")
        self.head = os.pread(self._raw.fileno(), HEAD_BYTES, 0)
        if not status.st_size:
            return iter(())
        packed = unpacker(compression_of(self.head, compression))
        data: io.RawIOBase = self._raw if packed is None else _Unpacked(self._raw, packed)
        head = data.read(len(_ARROW_FILE)) or b""
        _check_kind(head, format)
        if packed is not None and (format == "parquet" or head == _ARROW_FILE):
            data = self._spooled(head, data, status.st_size)
        elif packed is not None:
            data = _Joined(head, data)
        else:
            data.seek(0)
        with _raising_table_errors():
            return self._batches_of(data, format, head == _ARROW_FILE)

    def _batches_of(self, data: Any, format: str, is_file: bool) -> Iterator[Any]:
        """Return the batches of a file that begins where `data` is."""
        if format == "parquet":
            # Pre-buffering would hold the columns of a whole row group at once.
            file = pq.ParquetFile(data, pre_buffer=False, buffer_size=PARQUET_BUFFER_BYTES)
            first = self._row_groups_before(file)
            return self._from_row(_parquet_batches(file, first))
        source = pa.PythonFile(_Limited(data, self._batch_bytes_max), "r")
        if is_file:
            reader = pa.ipc.open_file(source, options=_OPTIONS)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(source, options=_OPTIONS))
        return _joined(self._from_row(_valid(batches)))

    def _row_groups_before(self, file: Any) -> int:
        """Return how many row groups come before the row to start from."""
        first = 0
        while first < file.num_row_groups and file.metadata.row_group(first).num_rows <= self._rows_before:
            self._rows_before -= file.metadata.row_group(first).num_rows
            first += 1
        return first

    def _from_row(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield batches without the rows before the first, and none that is empty."""
        for batch in batches:
            row, self._rows_before = self._rows_before, max(0, self._rows_before - batch.num_rows)
            if batch.num_rows > row:
                yield batch.slice(row) if row else batch

    def _spooled(self, head: bytes, data: io.RawIOBase, packed_size: int) -> Any:
        """Return a temporary file with all of `data`."""
        limit = max(UNPACKED_BYTES, UNPACKED_RATIO * packed_size)
        spool: BinaryIO = tempfile.TemporaryFile(buffering=0, dir=_spool_folder())  # noqa: SIM115  # closed by close()
        self._opened.append(spool)
        block, size = head, 0
        while block:
            size += len(block)
            if size > limit:
                raise TableError(f"it unpacks to more than {format_size(limit)}")
            spool.write(block)
            block = data.read(_BLOCK_BYTES) or b""
        spool.seek(0)
        return spool


class _Unpacked(io.RawIOBase):
    """The bytes of a compressed file; reads come back full but at the end."""

    def __init__(self, raw: io.FileIO, unpacker: Unpacker) -> None:
        self._raw, self._unpacker = raw, unpacker

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts: list[bytes] = []
        while size > 0 and (part := self._read_some(min(size, _BLOCK_BYTES))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _read_some(self, size: int) -> bytes:
        while True:
            while not self._unpacker.needs_input():
                part = self._unpacker.inflate(size)
                if part:
                    return part
            block = self._raw.read(_BLOCK_BYTES // 4)
            if not block:
                self._unpacker.end()
                return b""
            self._unpacker.give(block)


class _Joined(io.RawIOBase):
    """The bytes of a file that were read already, followed by the rest."""

    def __init__(self, head: bytes, rest: io.RawIOBase) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        head, self._head = self._head[:size], self._head[size:]
        return head + (self._rest.read(size - len(head)) or b"")


class _Limited(io.RawIOBase):
    """A file that is not asked for more than it may be, nor, if it has a size, for more than it has: a corrupt length
    costs no memory."""

    def __init__(self, file: Any, read_max: int) -> None:
        self._file, self._read_max = file, read_max
        self._size = os.fstat(file.fileno()).st_size if isinstance(file, io.FileIO) else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._size is not None

    def read(self, size: int = -1) -> bytes:
        if self._size is not None:
            size = min(size, max(0, self._size - self._file.tell()))
        if size > self._read_max:
            found, allowed = format_size(size), format_size(self._read_max)
            raise TableError(f"a record batch has {found}, more than limits.memory allows for one ({allowed})")
        return self._file.read(size) or b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())


@contextlib.contextmanager
def _raising_table_errors() -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise TableError(str(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        # pyarrow's own for what is cut off or corrupt.
        raise TableError(str(error)) from error


def _check_kind(head: bytes, format: str) -> None:
    """Raise TableError for a file of the other format, which would else only be called broken."""
    if format == "arrow" and head.startswith(_PARQUET):
        raise TableError("it is a Parquet file: format = 'parquet' reads it")
    if format == "parquet" and not head.startswith(_PARQUET):
        is_arrow = head == _ARROW_FILE
        raise TableError("it is an Arrow file: format = 'arrow' reads it" if is_arrow else "it is no Parquet file")


def _spool_folder() -> str | None:
    """Return where large temporary files go: /tmp is often memory."""
    folder = os.environ.get("TMPDIR", "/var/tmp")
    return folder if os.path.isdir(folder) else None


def _parquet_batches(file: Any, first: int) -> Iterator[Any]:
    """Return batches of no more than ROWS_MAX rows, and about BATCH_BYTES, from a row group on."""
    groups = [file.metadata.row_group(at) for at in range(first, file.num_row_groups)]
    rows, size = sum(group.num_rows for group in groups), sum(group.total_byte_size for group in groups)
    row_bytes = max(size / max(rows, 1), _decoded_row_bytes(file, first), 1.0)
    batch_rows = max(1, min(ROWS_MAX, int(BATCH_BYTES / row_bytes)))
    row_groups = list(range(first, file.num_row_groups))
    batches: Iterator[Any] = file.iter_batches(batch_size=batch_rows, row_groups=row_groups, use_threads=False)
    return batches


def _decoded_row_bytes(file: Any, group: int) -> float:
    """Return what one of a group's first rows takes once it is decoded, which a dictionary hides in the file."""
    if group >= file.num_row_groups:
        return 0.0
    for batch in file.iter_batches(batch_size=SAMPLE_ROWS, row_groups=[group], use_threads=False):
        return float(size_of(batch) / max(batch.num_rows, 1))
    return 0.0


def _valid(batches: Iterator[Any]) -> Iterator[Any]:
    """Pass batches on whose offsets and text are what they should be: pyarrow takes them on trust."""
    for batch in batches:
        batch.validate(full=True)
        yield batch


def _joined(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield several small batches as one, since each costs as much as some hundred rows do."""
    held: list[Any] = []
    rows = size = 0
    try:
        for batch in batches:
            rows, size = rows + batch.num_rows, size + size_of(batch)
            if held and (rows > FEW_ROWS or size > BATCH_BYTES):
                yield _one(held)
                held, rows, size = [], batch.num_rows, size_of(batch)
            held.append(batch)
    # What came before the fault is whole: it is handed out first.
    except (pa.ArrowException, TableError, Corrupt, OSError):
        if held:
            yield _one(held)
        raise
    if held:
        yield _one(held)


def _one(batches: list[Any]) -> Any:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
