"""Pushes the record batches of one Arrow or Parquet file, without a look at their values.

A position is the number of the row that follows. Memory for a batch is reserved before it is read.
"""

from __future__ import annotations

import contextlib
from typing import Any

from anyio import to_thread
from anyio.lowlevel import checkpoint_if_cancelled
from msgspec.structs import replace

from streambatch.codecs.compression import Corrupt
from streambatch.codecs.table.chunk import TableChunk, size_of
from streambatch.connectors.files.eager import call_eagerly
from streambatch.connectors.files.globs import stat_of
from streambatch.connectors.files.identity import Identity, identity_of
from streambatch.connectors.files.input_file import CutBack, naming_errors, open_found
from streambatch.connectors.files.matching import FoundFile
from streambatch.connectors.files.notes import NoteBook, notes_of
from streambatch.connectors.files.options import ReadingOptions
from streambatch.connectors.files.outage import Outages
from streambatch.connectors.files.table_file import BATCH_BYTES, ROWS_MAX, TableError, TableFile
from streambatch.core.allocator import keep_freed_memory
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.errors import SourceError
from streambatch.core.feed import Feed
from streambatch.core.intake import Intake, MemoryBudget


class TableFramer:
    """Makes chunks of record batches; see `Framer`. position: the rows before the next batch."""

    def __init__(self, partition: Partition, position: int = 0) -> None:
        self._partition, self.position = partition, position
        self.partition = partition.name
        self.pending = 0
        self.columns: tuple[str, ...] | None = None

    def feed(self, block: Any, now: float) -> list[Chunk]:
        """Return the rows of a record batch."""
        chunk = TableChunk(self._partition, block, self.position, now)
        self.position = chunk.position
        return [chunk]

    def end(self, now: float, *, cut_off: bool = False) -> list[Chunk]:
        """Return nothing: no row waits for another."""
        return []


class TableReading:
    """One file of rows, from a row on to its end; opened again after an outage, where it was."""

    def __init__(
        self, options: ReadingOptions, file: FoundFile, intake: Intake, outages: Outages, book: NoteBook
    ) -> None:
        self._options, self._file, self._intake = options, file, intake
        self._outages, self._book = outages, book
        self._has_begun = False

    async def run(self, partition: str, row: int, identity: Identity) -> None:
        """Push every row from `row` on.

        Raises SourceError that names the path, and CutBack when it isn't a file of that identity, or has less rows.
        """
        keep_freed_memory()
        framer = TableFramer(Partition(self._options.source, partition), row)
        feed = Feed(self._intake, framer, self._options.source)
        try:
            with naming_errors(self._options.source, self._file.path):
                await self._outages.hold(self._file.path, lambda: self._read(framer, feed, identity))
        finally:
            feed.release()

    async def _read(self, framer: TableFramer, feed: Feed, identity: Identity) -> None:
        source, path, observer = self._options.source, self._file.path, self._intake.observer
        file = await to_thread.run_sync(self._open, framer.position)
        with contextlib.closing(file):
            if not identity.fits(file.head):
                raise CutBack
            stat, own = stat_of(file.status, self._file.stat.folder), identity_of(file.head)
            notes = notes_of(path, stat, own)
            self._book.write(framer.partition, notes)
            if not self._has_begun:
                self._has_begun = True
                observer.file_changed(source, path, "opened")
            try:
                await self._push_all(file, feed)
            except (Corrupt, TableError) as error:
                raise SourceError(source, f"{path}: {error}; the records before it were read") from error
            if file.rows_missing:
                raise CutBack
        await feed.end()
        self._book.write(framer.partition, replace(notes, end=feed.position, size=stat.size))
        observer.file_changed(source, path, "completed")

    def _open(self, row: int) -> TableFile:
        # For its errors alone, which say whether the file is gone or its file system is not mounted.
        open_found(self._options.source, self._file.path, self._file.stat).close()
        options, limit = self._options, self._intake.memory.capacity
        try:
            return TableFile(self._file.path, options.format, options.compression, batch_bytes_max=limit, row=row)
        except TableError as error:
            raise SourceError(self._options.source, f"{self._file.path}: {error}") from error

    async def _push_all(self, file: TableFile, feed: Feed) -> None:
        expected = BATCH_BYTES
        while True:
            await feed.room(expected)
            batch = await call_eagerly(file.read)
            if batch is None:
                return
            self._outages.cured(self._file.path)
            # How large the next batch is shows only when it is read: reckon with one like the last.
            expected = size_of(batch)
            await _push(batch, feed, self._intake.memory)


async def _push(batch: Any, feed: Feed, memory: MemoryBudget) -> None:
    """Push a batch in slices, so that a stop need not wait for room for all of it."""
    slices = _slices(batch)
    # The feed answers for the slice that it pushes. The others are in memory as well, so they stay on the budget.
    waiting = sum(map(size_of, slices[1:]))
    memory.take(waiting)
    try:
        for part in slices:
            if part is not slices[0]:
                memory.give(size_of(part))
                waiting -= size_of(part)
            await feed.push(part)
            # `push` shields itself, so that a stop would not show before the last slice.
            await checkpoint_if_cancelled()
    finally:
        memory.give(waiting)


def _slices(batch: Any) -> list[Any]:
    rows = max(1, min(ROWS_MAX, 2 * BATCH_BYTES * batch.num_rows // size_of(batch)))
    return [batch.slice(start, rows) for start in range(0, batch.num_rows, rows)]
