"""The driver of the window: it is asked for the next batch when a worker can take one, and never before.

Records that no worker can take stay in the inbox, so that load makes batches larger and not later. Cancelled while it
waits, it loses nothing: the chunks that it took stay in the window for the next call.
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
            # Of a closed inbox, `cut` returns batches until all is out.
            if self._inbox.closed_by is not None:
                return None
            # Nothing may be awaited between `cut` and this: a Signal forgets what comes while no task waits for it.
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
            # Little or nothing will come to fill the batch, so that waiting for its deadline would only delay it.
            trigger = inbox.hurried_by
        return window.close(trigger, now) if trigger is not None else None
