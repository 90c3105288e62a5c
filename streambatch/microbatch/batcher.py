"""The driver of the window: it is asked for the next batch when a worker can take one, and never before.

What no worker can take stays in the inbox, so that load makes batches larger and not later. Cancelled while it waits,
it loses nothing: what it took stays in the window for the next call.
"""

import anyio

from streambatch.core.batches import Batch
from streambatch.core.clock import Clock
from streambatch.microbatch.inbox import Inbox
from streambatch.microbatch.window import Window


class Batcher:
    """Cuts batches from an inbox. The window may hold records that were taken before."""

    def __init__(self, inbox: Inbox, window: Window, clock: Clock) -> None:
        self._inbox, self._window, self._clock = inbox, window, clock

    async def next(self) -> Batch | None:
        """Wait for the window to close and return its batch; None when the input has ended and all is out."""
        while True:
            now = self._clock.monotonic()
            batch = self.cut(now)
            if batch is not None:
                return batch
            if self._inbox.closed_by is not None:
                return None
            with anyio.move_on_after(max(0.0, self._window.deadline - now)):
                await self._inbox.changed()

    def cut(self, now: float) -> Batch | None:
        """Return a batch if one is due at `now`, or if the input has ended or is about to."""
        window, inbox = self._window, self._inbox
        while inbox.records and window.records_left > 0 and window.bytes_left > 0:
            chunk = inbox.take(window.records_left, window.bytes_left, whole_record=window.is_empty)
            if chunk is None:
                window.overflow()  # the next record doesn't fit in by its bytes
                break
            window.add(chunk, now)
        trigger = window.due(now)
        if trigger is None and not window.is_empty:
            trigger = inbox.hurried_by
        return window.close(trigger, now) if trigger is not None else None
