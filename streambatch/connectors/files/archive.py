"""Finds the files that a run has read, whatever their names are now, and reads their records again. Blocking.

A file is found by its first bytes. Records are read on demand, a block at a time, so that partitions can be read side
by side in any order.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from typing import BinaryIO, NamedTuple

import msgspec

from streambatch.codecs.compression import Corrupt, compression_of, detect, unpacker
from streambatch.codecs.formats import TABLES, framing_for_format
from streambatch.connectors.files.globs import folders_of
from streambatch.connectors.files.identity import HEAD_BYTES, Identity
from streambatch.connectors.files.notes import FileNotes
from streambatch.connectors.files.options import ReadingOptions
from streambatch.connectors.files.partitions import partition_name
from streambatch.core.archive import Archive, ArchivedPartition
from streambatch.core.checkpoints import PartitionNotes
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.codec import Framer

_BLOCK_BYTES = 1 << 20


class ArchivedFile(NamedTuple):
    """The file of a partition."""

    path: str
    compression: str
    """How it is compressed now: it may have been since it was read."""


class Candidate:
    """A file that may be the one that was read."""

    def __init__(self, path: str, inode: int, option: str) -> None:
        self.path, self.inode, self._option = path, inode, option

    @cached_property
    def head(self) -> bytes:
        """Its first bytes."""
        with open(self.path, "rb") as file:
            return file.read(HEAD_BYTES)

    @property
    def compression(self) -> str:
        """Its compression, by the source's option. Raises OSError."""
        return compression_of(self.head, self._option)

    def fitting(self, identity: Identity) -> ArchivedFile | None:
        """Return the file if its first bytes fit, as they are or once unpacked. Raises OSError."""
        if identity.fits(self.head):
            return ArchivedFile(self.path, self.compression)
        # It may have been compressed since it was read, as rotated logs are.
        packed = detect(self.head)
        if packed != "none" and identity.length:
            with suppress(Corrupt), open(self.path, "rb") as file:
                if identity.fits(next(_unpacked(file, packed, HEAD_BYTES), b"")):
                    return ArchivedFile(self.path, packed)
        return None


class FileArchive(Archive):
    """The files that match the path of a source, and the other files in their folders."""

    def __init__(self, options: ReadingOptions) -> None:
        self._options = options
        self._seen: dict[tuple[int, int], Candidate] = {}
        self._folders: set[str] = set()
        for pattern in options.patterns:
            for path in glob.glob(pattern, recursive=True):
                self._add(path)
                # A file that was renamed since lies in the same folder, under a name that may not match.
                self._add_folder(os.path.dirname(path))
            # The folder of a pattern that matches nothing any more.
            if not glob.has_magic(os.path.dirname(pattern)):
                self._add_folder(os.path.dirname(pattern))

    def find(self, partition: str, notes: PartitionNotes) -> FilePartition | None:
        """Return the file that a run noted so; None if it is no longer there."""
        file = self._find(msgspec.convert({"path": partition, **notes}, FileNotes))
        return None if file is None else FilePartition(self._options, partition, file)

    def _find(self, notes: FileNotes) -> ArchivedFile | None:
        for folder in folders_of(notes.path, notes.home):
            self._add_folder(folder)
        identity = notes.identity
        by_path = [each for each in self._seen.values() if partition_name(each.path) == notes.path]
        by_inode = [each for each in self._seen.values() if each.inode == notes.inode]
        if identity.length:
            # Files may begin alike: of those that do, inode and path say which was read.
            for candidate in (*(each for each in by_inode if each in by_path), *by_inode, *by_path):
                if found := _fitting(candidate, identity):
                    return found
            for candidate in sorted(self._seen.values(), key=lambda each: each.path):
                if found := _fitting(candidate, identity):
                    return found
        # No file has those first bytes: the one of that name, or that inode, was changed.
        for candidate in (*by_path, *by_inode):
            with suppress(OSError):
                return ArchivedFile(candidate.path, candidate.compression)
        return None

    def _add_folder(self, folder: str) -> None:
        if folder in self._folders:
            return
        self._folders.add(folder)
        with suppress(OSError), os.scandir(folder or ".") as entries:
            for entry in entries:
                self._add(os.path.join(folder, entry.name))

    def _add(self, path: str) -> None:
        with suppress(OSError):
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                candidate = Candidate(path, status.st_ino, self._options.compression)
                # A file counts once, however many names lead to it.
                self._seen.setdefault((status.st_dev, status.st_ino), candidate)


