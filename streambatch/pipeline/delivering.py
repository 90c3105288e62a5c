"""The last stage of a run: outcomes are written in order, made durable and acked.

When it ends, all that was written is acked, as far as a failure or a hard stop lets it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import anyio

from streambatch.core.batches import Batch
from streambatch.core.outcomes import Outcome, Reject
from streambatch.core.parts import Reader, Writer
from streambatch.core.report import DeliveringStatus, DriverState, Quantiles
from streambatch.core.signal import Signal
from streambatch.delivery.dead_letters import DeadLetterEncoder, stop_share, too_many_dead
from streambatch.delivery.outbox import Outbox
from streambatch.delivery.owner import BatchOwner
from streambatch.durability.checkpointed_run import CheckpointedRun
from streambatch.microbatch.inbox import InboxAborted
from streambatch.pipeline.context import RunContext
from streambatch.pipeline.settings import Settings
from streambatch.scoring.transform import Transform

LAST_SYNC_SECONDS = 2.0
"""How long a hard stop may take to make durable what was written."""
STALL_SECONDS = 5.0
"""How long a sink may take for a write before the pipeline is no longer ready."""


class RunOutputs(NamedTuple):
    """The two outputs of a run, and what encodes the dead letters."""

    sink: Writer
    dead_letters: Writer
    encoder: DeadLetterEncoder


class Delivering(BatchOwner):
    """The outputs of one run, and the acks that go back to its readers."""

    def __init__(
        self,
        context: RunContext,
        settings: Settings,
        transform: Transform,
        outputs: RunOutputs,
        readers: Mapping[str, Reader],
        checkpointed: CheckpointedRun | None,
        *,
        has_full_batch: Callable[[], bool],
        is_finite: bool,
    ) -> None:
        """has_full_batch: whether one waits to be cut. is_finite: whether the input ends by itself."""
        self._context, self._options, self._transform = context, settings.delivery, transform
        self._outputs, self._readers, self._checkpointed = outputs, readers, checkpointed
        self._has_full_batch = has_full_batch
        self._is_finite, self._stop_at = is_finite, stop_share(settings.dead_letter, is_finite=is_finite)
        self._latency = Quantiles()
        self._reloaded = Signal()
        self.outbox = Outbox(
            outputs.sink,
            outputs.dead_letters,
            self,
            outputs.encoder,
            clock=context.clock,
            observer=context.observer,
        )

    @property
    def latency(self) -> dict[str, float]:
        """From arrival to written, in seconds, by quantile."""
        return self._latency.as_dict()

    @property
    def is_busy(self) -> bool:
        """Whether a full batch waits to be cut: see BatchOwner."""
        return self._has_full_batch()

    def written(self, batch: Batch, outcome: Outcome) -> None:
        """Give back the room of a batch that was written: see BatchOwner."""
        context = self._context
        context.budget.give(context.feedback.written(batch, outcome))
        for chunk in batch.chunks:
            self._latency.add(batch.stamps.written - chunk.arrived_at, chunk.count)

    def acked(self, batch: Batch, outcome: Outcome) -> None:
        """Move positions past a batch that is durable: see BatchOwner."""
        ledger = self._context.ledger
        for partition, position in ledger.acked(batch, outcome).items():
            self._readers[partition.source].acked({partition.name: position})
        if outcome.dead and (error := too_many_dead(ledger.totals(), self._stop_at)) is not None:
            self._context.feedback.fail(error)

    def refused(self, batch: Batch, index: int, error: str) -> Reject:
        """Return the reject of a record that the sink refused: see BatchOwner."""
        return self._transform.refused(batch, index, error)

    async def run(self) -> None:
        """Write and ack until all is out; what goes on beside that ends with it. Raises what the run failed with."""
        async with anyio.create_task_group() as along:
            along.start_soon(self._end_on_failure)
            along.start_soon(self._limit_drain)
            if self._checkpointed is not None:
                along.start_soon(self._sync_regularly)
                along.start_soon(self._checkpointed.prune)
            await self.outbox.run()
            along.cancel_scope.cancel()
        self._context.feedback.check()

    async def sync(self) -> None:
        """Make durable, and ack, what was written, within LAST_SYNC_SECONDS; also when cancelled."""
        with anyio.move_on_after(LAST_SYNC_SECONDS, shield=True):
            await self.outbox.sync()

    async def close(self) -> None:
        """Close the outputs, also when cancelled."""
        with anyio.CancelScope(shield=True):
            try:
                await self._outputs.sink.close()
            finally:
                await self._outputs.dead_letters.close()

    def reload(self, settings: Settings, transform: Transform) -> None:
        """Deliver by other settings from now on; the outputs stay."""
        self._options, self._transform = settings.delivery, transform
        self._stop_at = stop_share(settings.dead_letter, is_finite=self._is_finite)
        self._reloaded.notify()

    def status(self, now: float) -> DeliveringStatus:
        """Return what became of the records, and how the outputs fare."""
        outbox, ledger = self.outbox, self._context.ledger
        writing = "backpressure" if outbox.writing_since is not None else "input"
        return DeliveringStatus(
            sources={name: counts.copy() for name, counts in ledger.sources.items()},
            dead_letters=dict(ledger.dead_letters),
            latency=self.latency,
            last_synced_wall=outbox.last_synced_wall,
            last_written_wall=outbox.last_written_wall,
            drivers={"sink": DriverState(now, "retry" if outbox.outages.current else writing)},
        )

    def stalls(self, now: float) -> list[str]:
        """Return why nothing can be written for now, unless that is an outage."""
        since = self.outbox.writing_since
        if since is None or now - since <= STALL_SECONDS or self.outbox.outages.current:
            return []
        return [f"sink {self._outputs.sink.name}: a write has been waiting for {now - since:.0f} s"]

    async def _end_on_failure(self) -> None:
        await self._context.feedback.failed.wait()
        self._context.feedback.check()

    async def _limit_drain(self) -> None:
        """End the run hard when a graceful stop takes too long."""
        await self._context.feedback.stop_asked.wait()
        await anyio.sleep(self._options.drain_timeout)
        raise InboxAborted

    async def _sync_regularly(self) -> None:
        while True:
            with anyio.move_on_after(self._options.checkpoint_interval):
                await self._reloaded.wait()
            await self.outbox.sync()
