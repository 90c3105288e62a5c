"""From the record batches of one Arrow or Parquet file into the inbox, without a look at their values.

A position is the number of the row that follows. What is read is accounted for from before it is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from anyio import to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from streambatch.codecs.columnar import TableChunk, size_of
from streambatch.errors import OptionError, SourceError
from streambatch.ingest.allocator import keep_freed_memory
from streambatch.ingest.compression import Corrupt
from streambatch.ingest.feed import Feed
from streambatch.ingest.matching import partition_name
from streambatch.ingest.table_file import BATCH_BYTES, ROWS_MAX, TableError, TableFile
from streambatch.records import Chunk, Intake, Memory, Partition


class TableFramer:
    """Makes chunks of record batches; see `Framer`. position: the rows before the next batch."""

    def __init__(self, partition: Partition, position: int = 0) -> None:
        self._partition, self.position = partition, position
        self.pending = 0

    def feed(self, block: Any, now: float) -> list[Chunk]:
        """Return the rows of a record batch."""
        chunk = TableChunk(self._partition, block, self.position, now)
        self.position = chunk.position
        return [chunk]

    def end(self, now: float, *, cut_off: bool = False) -> list[Chunk]:
        """Return nothing: no row waits for another."""
        return []


async def read_table(source: str, path: str, format: str, compression: str, intake: Intake, row: int = 0) -> None:
    """Push every row of a file from `row` on. Raises SourceError that names the path."""
    keep_freed_memory()
    feed = Feed(intake, TableFramer(Partition(source, partition_name(path)), row), source)
    try:
        with _naming_errors(source, path):
            batch_bytes_max = intake.memory.capacity
            file = await to_thread.run_sync(
                lambda: TableFile(path, format, compression, batch_bytes_max=batch_bytes_max, row=row)
            )
            with contextlib.closing(file):
                intake.observer.file_changed(source, path, "opened")
                try:
                    await _read(file, feed, intake.memory)
                except (Corrupt, TableError) as error:
                    raise SourceError(source, f"{path}: {error}; the records before it were read") from error
        await feed.end()
        intake.observer.file_changed(source, path, "completed")
    finally:
        feed.release()


async def _read(file: TableFile, feed: Feed, memory: Memory) -> None:
    expected = BATCH_BYTES
    while True:
        await feed.room(expected)
        batch = await to_thread.run_sync(file.read)
        if batch is None:
            return
        expected = size_of(batch)
        await _push(batch, feed, memory)


async def _push(batch: Any, feed: Feed, memory: Memory) -> None:
    """Push a batch in slices, so that a stop need not wait for room for all of it."""
    slices = _slices(batch)
    waiting = sum(map(size_of, slices[1:]))
    memory.take(waiting)
    try:
        for part in slices:
            if part is not slices[0]:
                memory.give(size_of(part))
                waiting -= size_of(part)
            await feed.push(part)
            await checkpoint_if_cancelled()
    finally:
        memory.give(waiting)


def _slices(batch: Any) -> list[Any]:
    rows = max(1, min(ROWS_MAX, 2 * BATCH_BYTES * batch.num_rows // size_of(batch)))
    return [batch.slice(start, rows) for start in range(0, batch.num_rows, rows)]


@contextlib.contextmanager
def _naming_errors(source: str, path: str) -> Iterator[None]:
    try:
        yield
    except (Corrupt, TableError, OptionError) as error:
        raise SourceError(source, f"{path}: {error}") from error
    except OSError as error:
        raise SourceError(source, f"{path}: {error.strerror}") from error