class FilePartition(ArchivedPartition):
    """The records of one file."""

    def __init__(self, options: ReadingOptions, partition: str, file: ArchivedFile) -> None:
        self.location, self._options, self._partition, self._file = file.path, options, partition, file

    def chunks(self, first: int, last: int) -> Iterator[Chunk]:
        """Yield the records between two positions. Raises OSError, Corrupt or ValueError for what can't be read."""
        return self._rows(first, last) if self._options.format in TABLES else self._records(first, last)

    def columns(self) -> tuple[str, ...] | None:
        """Return the columns in the header of a CSV file; None if it can't be read."""
        with suppress(OSError, Corrupt), open(self._file.path, "rb") as file:
            return self._header(file)
        return None

    def _header(self, file: BinaryIO) -> tuple[str, ...] | None:
        framer = framing_for_format(self._options.format).framer_from(self._options.start_of(self._partition))
        for block in _unpacked(file, self._file.compression, _BLOCK_BYTES):
            framer.feed(block, 0.0)
            if (columns := framer.columns) is not None:
                return columns
        return None

    def _records(self, first: int, last: int) -> Iterator[Chunk]:
        with open(self._file.path, "rb") as file:
            framer, at = self._framer(file, first), first
            file.seek(0)
            for block in _from(file, self._file.compression, at):
                wanted = block[: last - at]
                at += len(wanted)
                yield from framer.feed(wanted, 0.0)
                if at >= last:
                    break
            # `last` is where a record ends: the framer holds nothing now but a last line without an ending.
            yield from framer.end(0.0)

    def _framer(self, file: BinaryIO, first: int) -> Framer:
        """Return a framer for the records after position `first`."""
        framing, start = framing_for_format(self._options.format), self._options.start_of(self._partition)
        if not first or not framing.has_header:
            return framing.framer_from(start.at(first))
        columns = self._header(file)
        if columns is None:
            raise ValueError("it no longer has a header")
        return framing.framer_from(start.at(first, columns))

    def _rows(self, first: int, last: int) -> Iterator[Chunk]:
        # Here, since importing pyarrow takes long, and only tables need it.
        from streambatch.connectors.files.table_file import TableError, TableFile
        from streambatch.connectors.files.table_reading import TableFramer

        framer = TableFramer(Partition(self._options.source, self._partition), first)
        path, format, compression = self._file.path, self._options.format, self._file.compression
        try:
            table = TableFile(path, format, compression, batch_bytes_max=1 << 40, row=first)
            try:
                while framer.position < last and (batch := table.read()) is not None:
                    yield from framer.feed(batch.slice(0, last - framer.position), 0.0)
            finally:
                table.close()
        except TableError as error:
            raise ValueError(str(error)) from error


def _fitting(candidate: Candidate, identity: Identity) -> ArchivedFile | None:
    with suppress(OSError):
        return candidate.fitting(identity)
    return None


def _from(file: BinaryIO, compression: str, position: int) -> Iterator[bytes]:
    """Yield the bytes after a position of the unpacked file."""
    if compression == "none":
        file.seek(position)
        yield from _unpacked(file, compression, _BLOCK_BYTES)
        return
    # Compressed data has no random access: everything before the position is unpacked and dropped.
    for block in _unpacked(file, compression, _BLOCK_BYTES):
        skipped = min(position, len(block))
        position -= skipped
        if skipped < len(block):
            yield block[skipped:]


def _unpacked(file: BinaryIO, compression: str, size: int) -> Iterator[bytes]:
    """Yield blocks of up to `size` bytes. Raises Corrupt."""
    unpack = unpacker(compression)
    while block := file.read(_BLOCK_BYTES // 4 if unpack else size):
        if unpack is None:
            yield block
            continue
        unpack.give(block)
        while not unpack.needs_input():
            if part := unpack.inflate(size):
                yield part
    if unpack is not None:
        unpack.end()
