"""Read outputs back: find the files of their segments, and the records in them in the order of writing.

Blocking. Nothing past the end that a reader is given is looked at, since it may not be committed.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from streambatch.codecs.formats import TABLES, framing_for_format
from streambatch.core.archive import OutputLayout
from streambatch.core.chunks import Chunk, Partition
from streambatch.storage.segments import SegmentNames

_BLOCK_BYTES = 1 << 20
_NOWHERE = Partition("", "")


class OutputError(Exception):
    """A file does not hold what an output writes. Names the file and the reason."""


class OutputPosition(NamedTuple):
    """A position in an output: the number of a segment, and a length in bytes of its file."""

    segment: int
    length: int


def position_of(mark: Mapping[str, Any] | None) -> OutputPosition:
    """Return the position at which an output with this mark is continued; its beginning without a mark."""
    if not mark or "segment" not in mark:
        return OutputPosition(1, 0)
    # A segment that was being closed when the mark was stored gets no more records: its rename is completed at start.
    if mark.get("is_closing"):
        return OutputPosition(mark["segment"] + 1, 0)
    return OutputPosition(mark["segment"], mark["length"])


class OutputSegments:
    """The files of an output. mark: the last checkpoint's, which has the number of the open segment."""

    def __init__(self, layout: OutputLayout, mark: Mapping[str, Any] | None = None) -> None:
        self.layout = layout
        self._open_number = int(mark["segment"]) if mark and "segment" in mark else None
        self._names = SegmentNames(layout.path)

    def find(self, number: int) -> Path | None:
        """Return the file of a segment, closed or open; None if there is none, as when a reader took it away."""
        if not self.layout.is_rotated:
            return self.layout.path if self.layout.path.exists() else None
        closed = self._names.closed(number)
        if closed.exists():
            return closed
        # Without a mark, the open segment is the one after the last closed one.
        open_number = self._open_number or max(self._names.found(), default=0) + 1
        # The pipeline may have gone on to the next segment since the mark was stored.
        if number == open_number + 1 and self._names.closed(open_number).exists():
            open_number = number
        return self._names.open if number == open_number and self._names.open.exists() else None

    def closed(self) -> list[int]:
        """Return the numbers of the closed segments."""
        return list(self._names.found()) if self.layout.is_rotated else []

    def is_closed(self, number: int) -> bool:
        """Whether a segment has its final name."""
        return self.layout.is_rotated and self._names.closed(number).exists()

    def name(self, number: int) -> Path:
        """Return the final name of a segment, whether or not there is such a file."""
        return self._names.closed(number) if self.layout.is_rotated else self.layout.path

    def read(self, number: int, start: int = 0, end: int | None = None) -> Records:
        """Return the records of a segment between two lengths of its file. Raises OutputError if it is not there."""
        path = self.find(number)
        if path is None:
            raise OutputError(f"{self.name(number)} is not there")
        if self.layout.format in TABLES:
            return TableRecords(path, self.layout.format, start, end)
        return TextRecords(path, self.layout, start, end)


class Records(Protocol):
    """The records of one file, taken in order."""

    def take(self, count: int) -> Any:
        """Return the next records, fewer at the end: bytes, or a table. Raises OutputError."""
        ...

    def count(self) -> int:
        """Return the number of records left, and take them all. Raises OutputError."""
        ...

    def close(self) -> None: ...


