"""Read the records of a partition again, from the first to the last position that a run read, as its source did.

The file is found by the hash of its first bytes, whatever its name is now. Records are read on demand, a block at a
time, so that partitions can be read side by side in any order. Blocking.
"""

from __future__ import annotations

import glob
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple

import msgspec

from streambatch.codecs.compression import Corrupt, compression_of, detect, unpacker
from streambatch.codecs.formats import TABLES, framing_for_format
from streambatch.connectors.files.globs import folders_of
from streambatch.connectors.files.identity import HEAD_BYTES, Identity
from streambatch.connectors.files.notes import FileNotes
from streambatch.connectors.files.partitions import partition_name
from streambatch.connectors.files.source import FileSource
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.codec import Framer, FramerStart

_BLOCK_BYTES = 1 << 20


class FoundFile(NamedTuple):
    """The file of a partition. compression: how it is compressed now. is_changed: whether its first bytes differ."""

    path: str
    compression: str
    is_changed: bool


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

    def fitting(self, identity: Identity) -> FoundFile | None:
        """Return the file if its first bytes fit, as they are or once unpacked. Raises OSError."""
        if identity.fits(self.head):
            return FoundFile(self.path, self.compression, False)
        packed = detect(self.head)
        if packed != "none" and identity.length:
            with suppress(Corrupt), open(self.path, "rb") as file:
                if identity.fits(next(_unpacked(file, packed, HEAD_BYTES), b"")):
                    return FoundFile(self.path, packed, False)
        return None


class SourceFiles:
    """The files that match the path of a source, and the other files in their folders."""

    def __init__(self, source: FileSource) -> None:
        self._compression = source.compression
        self._seen: dict[tuple[int, int], Candidate] = {}
        self._folders: set[str] = set()
        for pattern in source.patterns:
            for path in glob.glob(pattern, recursive=True):
                self._add(path)
                self._add_folder(os.path.dirname(path))
            if not glob.has_magic(os.path.dirname(pattern)):
                self._add_folder(os.path.dirname(pattern))

    def find(self, notes: FileNotes) -> FoundFile | None:
        """Return the file that a run noted so; None if it is no longer there."""
        for folder in folders_of(notes.path, notes.home):
            self._add_folder(folder)
        identity = notes.identity
        by_path = [each for each in self._seen.values() if partition_name(each.path) == notes.path]
        by_inode = [each for each in self._seen.values() if each.inode == notes.inode]
        if identity.length:
            for candidate in (*(each for each in by_inode if each in by_path), *by_inode, *by_path):
                if found := _fitting(candidate, identity):
                    return found
            for candidate in sorted(self._seen.values(), key=lambda each: each.path):
                if found := _fitting(candidate, identity):
                    return found
        # No file has those first bytes: the one of that name, or that inode, was changed.
        for candidate in (*by_path, *by_inode):
            with suppress(OSError):
                return FoundFile(candidate.path, candidate.compression, identity.length > 0)
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
                self._seen.setdefault((status.st_dev, status.st_ino), Candidate(path, status.st_ino, self._compression))


