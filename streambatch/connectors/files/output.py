"""Writes payloads to a file sink's output: a container inside files that are closed by size and age.

A payload is in exactly one file, or, when its write raises, in none. It counts as durable once it can be read from a
file that was synced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from anyio import to_thread

from streambatch.codecs.containers import HEAD_BYTES, Compression, Container, Misfit
from streambatch.codecs.formats import TABLES, OutputFormat, container_for
from streambatch.core.clock import Clock
from streambatch.core.errors import SinkError
from streambatch.storage.segments import Rotation, SegmentedFile

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Options of an output."""

    path: Path
    owner: str
    """The sink's name, for messages."""
    format: OutputFormat
    compression: Compression
    rotation: Rotation | None
    """When segments are closed; None with one file."""

    @property
    def is_plain(self) -> bool:
        """Whether it is text as people read it, to which lines can be added."""
        return self.format not in TABLES and self.compression == "none"


class Output:
    """What one sink has written and how much of it is durable. One task writes and closes; any may sync."""

    def __init__(self, options: OutputOptions, clock: Clock) -> None:
        self.options = options
        self.file = SegmentedFile(options.path, options.owner, options.rotation, clock)
        self.written = self.durable = 0
        """Payloads since `open`."""
        self._container: Container | None = None

    def begin(self, header: bytes) -> None:
        """Set what a fresh file starts with, before the file is opened."""
        self.written = self.durable = 0
        self._container = container_for(self.options.format, self.options.compression, header)
        columns = f", {header.decode(errors='replace').strip()}" if header else ""
        self.file.layout = f"{self.options.format} (compression {self.options.compression}{columns})"
        self.file.is_whole_only = self._container.is_whole_only

    async def resume(self) -> None:
        """Continue after the content of the open file. Raises SinkError."""
        head = await self.file.file.head(HEAD_BYTES)
        try:
            self._opened().resume(head)
        except (ValueError, OSError) as error:
            raise SinkError(self.options.owner, f"{self.file.open_path} can't be continued: {error}") from error
        self.file.begin_record()

    async def write_header(self) -> None:
        """Start the file without a record."""
        await self.file.write(self._opened().add(b"", is_first=True))

    async def write(self, payload: bytes) -> None:
        """Add a payload; when it raises, nothing of it is there. Closes the segment first if it would grow too large
        or is old enough. Raises SinkError."""
        if not payload:
            return
        await self._make_room(len(payload))
        block = await self._laid_out(payload)
        if block:
            # Its size in the file's layout is known only now. For the next segment it is laid out again.
            if self.file.is_due(len(block)):
                await self._roll()
                block = await self._laid_out(payload)
            await self.file.write(block)
        self.file.begin_record()
        self.written += 1

    async def close_due(self) -> None:
        """Close the segment if it is old enough. Raises SinkError; may then be called again."""
        if self.file.is_due():
            await self._roll()

    async def sync(self) -> int:
        """Sync. Returns the bytes that this output wrote to files."""
        # As of now: a write that comes during the sync may not be part of it.
        written = self.written
        length = await self.file.sync()
        # A file such as Parquet can't be read before it is closed: synced, it is not durable yet.
        if not self._opened().is_whole_only:
            self.durable = max(self.durable, written)
        return length

    async def finish(self) -> None:
        """Complete what is open. Raises SinkError; may then be called again."""
        await self._end_file()
        await self.file.finish()
        if self.file.rotation is not None:
            self._opened().begin()
        self.durable = self.written

    async def close(self) -> None:
        """Give the file back as it is; does nothing when it is not open."""
        self._container = None
        await self.file.close()

    async def _make_room(self, size: int) -> None:
        """Write what belongs before the next payload, and close the segment if that is due or was tried in vain."""
        container = self._opened()
        await self.file.begin()
        await self._put_backlog()
        if container.is_ended and self.file.rotation is None:
            raise SinkError(self.options.owner, f"{self.file.path} was completed")
        # A container that is ended belongs to a segment whose closing failed half-way: it is closed now.
        if container.is_ended or self.file.is_due(container.held + size if container.is_whole_only else 0):
            await self._roll()

    async def _roll(self) -> None:
        await self._end_file()
        await self.file.close_segment()
        self._opened().begin()
        self.durable = self.written
        await self.file.begin()

    async def _end_file(self) -> None:
        if self.file.has_records:
            await self._run(self._opened().end)
            await self._put_backlog()

    async def _put_backlog(self) -> None:
        container = self._opened()
        if backlog := container.backlog:
            await self.file.write(backlog)
            # Only now: a write that fails is tried again with the same bytes.
            container.backlog = b""

    async def _laid_out(self, payload: bytes) -> bytes:
        """Return what to write for a payload; where its columns don't fit the file's, begin the next file for it."""
        try:
            return await self._add(payload)
        except Misfit as misfit:
            if self.file.rotation is None:
                hint = "set rotate, and a new segment begins for them"
                raise SinkError(self.options.owner, f"{self.file.path}: {misfit}; {hint}") from None
        await self._roll()
        try:
            return await self._add(payload)
        except Misfit as misfit:
            raise SinkError(self.options.owner, f"{self.file.path}: {misfit}") from None

    async def _add(self, payload: bytes) -> bytes:
        container, is_first = self._opened(), self.file.length == 0
        return await self._run(lambda: container.add(payload, is_first=is_first))

    async def _run(self, call: Callable[[], T]) -> T:
        # A quick call costs less than a thread's turn.
        return call() if self._opened().is_quick else await to_thread.run_sync(call)

    def _opened(self) -> Container:
        if self._container is None:
            raise SinkError(self.options.owner, f"{self.file.path} is not open")
        return self._container
