"""The outbox: finished batches in any order in; scores and dead letters in the order of the batches out; acks back.

It is put together from what orders batches (`resequencer`), what writes them (`batch_writer`) and what makes them
durable and acks them (`committer`). Without checkpoints a batch is acked when it is written.
"""

from __future__ import annotations

import anyio

from streambatch.core.batches import Batch
from streambatch.core.clock import Clock
from streambatch.core.events import Observer
from streambatch.core.outcomes import Outcome
from streambatch.core.parts import Writer
from streambatch.delivery.batch_writer import BatchWriter
from streambatch.delivery.committer import Checkpoints, Committer
from streambatch.delivery.dead_letters import DeadLetterEncoder
from streambatch.delivery.outages import OutputOutages
from streambatch.delivery.outputs import Marks, OutputPair
from streambatch.delivery.owner import BatchOwner
from streambatch.delivery.resequencer import Resequencer

WRITE_SIZE = 256 << 10
"""Bytes worth a write of their own; while a full batch waits to be scored, less gets LINGER seconds to grow."""
LINGER = 0.004
CLOSE_DUE_SECONDS = 1.0
"""How often outputs are asked to close what is old enough."""


class Outbox:
    """Finished batches on their way out. `add` comes from the executor, `run` is one task, `sync` any task's."""

    def __init__(
        self,
        sink: Writer,
        dead_letters: Writer,
        owner: BatchOwner,
        encoder: DeadLetterEncoder,
        *,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._owner, self._clock, self._observer = owner, clock, observer
        self.outages = OutputOutages(clock, observer)
        self._outputs = OutputPair(sink, dead_letters, self.outages)
        self._queue = Resequencer()
        self._writer = BatchWriter(self._outputs, owner, encoder, clock=clock, observer=observer)
        self._committer: Committer | None = None
        self._close_due_at = 0.0
        self._started_wall = clock.wall()

    @property
    def writing_since(self) -> float | None:
        """Since when a write is under way (monotonic seconds); None while none is."""
        return self._writer.writing_since

    @property
    def last_written_wall(self) -> float:
        """When a write last ended (wall seconds); before the first, when the run began."""
        return self._writer.last_written_wall

    @property
    def last_synced_wall(self) -> float:
        """When batches were last acked by a checkpoint (wall seconds); before the first, when the run began."""
        return self._committer.last_synced_wall if self._committer is not None else self._started_wall

    def restore(self, checkpoints: Checkpoints, marks: Marks) -> None:
        """Ack from now on what is in a checkpoint; give the outputs, which are not open, the marks of the last one."""
        self._committer = Committer(checkpoints, self._outputs, self._owner, clock=self._clock, observer=self._observer)
        self._writer.committer = self._committer
        self._committer.restore(marks)

    async def open(self, header: bytes) -> None:
        """Open the outputs; `header` starts a fresh one. Waits for outages to end."""
        await self._outputs.open(header)
        if self._committer is not None:
            self._committer.look()

    def add(self, batch: Batch, outcome: Outcome) -> None:
        """Take a finished batch; it leaves after all that were cut before it."""
        self._queue.add(batch, outcome)

    def close(self) -> None:
        """Take note that nothing more will be added; `run` writes what is left, completes the outputs and returns."""
        self._queue.close()

    async def run(self) -> None:
        """Write what is ready until closed and empty."""
        queue = self._queue
        while not (queue.is_empty and queue.is_closed):
            if self._clock.monotonic() >= self._close_due_at:
                await self._outputs.close_due()
                self._close_due_at = self._clock.monotonic() + CLOSE_DUE_SECONDS
            if queue.is_empty and not queue.is_closed:
                # Not for ever: a segment grows old also while nothing is written.
                with anyio.move_on_after(CLOSE_DUE_SECONDS):
                    await queue.changed()
                continue
            if queue.size < WRITE_SIZE and not queue.is_closed and self._owner.is_busy:
                await anyio.sleep(LINGER)
            await self.write_ready()
        # First: scores in an open segment may be durable, and acked, only once it is closed.
        await self._outputs.finish()
        if self._committer is not None:
            self._committer.look()
            await self._committer.sync()

    async def write_ready(self) -> None:
        """Write what is ready, up to what is worth a write: a sink that rotates never splits one. For `run`."""
        if finished := self._queue.take(WRITE_SIZE):
            await self._writer.write(finished)

    async def sync(self) -> None:
        """Make durable what was written until now, and ack what is: all of it, unless the sink has to close a segment
        first. Without checkpoints there is nothing to do."""
        if self._committer is not None:
            await self._committer.sync()
