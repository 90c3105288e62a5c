"""The way of a running source into the inbox: counts a chunk, then waits with it for room.

A chunk is counted before anything is awaited. From then on its records are batched or, where the source is configured
so, counted as dropped.
"""

from typing import Protocol

import anyio

from streambatch.core.chunks import Chunk
from streambatch.core.clock import Clock
from streambatch.core.events import Observer, Refusal
from streambatch.core.intake import Intake, MemoryBudget
from streambatch.core.parts import WhenFull
from streambatch.microbatch.inbox import Inbox


class Receipts(Protocol):
    """Counts the records that come in."""

    def received(self, chunk: Chunk) -> int: ...

    def recovered(self, chunk: Chunk) -> None: ...

    def dropped(self, chunk: Chunk, reason: str) -> None: ...

    def lost(self, source: str, records: int) -> None: ...

    def refused(self, source: str, records: int, reason: str) -> None: ...


class SourceIntake(Intake):
    """The way of one source into the inbox."""

    def __init__(
        self,
        source: str,
        when_full: WhenFull,
        inbox: Inbox,
        receipts: Receipts,
        memory: MemoryBudget,
        *,
        clock: Clock,
        observer: Observer,
        run_id: str,
    ) -> None:
        self._source, self._when_full, self._inbox, self._receipts = source, when_full, inbox, receipts
        self.memory, self.clock, self.observer, self.run_id = memory, clock, observer, run_id
        self._waiting: set[tuple[float, object]] = set()

    @property
    def has_room(self) -> bool:
        return not self._inbox.is_full_for(self._source)

    def refused(self, records: int, reason: Refusal) -> None:
        """Count records whose sender was told no."""
        self._receipts.refused(self._source, records, reason)
        self.observer.records_refused(self._source, records, reason)

    def received(self, chunk: Chunk) -> None:
        """Count a chunk's records as received, or as recovered, and in flight."""
        again = self._receipts.received(chunk)
        if again:
            self.observer.records_recovered(self._source, again)
        self.observer.records_received(self._source, chunk.count - again, chunk.size, self.clock.monotonic())

    def recovered(self, chunk: Chunk) -> None:
        """Count a chunk's records as received before this run, and in flight again."""
        self._receipts.recovered(chunk)
        self.observer.records_recovered(self._source, chunk.count)

    def lost(self, records: int) -> None:
        """Count records in flight as dropped; see `Intake`."""
        self._receipts.lost(self._source, records)

    async def enqueue(self, chunk: Chunk) -> None:
        """Take over a chunk that was counted; see `Intake`."""
        room = self._inbox.room_for(chunk)
        if room == chunk.count:
            await self._inbox.put(chunk, self.clock)
        elif self._when_full == "drop_newest":
            if room:
                await self._inbox.put(chunk.split_off(room), self.clock)
            # `split_off` left in the chunk the records that found no room.
            self._receipts.dropped(chunk, "queue_full")
            self.memory.give(chunk.size)
        else:
            since = self.clock.monotonic()
            # With an object of its own, since two waits may begin at the same time.
            wait = (since, object())
            self._waiting.add(wait)
            try:
                # A graceful stop cancels the reader while it waits here. Its chunk was counted as received and has to
                # get in; Inbox.abort ends the wait at a hard stop.
                with anyio.CancelScope(shield=True):
                    await self._inbox.put(chunk, self.clock)
            finally:
                self._waiting.discard(wait)
            self.observer.source_blocked(self._source, self.clock.monotonic() - since)

    def waited(self, now: float) -> float:
        """Return how long the waits for room under way have taken, together: the observer gets them at their end."""
        return sum(now - since for since, _ in self._waiting)

    async def put(self, chunk: Chunk) -> None:
        """Take the chunk over; see `Intake`."""
        self.received(chunk)
        await self.enqueue(chunk)
