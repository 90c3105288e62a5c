"""The task that reads a spool: what was just written and is next comes from memory, the rest is read back from disk.

Nothing is handed out that is not durable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

from anyio import to_thread

from streambatch.core.chunks import Chunk
from streambatch.core.clock import Clock
from streambatch.core.intake import Memory
from streambatch.core.signal import Signal
from streambatch.spool.blocks import NewBlock, chunks_of, respooled
from streambatch.spool.folder import BlockPlace, SegmentDamaged, SpoolFolder, SpoolSegment

READ_BYTES = 256 << 10


class _Ready(NamedTuple):
    """Records in memory that are next; a block without records has no chunk."""

    chunk: Chunk | None
    place: BlockPlace
    end: int
    """The position where they end."""


class _Cursor:
    """Where the next read begins: the segment, the offset there, how many of its records came before."""

    __slots__ = ("offset", "records", "segment")

    def __init__(self, segment: SpoolSegment | None = None) -> None:
        self.segment = segment
        self.offset = self.records = 0


class SpoolReader:
    """Hands out the records of a spool, in order."""

    def __init__(
        self,
        source: str,
        folder: SpoolFolder,
        memory: Memory,
        clock: Clock,
        *,
        ready_max: int,
        put_aside: Callable[[SpoolSegment], Awaitable[None]],
        lost: Callable[[int], None],
    ) -> None:
        """ready_max: bytes of records that are kept in memory once they are durable. put_aside: puts a damaged segment
        aside. lost: takes how many records went with it."""
        self._source, self._folder, self._memory, self._clock = source, folder, memory, clock
        self._ready_max, self._put_aside, self._lost = ready_max, put_aside, lost
        self.backlog = 0
        """Records that are durable and were not handed out."""
        self._ready: deque[_Ready] = deque()
        self._ready_size = 0
        self._cursor = _Cursor()
        self._read_to = self._durable_to = 0
        self._advanced = Signal()

    def begin(self, acked: int, durable_to: int, backlog: int) -> None:
        """Begin after the records that are acked."""
        self._read_to, self._durable_to, self.backlog = acked, durable_to, backlog

    def advance(self, durable_to: int) -> None:
        """Take note that records up to a position are durable."""
        self._durable_to = durable_to
        self._advanced.notify()

    def keep(self, chunk: Chunk | None, block: NewBlock, place: BlockPlace) -> None:
        """Keep records that have become durable in memory, if they are next and few enough; else let them go."""
        reached = self._ready[-1].end if self._ready else self._read_to
        is_next = place.base == reached and self._ready_size < self._ready_max
        if is_next and (chunk is not None or not block.count):
            again = None if chunk is None else respooled(self._source, chunk, place.base)
            self._ready.append(_Ready(again, place, place.base + block.size))
            self._ready_size += block.size if chunk is not None else 0
        elif chunk is not None:
            self._memory.give(chunk.size)

    async def next(self) -> Chunk:
        """Wait for the next records and return them; they are on the memory budget. Raises OSError."""
        while True:
            chunk = self.take_ready()
            if chunk is not None:
                return chunk
            if self._read_to < self._durable_to:
                await self._read_back()
            else:
                await self._advanced.wait()

    def take_ready(self) -> Chunk | None:
        """Return the next records if they are in memory."""
        while self._ready:
            chunk, place, end = self._ready.popleft()
            if place.segment is not self._cursor.segment:
                self._cursor = _Cursor(place.segment)
            self._cursor.offset, self._read_to = place.next_offset, max(self._read_to, end)
            if chunk is not None:
                self._ready_size -= chunk.size
                self._cursor.records += chunk.count
                self.backlog -= chunk.count
                return chunk
        return None

    def close(self) -> None:
        """Let go of what is in memory."""
        for chunk, _, _ in self._ready:
            if chunk is not None:
                self._memory.give(chunk.size)
        self._ready.clear()

    async def _read_back(self) -> None:
        """Read what is next from disk into memory; put the segment aside that turns out to be damaged."""
        segment = self._segment_to_read()
        if segment is None:
            self._read_to = self._durable_to  # what lies between was put aside earlier
            return
        cursor, limit = self._cursor, segment.length
        await self._memory.reserve(READ_BYTES)
        chunks: list[Chunk] = []
        try:
            data, headers = await to_thread.run_sync(
                partial(self._folder.read, segment, cursor.offset, limit, READ_BYTES)
            )
            wall, now = self._clock.wall(), self._clock.monotonic()
            chunks = chunks_of(self._source, data, headers, self._read_to, wall=wall, now=now)
        except SegmentDamaged:
            await self._pass_over(segment)
            return
        finally:
            self._memory.take(sum(chunk.size for chunk in chunks))
            self._memory.give(READ_BYTES)
        cursor.offset += headers[-1].next_offset
        self._read_to = max(self._read_to, headers[-1].end)
        for chunk in chunks:
            self._ready.append(_Ready(chunk, BlockPlace(segment, cursor.offset, chunk.base), self._read_to))
            self._ready_size += chunk.size

    def _segment_to_read(self) -> SpoolSegment | None:
        at = self._cursor.segment
        if at is not None and self._cursor.offset < at.length and at.end > self._read_to:
            return at
        for segment in tuple(self._folder.segments):
            if segment.end > self._read_to and segment is not at:
                self._cursor = _Cursor(segment)
                self._read_to = max(self._read_to, segment.first)
                return segment
        return None

    async def _pass_over(self, segment: SpoolSegment) -> None:
        """Go on after a damaged segment; what was not read of it is lost."""
        if not segment.is_aside:
            await self._put_aside(segment)
        lost = segment.records - self._cursor.records
        self.backlog -= lost
        self._lost(lost)
        self._read_to = max(self._read_to, segment.end)
