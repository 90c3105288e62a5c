"""The driver of the window: it is asked for the next batch when a worker can take one, and never before.

What no worker can take stays in the inbox, so that load makes batches larger and not later. Cancelled while it waits,
it loses nothing: what it took stays in the window for the next call. Batches that an earlier run left to be cut again
come first; records that don't belong to them wait meanwhile, but neither without bound nor for good. A stop leaves
those that are not whole by then to the next run.
"""

from collections.abc import Container
from math import inf

import anyio

from streambatch.core.batches import Batch
from streambatch.core.chunks import Chunk
from streambatch.core.clock import Clock
from streambatch.microbatch.inbox import Inbox
from streambatch.microbatch.planned import Recut
from streambatch.microbatch.window import Window

PLAN_PATIENCE_SECONDS = 30.0
"""How long records wait for others that a planned batch lacks, before it goes out without them."""
HELD_MAX = 2
"""How many times what the inbox may hold waits outside of it for a plan, at most."""


class Batcher:
    """Cuts batches from an inbox. recut: batches that were cut before and are to be cut again, ahead of all others."""

    def __init__(self, inbox: Inbox, window: Window, clock: Clock, recut: Recut | None = None) -> None:
        self._inbox, self._window, self._clock = inbox, window, clock
        self._recut = recut
        self._plan_moved = -inf

    @property
    def left_records(self) -> int:
        """Records that were taken in and left to the next run, which reads them again and cuts them as planned."""
        return self._recut.left_records if self._recut is not None else 0

    async def next(self) -> Batch | None:
        """Wait for the window to close and return its batch; None when the input has ended and all is out."""
        self._plan_moved = self._clock.monotonic()
        while True:
            now = self._clock.monotonic()
            batch = self.cut(now)
            if batch is not None:
                return batch
            if self._inbox.closed_by is not None:
                return None
            with anyio.move_on_after(max(0.0, self._deadline() - now)):
                await self._inbox.changed()

    def cut(self, now: float) -> Batch | None:
        """Return a batch if one is due at `now`, or if the input has ended or is about to."""
        recut = self._recut
        if recut is not None and not recut.left:
            batch = self._cut_again(recut, now)
            if batch is not None or not (recut.is_over or recut.left):
                return batch
        if recut is not None and recut.left:
            self._take_all(recut, recut.resumable)
        window, inbox = self._window, self._inbox
        while window.records_left > 0 and window.bytes_left > 0 and (inbox.records or self._recut is not None):
            chunk = self._take(window.records_left, window.bytes_left, whole_record=window.is_empty)
            if chunk is None:
                break
            window.add(chunk, now)
        trigger = window.due(now)
        if trigger is None and not window.is_empty:
            trigger = inbox.hurried_by
        return window.close(trigger, now) if trigger is not None else None

    def give_up(self, source: str, partition: str | None = None) -> None:
        """Learn that a source, or one of its partitions, has put all that it will: no plan waits for more of it."""
        if self._recut is not None and not self._recut.is_over:
            self._take_all(self._recut, (source,))
            self._recut.give_up(source, partition)
            self._inbox.notify()

    def _take(self, records: int, size: int, *, whole_record: bool) -> Chunk | None:
        """Return what comes next, of what waited for the plan and then of the inbox; None when it doesn't fit in."""
        holder: Recut | Inbox = self._inbox
        if self._recut is not None:
            if self._recut.rest_records:
                holder = self._recut
            elif not self._recut.left:
                self._recut = None
        chunk = holder.take(records, size, whole_record=whole_record)
        if chunk is None and holder.records:
            self._window.overflow()
        return chunk

    def _cut_again(self, recut: Recut, now: float) -> Batch | None:
        """Return the next planned batch if its records are there, or if they will not come. Not waiting for them at a
        stop, it leaves the plan."""
        while (found := recut.next()) is None and not recut.is_over:
            if self._feed(recut, now):
                continue
            if self._inbox.hurried_by == "shutdown":
                recut.leave()
                return None
            if not self._is_hopeless(recut, now):
                return None
            recut.give_up()
        if found is None:
            return None
        chunks, planned = found
        return self._window.planned(chunks, planned.trigger, planned.id, now)

    def _feed(self, recut: Recut, now: float) -> bool:
        """Hand over what waits of the sources that the plan needs; of others only to make room for those."""
        inbox = self._inbox
        chunk = inbox.take_of(recut.awaited)
        if chunk is None and inbox.is_waited_for_by(recut.awaited):
            chunk = inbox.take(inbox.records, inbox.size, whole_record=True)
        if chunk is not None:
            self._hold(recut, chunk, now)
        return chunk is not None

    def _take_all(self, recut: Recut, sources: Container[str]) -> None:
        """Hand over all that waits of some sources."""
        while (chunk := self._inbox.take_of(sources)) is not None:
            self._hold(recut, chunk, self._clock.monotonic())

    def _hold(self, recut: Recut, chunk: Chunk, now: float) -> None:
        chunk.taken_at = now
        rest_records = recut.rest_records
        count = chunk.count
        recut.add(chunk)
        if recut.rest_records - rest_records < count:
            self._plan_moved = now

    def _is_hopeless(self, recut: Recut, now: float) -> bool:
        """Whether waiting on would hold up the end, or too many records, or some for too long."""
        records_max, size_max = self._inbox.limits.max_records * HELD_MAX, self._inbox.limits.max_bytes * HELD_MAX
        is_too_much = recut.rest_records > records_max or recut.rest_size > size_max
        return is_too_much or self._inbox.hurried_by is not None or now >= self._deadline()

    def _deadline(self) -> float:
        if self._recut is None or self._recut.is_over or self._recut.left:
            return self._window.deadline
        oldest = min(self._inbox.oldest_arrival, self._recut.oldest_arrival)
        return max(self._plan_moved, oldest) + PLAN_PATIENCE_SECONDS
