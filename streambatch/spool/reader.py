"""The task that reads a spool: records just written come from memory if they are next, others are read back from disk.

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
from streambatch.core.intake import MemoryBudget
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


class _ReadyChunks:
    """The records in memory, in order."""

    __slots__ = ("_chunks", "_size", "_size_max")

    def __init__(self, size_max: int) -> None:
        self._chunks: deque[_Ready] = deque()
        self._size, self._size_max = 0, size_max

    def __bool__(self) -> bool:
        return bool(self._chunks)

    @property
    def is_full(self) -> bool:
        """Whether as many bytes as may be are held."""
        return self._size >= self._size_max

    @property
    def end(self) -> int:
        """Where the last of them ends."""
        return self._chunks[-1].end

    def add(self, ready: _Ready) -> None:
        self._chunks.append(ready)
        self._size += ready.chunk.size if ready.chunk is not None else 0

    def pop(self) -> _Ready:
        ready = self._chunks.popleft()
        self._size -= ready.chunk.size if ready.chunk is not None else 0
        return ready


class _Cursor:
    """Where the next read begins."""

    __slots__ = ("offset", "position", "records", "segment")

    def __init__(self) -> None:
        self.position = 0
        """Up to where records were handed out, or are in memory."""
        self.segment: SpoolSegment | None = None
        self.offset = 0
        """In the segment."""
        self.records = 0
        """Records of the segment that were handed out."""

    def enter(self, segment: SpoolSegment) -> None:
        """Move to the start of a segment."""
        self.segment, self.offset, self.records = segment, 0, 0

    def reach(self, position: int) -> None:
        """Move to a position, unless it is further already."""
        self.position = max(self.position, position)


class SpoolReader:
    """Hands out the records of a spool, in order."""

    def __init__(
        self,
        source: str,
        folder: SpoolFolder,
        memory: MemoryBudget,
        clock: Clock,
        *,
        ready_max: int,
        put_aside: Callable[[SpoolSegment], Awaitable[None]],
        lost: Callable[[int], None],
    ) -> None:
        """ready_max: bytes of records that are kept in memory once they are durable. put_aside: puts a damaged segment
        aside. lost: takes how many records went with it."""
        self._source, self._folder, self._memory, self._clock = source, folder, memory, clock
        self._put_aside, self._lost = put_aside, lost
        self.backlog = 0
        """Records that are durable and were not handed out."""
        self._ready, self._cursor = _ReadyChunks(ready_max), _Cursor()
        self._durable_to = 0
        self._advanced = Signal()

    def begin(self, acked: int, durable_to: int, backlog: int) -> None:
        """Begin after the records that are acked."""
        self._cursor.position, self._durable_to, self.backlog = acked, durable_to, backlog

    def advance(self, durable_to: int) -> None:
        """Take note that records up to a position are durable."""
        self._durable_to = durable_to
        self._advanced.notify()

    def keep(self, chunk: Chunk | None, block: NewBlock, place: BlockPlace) -> None:
        """Keep records that have become durable in memory, if they are next and few enough; else let them go."""
        reached = self._ready.end if self._ready else self._cursor.position
        # A block that is not kept leaves a gap: none after it is next until reading from disk has caught up.
        is_next = place.base == reached and not self._ready.is_full
        if is_next and (chunk is not None or not block.count):
            again = None if chunk is None else respooled(self._source, chunk, place.base)
            self._ready.add(_Ready(again, place, place.base + block.size))
        # It is read back from disk later, and takes memory then.
        elif chunk is not None:
            self._memory.give(chunk.size)

    async def next(self) -> Chunk:
        """Wait for the next records and return them; they are on the memory budget. Raises OSError."""
        while True:
            chunk = self.take_ready()
            if chunk is not None:
                return chunk
            if self._cursor.position < self._durable_to:
                await self._read_back()
            else:
                await self._advanced.wait()

    def take_ready(self) -> Chunk | None:
        """Return the next records if they are in memory."""
        cursor = self._cursor
        while self._ready:
            chunk, place, end = self._ready.pop()
            # The cursor moves along over what comes from memory too, so that a read from disk begins after it.
            if place.segment is not cursor.segment:
                cursor.enter(place.segment)
            cursor.offset = place.next_offset
            cursor.reach(end)
            if chunk is not None:
                cursor.records += chunk.count
                self.backlog -= chunk.count
                return chunk
        return None

    def close(self) -> None:
        """Give back the memory of records."""
        while self._ready:
            chunk, _, _ = self._ready.pop()
            if chunk is not None:
                self._memory.give(chunk.size)

    async def _read_back(self) -> None:
        """Read the next records from disk into memory; put the segment aside if it is damaged."""
        segment = self._segment_to_read()
        if segment is None:
            self._cursor.position = self._durable_to  # what lies between was put aside earlier
            return
        # The length is taken once: the writer moves it on, and what lies before it is durable.
        cursor, limit = self._cursor, segment.length
        # Reserved before the read, and replaced below by what came of it: one block may be larger, and acked records
        # are left out.
        await self._memory.reserve(READ_BYTES)
        chunks: list[Chunk] = []
        try:
            data, headers = await to_thread.run_sync(
                partial(self._folder.read, segment, cursor.offset, limit, READ_BYTES)
            )
            wall, now = self._clock.wall(), self._clock.monotonic()
            chunks = chunks_of(self._source, data, headers, cursor.position, wall=wall, now=now)
        except SegmentDamaged:
            await self._pass_over(segment)
            return
        finally:
            self._memory.take(sum(chunk.size for chunk in chunks))
            self._memory.give(READ_BYTES)
        # Offsets in the headers count from where the read began.
        cursor.offset += headers[-1].next_offset
        cursor.reach(headers[-1].end)
        for chunk in chunks:
            self._ready.add(_Ready(chunk, BlockPlace(segment, cursor.offset, chunk.base), cursor.position))

    def _segment_to_read(self) -> SpoolSegment | None:
        cursor, at = self._cursor, self._cursor.segment
        if at is not None and cursor.offset < at.length and at.end > cursor.position:
            return at
        # A copy: the writer's thread may remove segments meanwhile.
        for segment in tuple(self._folder.segments):
            if segment.end > cursor.position and segment is not at:
                cursor.enter(segment)
                cursor.reach(segment.first)
                return segment
        return None

    async def _pass_over(self, segment: SpoolSegment) -> None:
        """Put a damaged segment aside and continue after it; its records that were not handed out are lost."""
        if not segment.is_aside:
            await self._put_aside(segment)
        # Records that were handed out before the damage was found are not lost.
        lost = segment.records - self._cursor.records
        self.backlog -= lost
        self._lost(lost)
        self._cursor.reach(segment.end)
