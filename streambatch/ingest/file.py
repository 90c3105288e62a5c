"""Records from files: read once, one file after the other, or followed as they grow.

A file is one partition, named by its path as found. Files that end are read in blocks of a bounded size, decompressed
or not, and no byte counts before its record has been framed: what a fault comes after has been handed over, what it
has torn is no record.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY
from types import TracebackType
from typing import Annotated, Literal, Self

import aiofiles
import anyio
import anyio.lowlevel
from aiofiles.threadpool.binary import AsyncFileIO
from anyio import to_thread
from pydantic import Field

from streambatch.codecs.framing import framing_for_format
from streambatch.errors import OptionError, SourceError
from streambatch.ingest.compression import MAGIC_BYTES, Corrupt, Unpacker, detect, unpacker
from streambatch.ingest.feed import Feed
from streambatch.ingest.follow import Follower
from streambatch.ingest.matching import find_files, kind_of, partition_name
from streambatch.ingest.opening import open_without_waiting
from streambatch.options import options
from streambatch.records import Framing, Intake, Partition
from streambatch.units import Duration, Size

BLOCK_BYTES = 1 << 20
"""The most that is read, or decompressed, at once."""
COMPRESSED_BYTES = 256 << 10
"""Compressed bytes read at once; held beside the budget, one such block per source."""


@options
class FileSource:
    """Reads files as they are now, sorted by name, or follows them: what is appended, new ones, across rotation."""

    path: str | list[str]
    """A path or glob, or a list of them; `**` reaches into folders below."""
    _: KW_ONLY
    name: str = "file"
    follow: bool = False
    """Keep reading what is appended, and files that appear."""
    read_from: Literal["beginning", "end"] = "beginning"
    """Where to start in a followed file that was there, never seen, when the source started."""
    rotate_wait: Annotated[Duration, Field(ge=0)] = 5.0
    """A renamed or deleted file that grew no more for so long is done."""
    compression: Literal["auto", "none", "gzip", "zstd", "xz", "bz2"] = "auto"
    """How files are compressed; `auto` looks into each. A followed file can't be."""
    format: Literal["jsonl", "csv", "length_prefixed", "arrow", "parquet"] = "jsonl"
    """How the bytes of a file become records; `arrow` is an IPC stream or file. Arrow and Parquet can't be followed."""
    max_record_bytes: Annotated[Size, Field(ge=1)] = 1 << 20
    """A longer record is not scored: it becomes a dead letter."""

    def __post_init__(self) -> None:
        if not all(self._patterns) or not self._patterns:
            raise OptionError("path", repr(self.path), "a path or glob, or a list of at least one, none of them empty")
        if self.follow and self.compression not in ("auto", "none"):
            raise OptionError("compression", f"{self.compression!r} with follow = true", "'auto' or 'none' with follow")
        if self.follow and self.format in ("arrow", "parquet"):
            found, allowed = f"{self.format!r} with follow = true", "jsonl, csv or length_prefixed with follow"
            raise OptionError("format", found, allowed)
        if not self.follow and self.read_from == "end":
            raise OptionError("read_from", "'end' with follow = false", "'beginning', or follow = true")

    @property
    def is_finite(self) -> bool:
        return not self.follow

    async def run(self, intake: Intake) -> None:
        """Read the files to their end, or follow them until cancelled.

        Raises SourceError that names the path, or the glob that nothing matches. Reading to the end needs asyncio.
        """
        framing = framing_for_format(self.format)
        if self.follow:
            return await self._follow(framing, intake)
        for path in await to_thread.run_sync(find_files, self.name, self._patterns):
            if self.format in ("arrow", "parquet"):
                await self._read_table(path, intake)
            else:
                await self._read(path, framing, intake)

    def acked(self, positions: Mapping[str, int]) -> None:
        """A file keeps what was read: there is nothing to do."""

    def revoke(self, partition: str) -> None:
        """A file is no other reader's: there is nothing to do."""

    @property
    def _patterns(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path

    async def _follow(self, framing: Framing, intake: Intake) -> None:
        follower = Follower(
            self.name,
            self._patterns,
            framing,
            intake,
            max_record_bytes=self.max_record_bytes,
            rotate_wait=self.rotate_wait,
            from_end=self.read_from == "end",
        )
        await follower.run()

    async def _read_table(self, path: str, intake: Intake) -> None:
        from streambatch.ingest.tables import read_table

        await read_table(self.name, path, self.format, self.compression, intake)

    async def _read(self, path: str, framing: Framing, intake: Intake) -> None:
        partition = Partition(self.name, partition_name(path))
        framer = framing.framer(partition, max_record_bytes=self.max_record_bytes)
        feed = Feed(intake, framer, self.name)
        try:
            async with InputFile(self.name, path, self.compression) as file:
                intake.observer.file_changed(self.name, path, "opened")
                await feed.room(BLOCK_BYTES)
                while block := await file.read(BLOCK_BYTES):
                    await feed.push(block)
                    await feed.room(BLOCK_BYTES)
                is_torn = file.has_shrunk()
                if is_torn:
                    intake.observer.file_changed(self.name, path, "truncated")
                await feed.end(cut_off=is_torn)
                intake.observer.file_changed(self.name, path, "completed")
        finally:
            feed.release()


class InputFile:
    """A file open for reading from its start, decompressed on the way. Raises SourceError with the path.

    A call under way in a thread is waited for also when cancelled: a handle closed under it could be another file's by
    the time it reads.
    """

    def __init__(self, source: str, path: str, compression: str) -> None:
        self._source, self._path, self._compression = source, path, compression
        self._handle: AsyncFileIO
        self._unpacker: Unpacker | None = None
        self._size = self._read_to = 0

    async def __aenter__(self) -> Self:
        with self._naming_errors(), anyio.CancelScope(shield=True):
            self._handle = await aiofiles.open(self._path, "rb", buffering=0, opener=open_without_waiting)
            try:
                await self._prepare()
            except BaseException:
                await self._handle.close()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self._handle.close()

    async def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`, none only at the end."""
        with self._naming_errors():
            if self._unpacker is None:
                return await self._read_raw(size)
            return await self._inflate(self._unpacker, size)

    def has_shrunk(self) -> bool:
        """Tell, at the end, whether the file has become shorter than it was, or than what was read."""
        return max(self._size, self._read_to) > os.fstat(self._handle.fileno()).st_size

    async def _prepare(self) -> None:
        status = os.fstat(self._handle.fileno())
        kind = kind_of(status.st_mode)
        if kind is not None:
            raise SourceError(self._source, f"{self._path} is {kind}, not a file")
        self._size = status.st_size
        compression = self._compression
        if compression == "auto":
            compression = detect(await to_thread.run_sync(os.pread, self._handle.fileno(), MAGIC_BYTES, 0))
        self._unpacker = unpacker(compression)

    async def _read_raw(self, size: int) -> bytes:
        with anyio.CancelScope(shield=True):
            block = await self._handle.read(size)
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._read_to += len(block)
        return block

    async def _inflate(self, unpacker: Unpacker, size: int) -> bytes:
        while True:
            while not unpacker.needs_input():
                block = await to_thread.run_sync(unpacker.inflate, size)
                if block:
                    return block
            compressed = await self._read_raw(COMPRESSED_BYTES)
            if not compressed:
                unpacker.end()
                return b""
            unpacker.give(compressed)

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SourceError(self._source, f"{self._path}: {error.strerror}") from error
        except OptionError as error:
            raise SourceError(self._source, f"{self._path}: {error}") from error
        except Corrupt as error:
            raise SourceError(self._source, f"{self._path}: {error}; the records before it were read") from error
