"""A spool at work: requests in, one fsync for all that came meanwhile, and their records out again, in order.

One task writes; it is the only one that changes anything on disk. One task reads: what was just written and is next is
handed over from memory, the rest is read back. Nothing is read that is not durable.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from pathlib import Path

import anyio
from anyio import to_thread

from streambatch.core.chunks import Chunk
from streambatch.core.clock import Clock
from streambatch.core.errors import SourceError
from streambatch.core.events import Observer
from streambatch.core.intake import Memory
from streambatch.core.spooling import SpoolFull, SpoolStatus
from streambatch.spool.disk import FULL, SpoolDisk, failed
from streambatch.spool.folder import Damaged, Found, Placed, Segment, SpoolFolder
from streambatch.spool.keys import SpoolKeys
from streambatch.spool.parts import Part, chunks_of, respooled, tally
from streambatch.spool.request import Unit

SEGMENT_BYTES = 16 << 20
SEGMENTS_MIN = 8
"""A spool has room for so many segments at least."""
GROUP_BYTES = 8 << 20
"""What is written with one fsync, and a request more."""
READ_BYTES = 256 << 10
SHARE = 16
"""One part in so many of the memory budget may wait to be written, and another one to be handed over."""
FREE_SHARE = 16
"""A spool with less than one part in so many to spare says that it is full, before anything large is begun."""
BLOCKED_SECONDS_MIN = 0.001
"""A wait for the writer shorter than this is not told to the observer."""

_log = logging.getLogger(__name__)


class SpoolLog:
    """The spool of one source; see the module.

    received: called with every chunk whose records have become durable, in order.
    """

    def __init__(
        self,
        source: str,
        folder: Path,
        *,
        max_bytes: int,
        window: float,
        memory: Memory,
        clock: Clock,
        observer: Observer,
        received: Callable[[Chunk], None],
        lost: Callable[[int], None],
    ) -> None:
        self._source, self._path, self._max_bytes, self._memory = source, folder, max_bytes, memory
        self._clock, self._observer, self._received, self._tell_lost = clock, observer, received, lost
        self.keys = SpoolKeys(folder, window)
        self._folder = SpoolFolder(folder, min(SEGMENT_BYTES, max_bytes // SEGMENTS_MIN), self.keys)
        self._share = memory.capacity // SHARE
        self._pending: deque[Unit] = deque()
        self._pending_held = self._pending_blocks = self.staged = 0
        self._ready: deque[tuple[Chunk | None, Placed, int]] = deque()
        self._ready_size = 0
        self._aside: list[tuple[Segment, anyio.Event]] = []
        self._acked = self._durable = self._read_to = 0
        self._at: Segment | None = None
        self._offset = self._read_of_segment = 0
        self._backlog = 0
        self._failure: Exception | None = None
        self._is_stopping = False
        self._disk = SpoolDisk(source, folder, clock, observer)
        self._for_writer, self._for_reader, self._room = anyio.Event(), anyio.Event(), anyio.Event()

    @property
    def has_room(self) -> bool:
        """Whether what is appended now, unless it is large, would not have to wait for space."""
        if self._disk.outage is not None or self._pending_held >= self._share:
            return False
        return self.used <= self._max_bytes - self._max_bytes // FREE_SHARE

    @property
    def end(self) -> int:
        """Where the records that are durable end."""
        return self._folder.records_end

    @property
    def used(self) -> int:
        """Bytes on disk, or on their way there."""
        return self._folder.size + self._pending_blocks + self.staged

    @property
    def status(self) -> SpoolStatus:
        return SpoolStatus(
            size=self._folder.size + self.staged,
            capacity=self._max_bytes,
            corrupt_segments=self._folder.corrupt,
            backlog_records=self._backlog,
            outage=self._disk.outage,
        )

    async def open(self, acked: int, known_to: int) -> Found:
        """Recover what is there; reading begins after `acked`. Raises SourceError."""
        self._acked = self._read_to = acked
        try:
            found = await to_thread.run_sync(self._folder.open, acked, known_to)
        except OSError as error:
            raise failed(self._source, self._path, error) from error
        self._durable = self._folder.position
        self._backlog = found.known + found.new
        return found

    async def append(self, unit: Unit) -> None:
        """Hand a request to the writer, in turn, once little enough waits to be written. Raises SourceError."""
        since = self._clock.monotonic()
        with anyio.CancelScope(shield=True):  # what was read is stored, also by a task that is told to stop
            while self._pending_held >= self._share and not self._disk.is_hurried and self._failure is None:
                await self._room.wait()
        waited = self._clock.monotonic() - since
        if waited > BLOCKED_SECONDS_MIN:
            self._observer.source_blocked(self._source, waited)
        if self._failure is not None:
            self._memory.give(unit.held)
            raise self._failure
        self._pending.append(unit)
        self._pending_held += unit.held
        self._pending_blocks += unit.block_bytes
        self._for_writer.set()

    def acked(self, position: int) -> None:
        """Learn that records up to a position are done with, durably."""
        self._acked = max(self._acked, position)
        if self._pending or self._is_tidy_due():
            self._for_writer.set()

    def hurry(self) -> None:
        """Have nobody wait for room any more, nor long for a full disk: who is to stop stores what was read."""
        self._disk.hurry()
        self._for_writer.set()
        self._wake_appenders()

    def stop(self) -> None:
        """Have the writer end once everything that was appended is durable, in a hurry; nothing is appended after."""
        self._is_stopping = True
        self.hurry()

    async def write(self) -> None:
        """Write until stopped. Raises SourceError when nothing can be stored any more."""
        try:
            while self._pending or not self._is_stopping:
                self._for_writer = anyio.Event()
                await self._tidy()
                if self._pending:
                    await self._write_group()
                elif not self._is_stopping:
                    await self._for_writer.wait()
        except OSError as error:
            self._failure = failed(self._source, self._path, error)
            raise self._failure from error
        except SourceError as error:
            self._failure = error
            raise
        finally:
            self._give_up()

    async def next(self) -> Chunk:
        """Wait for the next records and return them; they are on the memory budget. Raises SourceError."""
        while True:
            chunk = self.take_ready()
            if chunk is not None:
                return chunk
            if self._read_to < self._durable:
                await self._read_back()
            else:
                self._for_reader = anyio.Event()
                await self._for_reader.wait()

    def take_ready(self) -> Chunk | None:
        """Return the next records if they are in memory."""
        while self._ready:
            chunk, placed, end = self._ready.popleft()
            if placed.segment is not self._at:
                self._at, self._read_of_segment = placed.segment, 0
            self._offset, self._read_to = placed.next_offset, max(self._read_to, end)
            if chunk is not None:
                self._ready_size -= chunk.size
                self._read_of_segment += chunk.count
                self._backlog -= chunk.count
                return chunk
        return None

    async def close(self) -> None:
        """Let go of everything; the writer has ended."""
        for chunk, _, _ in self._ready:
            if chunk is not None:
                self._memory.give(chunk.size)
        self._ready.clear()
        await to_thread.run_sync(self._folder.close)

    async def _tidy(self) -> None:
        """Put aside what was found damaged, and remove what is acked."""
        while self._aside:
            segment, done = self._aside.pop()
            await to_thread.run_sync(self._folder.put_aside, segment)
            told = {"event": "spool_damaged", "fields": {"source": self._source, "path": str(segment.path)}}
            _log.error(
                "source %s: its spool was damaged; what is left is in %s", self._source, segment.path, extra=told
            )
            done.set()
        if self._is_tidy_due():
            if self._is_crowded():
                await to_thread.run_sync(self._folder.roll)
            await self._disk.do(partial(self._folder.remove, self._acked, self._clock.wall()), can_wait=True)

    def _is_tidy_due(self) -> bool:
        return bool(self._folder.removable(self._acked)) or self._is_crowded()

    def _is_crowded(self) -> bool:
        """Tell whether the segment that is written must make room, being acked already."""
        is_large = 2 * self._folder.size > self._max_bytes or (
            bool(self._pending) and not self._fits(self._pending[0].block_bytes)
        )
        return is_large and self._folder.is_done(self._acked)

    def _fits(self, block_bytes: int) -> bool:
        """Tell whether there is room; an empty spool takes whatever is next."""
        return self._folder.size == 0 or block_bytes <= self._space()

    def _space(self) -> float:
        """Return how much there is room for; a stop stores what was read, however much that is.

        What is staged takes its room until it is let go: while it is copied, it is on disk twice.
        """
        return inf if self._disk.is_hurried else self._max_bytes - self._folder.size - self.staged

    async def _write_group(self) -> None:
        """Write what waits, as much as fits, with one fsync; wait where nothing does."""
        if not self._fits(self._pending[0].block_bytes):
            await self._for_writer.wait()
            return
        group: list[Unit] = []
        size, room = 0, self._space()  # once: it adds up all segments
        for unit in self._pending:
            if group and (size >= GROUP_BYTES or size + unit.block_bytes > room):
                break
            group.append(unit)
            size += unit.block_bytes
        try:
            placed = await self._disk.do(partial(self._folder.append, [unit.request for unit in group]))
        except OSError as error:
            if error.errno not in FULL or not all(unit.is_awaited for unit in group):
                raise
            self._refuse(group, error)
            return
        self._durable = self._folder.position
        at = iter(placed or ())
        for unit in group:
            self._pending.popleft()
            self._stored(unit, at)
        self._for_reader.set()
        self._wake_appenders()

    def _refuse(self, group: Sequence[Unit], error: OSError) -> None:
        """Tell those who wait for what a full disk did not take; they still have it."""
        for unit in group:
            self._pending.popleft()
            self._pending_held -= unit.held
            self._pending_blocks -= unit.block_bytes
            self._memory.give(unit.held)
            unit.settle(SpoolFull(f"the spool can't be written: {error.strerror}"))

    def _stored(self, unit: Unit, placed: Iterator[Placed]) -> None:
        """Count a unit that has become durable, and keep of it in memory what is next."""
        for part, chunk in zip(unit.request.parts, unit.chunks, strict=True):
            where = next(placed)
            if part.count:
                self._backlog += part.count
                self._received(tally(self._source, part.count, part.size, where.base, self._clock.monotonic()))
            self._keep(chunk, part, where)
        if unit.request.key is not None:
            self.keys.add(unit.request.parts[-1].arrived_at, unit.request.key)
        self._pending_held -= unit.held
        self._pending_blocks -= unit.block_bytes
        unit.settle()

    def _keep(self, chunk: Chunk | None, part: Part, where: Placed) -> None:
        reached = self._ready[-1][2] if self._ready else self._read_to
        is_next = where.base == reached and self._ready_size < self._share and (chunk is not None or not part.count)
        if is_next:
            again = None if chunk is None else respooled(self._source, chunk, where.base)
            self._ready.append((again, where, where.base + part.size))
            self._ready_size += part.size if chunk is not None else 0
        elif chunk is not None:
            self._memory.give(chunk.size)

    async def _read_back(self) -> None:
        """Read what is next from disk into memory; put the segment aside that turns out to be damaged."""
        segment = self._segment_to_read()
        if segment is None:
            self._read_to = self._durable  # what lies between was put aside earlier
            return
        limit = segment.length
        await self._memory.reserve(READ_BYTES)
        chunks: list[Chunk] = []
        try:
            read = partial(self._folder.read, segment, self._offset, limit, READ_BYTES)
            data, heads = await to_thread.run_sync(read)
            wall, now = self._clock.wall(), self._clock.monotonic()
            chunks = chunks_of(self._source, data, heads, self._read_to, wall=wall, now=now)
        except Damaged:
            await self._pass_over(segment)
            return
        except OSError as error:
            raise failed(self._source, self._path, error) from error
        finally:
            self._memory.take(sum(chunk.size for chunk in chunks))
            self._memory.give(READ_BYTES)
        self._offset += heads[-1].next_offset
        self._read_to = max(self._read_to, heads[-1].end)
        for chunk in chunks:
            self._ready.append((chunk, Placed(segment, self._offset, chunk.base), self._read_to))
            self._ready_size += chunk.size

    def _segment_to_read(self) -> Segment | None:
        at = self._at
        if at is not None and self._offset < at.length and at.end > self._read_to:
            return at
        for segment in tuple(self._folder.segments):
            if segment.end > self._read_to and segment is not at:
                self._at, self._offset, self._read_of_segment = segment, 0, 0
                self._read_to = max(self._read_to, segment.first)
                return segment
        return None

    async def _pass_over(self, segment: Segment) -> None:
        if not segment.is_aside:
            done = anyio.Event()
            self._aside.append((segment, done))
            self._for_writer.set()
            await done.wait()
        lost = segment.records - self._read_of_segment
        self._backlog -= lost
        self._tell_lost(lost)
        self._read_to = max(self._read_to, segment.end)

    def _give_up(self) -> None:
        """Tell everybody who waits for the writer that it has ended."""
        error = self._failure = self._failure or SourceError(self._source, "its spool is closed")
        for unit in self._pending:
            self._memory.give(unit.held)
            unit.settle(error)
        self._pending.clear()
        self._wake_appenders()

    def _wake_appenders(self) -> None:
        self._room.set()
        self._room = anyio.Event()