class PartitionReader:
    """The records of a partition between two positions, taken in order."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks = chunks
        self._next: Chunk | None = None
        self._digest: Any = None
        self.problem: str | None = None
        """Why the partition can't be read to the end, if it can't."""

    @property
    def digest(self) -> str | None:
        """The digest of all records taken so far, as a run records it; None before the first."""
        return self._digest.hexdigest() if self._digest is not None else None

    def take(self, start: int, end: int) -> list[Chunk]:
        """Return the records that end after `start`, none later than `end`."""
        self._take(start)
        return self._take(end)

    def finish(self, last: int) -> None:
        """Take the records that are left, so that the digest covers them."""
        self._take(last)

    def _take(self, end: int) -> list[Chunk]:
        taken = []
        while (chunk := self._peek()) is not None:
            count = bisect_right(range(chunk.count), end, key=chunk.position_of)
            if count == 0:
                break
            if count < chunk.count:
                taken.append(chunk.split_off(count))
                break
            taken.append(chunk)
            self._next = None
        return taken

    def _peek(self) -> Chunk | None:
        if self._next is None and self.problem is None:
            try:
                self._next = next(self._chunks, None)
            except (OSError, Corrupt, ValueError) as error:
                self.problem = str(error)
            if self._next is not None:
                if self._digest is None:
                    self._digest = self._next.digest()
                self._digest.update(self._next.digestible())
        return self._next


def reread(source: FileSource, file: FoundFile, partition: str, first: int, last: int) -> PartitionReader:
    """Return the records of a file between two positions."""
    key = Partition(source.name, partition)
    if source.format in TABLES:
        return PartitionReader(_rows(source, file, key, first, last))
    return PartitionReader(_records(source, file, key, first, last))


def gap_is_empty(source: FileSource, file: FoundFile, partition: str, start: int, end: int) -> bool:
    """Whether no record lies between two positions, but only blank lines, say."""
    reading = reread(source, file, partition, start, end)
    return not reading.take(start, end) and reading.problem is None


def columns_in(source: FileSource, file: FoundFile) -> tuple[str, ...] | None:
    """Return the columns in the header of a CSV file; None if it can't be read."""
    framer = framing_for_format(source.format).framer(Partition(source.name, ""), max_record_bytes=1 << 20)
    with suppress(OSError, Corrupt), open(file.path, "rb") as opened:
        for block in _unpacked(opened, file.compression, _BLOCK_BYTES):
            framer.feed(block, 0.0)
            if (columns := framer.columns) is not None:
                return columns
    return None


def notes_from(identity: Mapping[str, Any], partition: str) -> FileNotes:
    """Return the notes of a file from a manifest."""
    return msgspec.convert({"path": partition, **identity}, FileNotes)


def _fitting(candidate: Candidate, identity: Identity) -> FoundFile | None:
    with suppress(OSError):
        return candidate.fitting(identity)
    return None


def _records(source: FileSource, file: FoundFile, partition: Partition, first: int, last: int) -> Iterator[Chunk]:
    with open(file.path, "rb") as opened:
        framer, at = _framer(source, opened, file.compression, partition, first)
        opened.seek(0)
        for block in _from(opened, file.compression, at):
            wanted = block[: last - at]
            at += len(wanted)
            yield from framer.feed(wanted, 0.0)
            if at >= last:
                break
        yield from framer.end(0.0)


def _framer(
    source: FileSource, file: BinaryIO, compression: str, partition: Partition, first: int
) -> tuple[Framer, int]:
    """Return a framer for the records after position `first`, and the position to read from."""
    framing = framing_for_format(source.format)
    start = FramerStart(partition=partition, max_record_bytes=source.max_record_bytes)
    if not first or not framing.has_header:
        return framing.framer_from(start.at(first)), first
    framer = framing.framer_from(start)
    for block in _unpacked(file, compression, _BLOCK_BYTES):
        framer.feed(block, 0.0)
        if (columns := framer.columns) is not None:
            return framing.framer_from(start.at(first, columns)), first
    raise ValueError("it no longer has a header")


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


def _rows(source: FileSource, file: FoundFile, partition: Partition, first: int, last: int) -> Iterator[Chunk]:
    from streambatch.connectors.files.table_file import TableError, TableFile
    from streambatch.connectors.files.table_reading import TableFramer

    framer = TableFramer(partition, first)
    try:
        table = TableFile(file.path, source.format, file.compression, batch_bytes_max=1 << 40, row=first)
        try:
            while framer.position < last and (batch := table.read()) is not None:
                yield from framer.feed(batch.slice(0, last - framer.position), 0.0)
        finally:
            table.close()
    except TableError as error:
        raise ValueError(str(error)) from error
