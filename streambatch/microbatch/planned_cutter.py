"""The driver of planned batches: it cuts again, ahead of all others, what an earlier run had cut and not acked.

It is run until its plan is used up; a Batcher with the same inbox and window goes on from there. Records that belong to
no planned batch wait meanwhile, but neither without bound nor for good, and leave first when the plan is used up. A
stop postpones what is not complete by then to the next run. Cancelled while it waits, it loses nothing.

    waiting    for the records of the next planned batch          -> waiting, when it is out; draining, stopping
    draining   the plan is used up: what waited beside it leaves  -> done
    stopping   a stop postponed the plan: what no later run could
               read again leaves, until the inbox is closed       -> done
    done       `next` returned None
"""

from collections.abc import Container
from math import inf

import anyio

from streambatch.core.batches import Batch
from streambatch.core.chunks import Chunk
from streambatch.core.clock import Clock
from streambatch.microbatch.inbox import Inbox
from streambatch.microbatch.planned import PlannedBatches, UnplannedChunks
from streambatch.microbatch.window import Window

PLAN_PATIENCE_SECONDS = 30.0
"""How long records wait for others that a planned batch lacks, before it goes out without them."""
HELD_MAX = 2
"""How many times what the inbox may hold waits outside of it for a plan, at most."""


class PlannedCutter:
    """Cuts planned batches from an inbox."""

    def __init__(self, planned: PlannedBatches, inbox: Inbox, window: Window, clock: Clock) -> None:
        self._planned, self._inbox, self._window, self._clock = planned, inbox, window, clock
        self._filled_at = -inf  # when a planned batch last got a record, or the next one was asked for

    async def next(self) -> Batch | None:
        """Wait for the next batch and return it; None when the plan, and what waited for it, is used up."""
        self._filled_at = self._clock.monotonic()
        while True:
            now = self._clock.monotonic()
            batch = self.cut(now)
            if batch is not None:
                return batch
            if self._is_done or self._inbox.closed_by is not None:
                return None
            with anyio.move_on_after(max(0.0, self._deadline() - now)):
                await self._inbox.changed()

    def cut(self, now: float) -> Batch | None:
        """Return a batch if one is due at `now`, or if the input has ended or is about to."""
        planned = self._planned
        if not (planned.is_used_up or planned.postponed):
            self._settle_ended(now)
            batch = self._cut_planned(now)
            if batch is not None:
                return batch
        if planned.postponed:
            self._hold_all(planned.resumable, now)
            return self._cut_at_stop(now)
        return self._cut_unplanned(now) if planned.is_used_up else None

    @property
    def _is_done(self) -> bool:
        return self._planned.is_used_up and not self._planned.unplanned.records

    def _cut_planned(self, now: float) -> Batch | None:
        """Return the next planned batch if its records are there, or will not come; at a stop, postpone it."""
        planned = self._planned
        while (found := planned.next()) is None and not planned.is_used_up:
            if self._hold_next(now):
                continue
            # Only once nothing more waits that the plan needs: a planned batch whose records are all here still goes
            # out.
            if self._inbox.hurried_by == "shutdown":
                planned.postpone()
                return None
            if not self._is_hopeless(now):
                return None
            # Closes every range, so that `next` now returns a batch or the plan is used up.
            planned.expect_no_more()
        if found is None:
            return None
        chunks, batch = found
        return self._window.planned(chunks, batch.trigger, batch.id, now)

    def _cut_unplanned(self, now: float) -> Batch | None:
        """Return a batch of what waited for the plan if that fills one; the last of it opens the Batcher's first."""
        self._fill_window(self._planned.unplanned, now)
        # The window may keep the last chunks open: the Batcher has the same window and fills it up.
        return self._close_window(now) if self._planned.unplanned.records else None

    def _cut_at_stop(self, now: float) -> Batch | None:
        """Return a batch of what no later run can read again."""
        unplanned = self._planned.unplanned
        if unplanned.records:
            self._fill_window(unplanned, now)
        # Only when they are all in the window: those of the inbox came later.
        if not unplanned.records:
            self._fill_window(self._inbox, now)
        return self._close_window(now)

    def _fill_window(self, chunks: UnplannedChunks | Inbox, now: float) -> None:
        window = self._window
        while chunks.records and window.records_left > 0 and window.bytes_left > 0:
            chunk = chunks.take(window.records_left, window.bytes_left, whole_record=window.is_empty)
            if chunk is None:
                window.overflow()
                return
            window.add(chunk, now)

    def _close_window(self, now: float) -> Batch | None:
        trigger = self._window.due(now)
        if trigger is None and not self._window.is_empty:
            trigger = self._inbox.hurried_by
        return self._window.close(trigger, now) if trigger is not None else None

    def _settle_ended(self, now: float) -> None:
        """Wait for nothing more of sources that have put all that they will."""
        for source in self._planned.awaited & self._inbox.ended:
            # First the rest of its records: a range that is closed takes no more of them.
            self._hold_all((source,), now)
            self._planned.expect_no_more(source)

    def _hold_next(self, now: float) -> bool:
        """Hold what waits of the sources that the plan needs; of others only to make room for those."""
        inbox, awaited = self._inbox, self._planned.awaited
        chunk = inbox.take_of(awaited)
        if chunk is None and inbox.is_waited_for_by(awaited):
            # A full inbox of other sources' records would keep out for ever those that the plan needs.
            chunk = inbox.take(inbox.records, inbox.size, whole_record=True)
        if chunk is not None:
            self._hold(chunk, now)
        return chunk is not None

    def _hold_all(self, sources: Container[str], now: float) -> None:
        """Hold all that waits of some sources."""
        while (chunk := self._inbox.take_of(sources)) is not None:
            self._hold(chunk, now)

    def _hold(self, chunk: Chunk, now: float) -> None:
        # As Window.add does: `Window.planned` reads from it when the batch was opened.
        chunk.taken_at = now
        if self._planned.add(chunk):
            self._filled_at = now

    def _is_hopeless(self, now: float) -> bool:
        """Whether waiting on would hold up the end, or too many records, or some for too long."""
        unplanned, limits = self._planned.unplanned, self._inbox.limits
        is_too_much = unplanned.records > limits.max_records * HELD_MAX or unplanned.size > limits.max_bytes * HELD_MAX
        return is_too_much or self._inbox.hurried_by is not None or now >= self._deadline()

    def _deadline(self) -> float:
        planned = self._planned
        if planned.is_used_up or planned.postponed:
            return self._window.deadline
        oldest = min(self._inbox.oldest_arrival, planned.oldest_arrival)
        return max(self._filled_at, oldest) + PLAN_PATIENCE_SECONDS
