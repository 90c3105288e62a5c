"""Reads files to their end, one after the other, each from where an earlier run left it.

Records before a fault in a file are handed over; one that the fault tore is no record. A file that was read to its end,
and did not change since, is not opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import anyio
from anyio import to_thread
from msgspec.structs import replace

from streambatch.codecs.compression import compression_of
from streambatch.codecs.formats import TABLES, framing_for_format
from streambatch.connectors.files.globs import FileStat, check_not_empty, each_once, look
from streambatch.connectors.files.identity import HEAD_BYTES, NOTHING_KNOWN, Identity
from streambatch.connectors.files.input_file import BLOCK_BYTES, CutBack, InputFile, naming_errors, open_found
from streambatch.connectors.files.matching import FoundFile, match
from streambatch.connectors.files.notes import KnownFile, NoteBook, notes_of
from streambatch.connectors.files.options import ReadingOptions
from streambatch.connectors.files.outage import Outages
from streambatch.connectors.files.partitions import PartitionNames
from streambatch.connectors.files.searching import is_gone
from streambatch.core.backlog import Backlog, no_files
from streambatch.core.codec import Framer
from streambatch.core.feed import Feed
from streambatch.core.intake import Intake


class ResumePoint(NamedTuple):
    """Where reading begins in a file."""

    partition: str
    position: int
    """The records after it are read."""
    identity: Identity
    """What the file must be for the position to mean something in it."""


class Reading:
    """One run of a source that reads files to their end."""

    def __init__(self, options: ReadingOptions, intake: Intake, known: Sequence[KnownFile], book: NoteBook) -> None:
        self._options, self._intake, self._known, self._book = options, intake, known, book
        self._names = PartitionNames(each.partition for each in known)
        self._outages = Outages(options.source, intake.observer)
        self._sizes: list[int] = []
        self._done = 0
        self._opened: InputFile | None = None

    async def run(self) -> None:
        """Read all there is. Raises SourceError that names the path, or the glob that nothing matches."""
        files = await self._find()
        matches = match(self._known, files)
        await self._forget(matches.values())
        self._sizes = [file.stat.size for file in files]
        for at, file in enumerate(files):
            await self._go_on(file, matches.get(file.path))
            self._done, self._opened = at + 1, None

    def backlog(self) -> Backlog:
        """Return what files hold that was not read, by their lengths when they were found."""
        files, left = no_files(), self._sizes[self._done :]
        files["done"] = self._done
        if not left:
            return Backlog(0, files)
        files["held" if self._outages.lasts else "reading"] = 1
        files["waiting"] = len(left) - 1
        read = self._opened.read_to if self._opened is not None else 0
        return Backlog(max(0, left[0] - read) + sum(left[1:]), files)

    @property
    def _is_table(self) -> bool:
        return self._options.format in TABLES

    async def _find(self) -> list[FoundFile]:
        """Return the files by name, with what begins them where an earlier run knew some."""
        while True:
            sight = await to_thread.run_sync(look, self._options.source, self._options.patterns)
            seconds = self._outages.looked(sight.unseen)
            if not sight.unseen:
                break
            await anyio.sleep(seconds)
        check_not_empty(self._options.source, sight)
        found = []
        for path, stat in sorted(each_once(sight.stats).items()):
            # It costs an open for each file, in vain where there is no earlier run to compare with.
            head = await self._head(path, stat) if self._known else b""
            is_counted = not self._is_table and compression_of(head, self._options.compression) == "none"
            found.append(FoundFile(path, stat, head, stat.size if is_counted else None))
        return found

    async def _head(self, path: str, stat: FileStat) -> bytes:
        def read() -> bytes:
            with open_found(self._options.source, path, stat) as handle:
                return os.pread(handle.fileno(), HEAD_BYTES, 0)

        with naming_errors(self._options.source, path):
            return await self._outages.hold(path, lambda: to_thread.run_sync(read))

    async def _forget(self, found: Iterable[KnownFile]) -> None:
        """Forget files that are gone and have been read; what is left of others may come back."""
        seen = {each.partition for each in found}
        known = [each for each in self._known if each.partition not in seen and each.was_read]
        for each in await to_thread.run_sync(is_gone, known) if known else ():
            self._book.write(each.partition, None)

    async def _go_on(self, file: FoundFile, known: KnownFile | None) -> None:
        if known is None:
            return await self._read_new(file)
        if known.identity.fits(file.head) and known.is_unchanged(file.stat.size):
            notes = notes_of(file.path, file.stat, known.identity)
            self._book.write(known.partition, replace(notes, end=known.notes.end, size=known.notes.size))
            return
        try:
            await self._read(file, ResumePoint(known.partition, known.position, known.identity))
        except CutBack:
            self._intake.observer.file_changed(self._options.source, file.path, "truncated")
            self._book.write(known.partition, None)
            await self._read_new(file)

    async def _read_new(self, file: FoundFile) -> None:
        await self._read(file, ResumePoint(self._names.take(file.path), 0, NOTHING_KNOWN))

    async def _read(self, file: FoundFile, point: ResumePoint) -> None:
        if self._is_table:
            return await self._read_table(file, point)
        path, observer = file.path, self._intake.observer
        async with InputFile(self._options, path, file.stat, self._outages) as opened:
            opened.check(point.identity)
            self._opened = opened
            self._note(opened, point)
            feed = Feed(self._intake, await self._framer(opened, point), self._options.source)
            try:
                observer.file_changed(self._options.source, path, "opened")
                await feed.room(BLOCK_BYTES)
                while block := await opened.read(BLOCK_BYTES):
                    # Before the records: a checkpoint must never hold a position without what its file is known by.
                    self._note(opened, point)
                    await feed.push(block)
                    await feed.room(BLOCK_BYTES)
                if opened.has_shrunk:
                    observer.file_changed(self._options.source, path, "truncated")
                # Where a file was cut back, the last record may not be whole.
                await feed.end(cut_off=opened.has_shrunk)
                self._note(opened, point, feed.position)
                observer.file_changed(self._options.source, path, "completed")
            finally:
                feed.release()

    async def _framer(self, file: InputFile, point: ResumePoint) -> Framer:
        """Return a framer for what comes after the point, and bring the file there."""
        start = self._options.start_of(point.partition)
        framing = framing_for_format(self._options.format)
        framer = framing.framer_from(start)
        if not point.position:
            return framer
        columns, at = None, 0
        while framing.has_header and columns is None:
            block = await file.read(min(BLOCK_BYTES, point.position - at))
            if not block:
                raise CutBack
            at += len(block)
            # For the header alone: the records before the point were read by an earlier run.
            framer.feed(block, 0.0)
            columns = framer.columns
        await file.skip(point.position - at)
        return framing.framer_from(start.at(point.position, columns))

    def _note(self, file: InputFile, point: ResumePoint, end: int | None = None) -> None:
        notes = notes_of(file.path, file.stat, file.identity)
        if end is not None:
            notes = replace(notes, end=end, size=file.read_to)
        self._book.write(point.partition, notes)

    async def _read_table(self, file: FoundFile, point: ResumePoint) -> None:
        # Here, since importing pyarrow takes long, and only tables need it.
        from streambatch.connectors.files.table_reading import TableReading

        reading = TableReading(self._options, file, self._intake, self._outages, self._book)
        await reading.run(point.partition, point.position, point.identity)