class TextRecords:
    """Lines or CSV rows."""

    def __init__(self, path: Path, layout: OutputLayout, start: int, end: int | None) -> None:
        self._path = path
        # Unbuffered, since it is read in large blocks.
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  # closed by close()
        part = _FileRange(self._file, start, end)
        self._stream = _unpacked(part, layout.compression)
        # Past the start of a CSV file there is no header to read: any row is a record.
        is_headed = layout.format == "csv" and start == 0
        # No limit on a record's length: whatever the sink wrote must be read back.
        self._framer: Any = framing_for_format(layout.format).framer(
            _NOWHERE, max_record_bytes=1 << 60, position=0 if is_headed else 1, columns=None if is_headed else ("",)
        )
        self._chunks: list[Chunk] = []
        self._is_over = False

    def take(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count and self._has_chunk():
            chunk = self._chunks.pop(0)
            if chunk.count > count:
                self._chunks.insert(0, chunk)
                chunk = chunk.split_off(count)
            count -= chunk.count
            parts.append(bytes(chunk.data()))
        return b"".join(parts)

    def count(self) -> int:
        count = 0
        while self._has_chunk():
            count += self._chunks.pop(0).count
        return count

    def close(self) -> None:
        self._stream.close()
        self._file.close()

    def _has_chunk(self) -> bool:
        while not self._chunks and not self._is_over:
            with _reading_errors(self._path):
                block = self._stream.read(_BLOCK_BYTES)
            self._is_over = not block
            self._chunks = self._framer.feed(block, 0.0) if block else self._framer.end(0.0)
        return bool(self._chunks)


class TableRecords:
    """Rows of an Arrow stream or a Parquet file."""

    def __init__(self, path: Path, format: str, start: int, end: int | None) -> None:
        self._path = path
        self._batches: Generator[Any, None, None] = _parquet(path) if format == "parquet" else _stream(path, start, end)
        self._rest: Any = None

    def take(self, count: int) -> Any:
        import pyarrow as pa

        parts = []
        while count and (batch := self._next()) is not None:
            part = batch.slice(0, count)
            self._rest = batch.slice(part.num_rows) if part.num_rows < batch.num_rows else None
            parts.append(part)
            count -= part.num_rows
        return pa.Table.from_batches(parts) if parts else None

    def count(self) -> int:
        count = 0
        while (batch := self._next()) is not None:
            count += batch.num_rows
            self._rest = None
        return count

    def close(self) -> None:
        self._batches.close()

    def _next(self) -> Any:
        while self._rest is None or not self._rest.num_rows:
            with _reading_errors(self._path):
                self._rest = next(self._batches, None)
            if self._rest is None:
                break
        return self._rest


def records_of(payload: bytes, format: str) -> list[bytes]:
    """Return the records of an encoded payload: lines, or CSV rows."""
    framer: Any = framing_for_format(format).framer(_NOWHERE, max_record_bytes=1 << 60, position=1, columns=("",))
    chunks = [*framer.feed(payload, 0.0), *framer.end(0.0)] if payload else []
    return [bytes(chunk.raw(at)) for chunk in chunks for at in range(chunk.count)]


def first_difference(expected: Any, found: Any) -> int | None:
    """Return the first row in which two tables with equal columns differ in any bit; None if they don't differ."""
    if _digest(expected) == _digest(found):
        return None
    # Compared by digests, since for Arrow a NaN differs from itself. Bisection then finds the row.
    rows = min(expected.num_rows, found.num_rows)
    low, high = 0, rows
    while low < high:
        middle = (low + high) // 2
        if _digest(expected.slice(0, middle + 1)) == _digest(found.slice(0, middle + 1)):
            low = middle + 1
        else:
            high = middle
    return low


def text_of(table: Any, row: int) -> str:
    """Return a row as text."""
    values = table.slice(row, 1).to_pylist()
    return str(values[0]) if values else "nothing"


def _digest(table: Any) -> str:
    from streambatch.codecs.table.digest import TableDigest

    digest = TableDigest()
    for batch in table.combine_chunks().to_batches():
        digest.update(batch)
    return digest.hexdigest()


class _FileRange(io.RawIOBase):
    """The bytes of a file between two offsets."""

    def __init__(self, file: Any, start: int, end: int | None) -> None:
        self._file, self._left = file, None if end is None else max(0, end - start)
        file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = len(buffer) if self._left is None else min(len(buffer), self._left)
        data = self._file.read(size)
        buffer[: len(data)] = data
        if self._left is not None:
            self._left -= len(data)
        return len(data)


def _unpacked(part: io.RawIOBase, compression: str) -> Any:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=io.BufferedReader(part))
    if compression == "zstd":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(part, "r"), "zstd")
    return part


def _stream(path: Path, start: int, end: int | None) -> Generator[Any, None, None]:
    """Yield the record batches of an IPC stream that begin between two offsets."""
    import pyarrow as pa
    from pyarrow import ipc

    with pa.OSFile(str(path)) as file:
        reader, length = ipc.open_stream(file), file.size()
        # A batch is read if it begins within the range: marks lie between two batches of the stream.
        while (at := file.tell()) < (length if end is None else end):
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            if at >= start:
                yield batch


def _parquet(path: Path) -> Generator[Any, None, None]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(use_threads=False)


@contextmanager
def _reading_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error) as error:  # pyarrow's own are ValueErrors and OSErrors
        raise OutputError(f"{path} can't be read: {error}") from error
