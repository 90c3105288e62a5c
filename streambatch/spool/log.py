"""A spool at work: requests in, one fsync for all that came meanwhile, and their records out again, in order.

One task writes (`writer`), one reads (`reader`). The log is what they share: the queue between the source and the
writer, the room on disk, and the hand-over of what has become durable from the writer to the reader.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
from anyio import to_thread

from streambatch.core.chunks import Chunk
from streambatch.core.clock import Clock
from streambatch.core.errors import SourceError
from streambatch.core.events import Observer
from streambatch.core.intake import MemoryBudget
from streambatch.core.spooling import SpoolFull, SpoolStatus
from streambatch.spool.blocks import tally
from streambatch.spool.disk import SpoolDisk
from streambatch.spool.folder import BlockPlace, RecoveredRecords, SpoolFolder, SpoolSegment
from streambatch.spool.keys import SpoolKeys
from streambatch.spool.reader import SpoolReader
from streambatch.spool.request import PendingRequest, RequestQueue
from streambatch.spool.space import SpoolSpace
from streambatch.spool.writer import SpoolWriter, closed

SEGMENT_BYTES = 16 << 20
SEGMENTS_MIN = 8
"""A spool has room for so many segments at least."""
SHARE = 16
"""One part in so many of the memory budget may wait to be written, and another one to be handed over."""
BLOCKED_SECONDS_MIN = 0.001
"""The observer is not told of a wait for the writer that is shorter than this."""

_log = logging.getLogger(__name__)


class SpoolLog:
    """The spool of one source. `write` and `next` are for one task each; `append` is for any."""

    def __init__(
        self,
        source: str,
        folder: Path,
        *,
        max_bytes: int,
        window: float,
        memory: MemoryBudget,
        clock: Clock,
        observer: Observer,
        received: Callable[[Chunk], None],
        lost: Callable[[int], None],
    ) -> None:
        """received: takes every chunk whose records have become durable, in order. lost: takes how many records were
        lost to damage. window: seconds for which the key of a request is remembered."""
        self._source, self._memory, self._clock, self._observer = source, memory, clock, observer
        self._received = received
        share = memory.capacity // SHARE
        # Room comes back by whole segments: with few large ones, acked records would long keep the room that others
        # wait for.
        segment_bytes = min(SEGMENT_BYTES, max_bytes // SEGMENTS_MIN)
        self._folder = SpoolFolder(folder, segment_bytes, SpoolKeys(folder, window))
        self._disk = SpoolDisk(source, folder, clock, observer)
        self._queue = RequestQueue(share)
        self.space = SpoolSpace(self._folder, self._disk, self._queue, max_bytes)
        self._writer = SpoolWriter(
            self._folder, self._disk, self._queue, self.space, clock, stored=self._stored, refused=self._refused
        )
        self._reader = SpoolReader(
            source, self._folder, memory, clock, ready_max=share, put_aside=self._put_aside, lost=lost
        )

    @property
    def keys(self) -> SpoolKeys:
        """The idempotency keys that were stored."""
        return self._folder.keys

    @property
    def end(self) -> int:
        """Where the records that are durable end."""
        return self._folder.records_end

    @property
    def status(self) -> SpoolStatus:
        return SpoolStatus(
            size=self._folder.size + self.space.staged,
            capacity=self.space.max_bytes,
            corrupt_segments=self._folder.corrupt,
            backlog_records=self._reader.backlog,
            outage=self._disk.outage,
        )

    async def open(self, acked: int, known_to: int) -> RecoveredRecords:
        """Recover the spool on disk; reading begins after `acked`. Raises SourceError."""
        self._writer.acked(acked)
        try:
            found = await to_thread.run_sync(self._folder.open, acked, known_to)
        except OSError as error:
            raise self._disk.failure(error) from error
        self._reader.begin(acked, self._folder.position, found.known + found.new)
        return found

    async def append(self, pending: PendingRequest) -> None:
        """Hand a request to the writer, in turn, once little enough waits to be written. Raises SourceError."""
        since = self._clock.monotonic()
        with anyio.CancelScope(shield=True):  # what was read is stored, also by a task that is cancelled
            await self._queue.room()
        waited = self._clock.monotonic() - since
        if waited > BLOCKED_SECONDS_MIN:
            self._observer.source_blocked(self._source, waited)
        # Looked at after the wait, which a failure ends.
        if self._queue.failure is not None:
            self._memory.give(pending.held)
            raise self._queue.failure
        self._queue.add(pending)
        self._writer.wake()

    def acked(self, position: int) -> None:
        """Take note that records up to a position are done with, durably."""
        self._writer.acked(position)

    def hurry(self) -> None:
        """End the waits for room, and wait no longer than a moment for a full disk: a stop stores what was read."""
        self._disk.hurry()
        self._queue.hurry()
        self._writer.wake()

    def stop(self) -> None:
        """End the writer once everything that was appended is durable, in a hurry; nothing is appended after."""
        self._writer.stop()
        self.hurry()

    async def write(self) -> None:
        """Write until stopped. Raises SourceError when nothing can be stored any more."""
        try:
            await self._writer.run()
        except OSError as error:
            # Before `_give_up`, which keeps the first failure: senders are told why, and not that the spool is closed.
            self._queue.failure = self._disk.failure(error)
            raise self._queue.failure from error
        except SourceError as error:
            self._queue.failure = error
            raise
        finally:
            self._give_up()

    async def next(self) -> Chunk:
        """Wait for the next records and return them; they are on the memory budget. Raises SourceError."""
        try:
            return await self._reader.next()
        except OSError as error:
            raise self._disk.failure(error) from error

    def take_ready(self) -> Chunk | None:
        """Return the next records if they are in memory."""
        return self._reader.take_ready()

    async def close(self) -> None:
        """Close every file and give back the memory of records; the writer has ended."""
        self._reader.close()
        await to_thread.run_sync(self._folder.close)

    def _stored(self, group: Sequence[PendingRequest], places: Sequence[BlockPlace]) -> None:
        """Count requests that have become durable, and keep their records in memory if they are next."""
        place_of = iter(places)
        for pending in group:
            request = pending.request
            for block, chunk in zip(request.blocks, pending.chunks, strict=True):
                place = next(place_of)
                # A block that ends a request with a key has no records to count.
                if block.count:
                    self._reader.backlog += block.count
                    now = self._clock.monotonic()
                    self._received(tally(self._source, block.count, block.size, place.base, now))
                self._reader.keep(chunk, block, place)
            # The block with the key is the last one of its request.
            if request.key is not None:
                self.keys.add(request.blocks[-1].arrived_at, request.key)
            pending.settle()
        self._reader.advance(self._folder.position)

    def _refused(self, group: Sequence[PendingRequest], error: OSError) -> None:
        """Refuse requests that a full disk did not take: their senders wait, and still have the records."""
        for pending in group:
            self._memory.give(pending.held)
            pending.settle(SpoolFull(f"the spool can't be written: {error.strerror}"))

    async def _put_aside(self, segment: SpoolSegment) -> None:
        await self._writer.put_aside(segment)
        fields = {"event": "spool_damaged", "fields": {"source": self._source, "path": str(segment.path)}}
        _log.error("source %s: its spool was damaged; what is left is in %s", self._source, segment.path, extra=fields)

    def _give_up(self) -> None:
        """Fail the requests that still wait: the writer has ended."""
        for pending in self._queue.fail(closed(self._source)):
            self._memory.give(pending.held)
            pending.settle(self._queue.failure)
