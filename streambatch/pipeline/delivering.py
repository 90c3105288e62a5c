"""The last stage of a run: outcomes are written in order, made durable and acked.

When it ends, all that was written is acked, as far as a failure or a hard stop lets it.
"""

from __future__ import annotations

from typing import NamedTuple

import anyio

from streambatch.core.parts import Writer
from streambatch.core.report import DeliveringStatus, DriverState
from streambatch.core.signal import Signal
from streambatch.delivery.dead_letters import DeadLetterEncoder
from streambatch.delivery.outbox import Outbox
from streambatch.durability.checkpointed_run import CheckpointedRun
from streambatch.microbatch.inbox import InboxAborted
from streambatch.pipeline.context import RunContext
from streambatch.pipeline.settings import Settings
from streambatch.pipeline.settlement import Settlement
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


class Delivering:
    """The outputs of one run."""

    def __init__(
        self,
        context: RunContext,
        settings: Settings,
        outputs: RunOutputs,
        settlement: Settlement,
        checkpointed: CheckpointedRun | None,
    ) -> None:
        self._context, self._options = context, settings.delivery
        self._outputs, self._settlement, self._checkpointed = outputs, settlement, checkpointed
        self._reloaded = Signal()
        self.outbox = Outbox(
            outputs.sink,
            outputs.dead_letters,
            settlement,
            outputs.encoder,
            clock=context.clock,
            observer=context.observer,
        )

    @property
    def latency(self) -> dict[str, float]:
        """From arrival to written, in seconds, by quantile."""
        return self._settlement.latency

    async def run(self) -> None:
        """Write and ack until all is out. Raises the error that the run failed with."""
        async with anyio.create_task_group() as along:
            along.start_soon(self._end_on_failure)
            along.start_soon(self._limit_drain)
            if self._checkpointed is not None:
                along.start_soon(self._sync_regularly)
                along.start_soon(self._checkpointed.prune)
            await self.outbox.run()
            # The tasks beside the outbox never end by themselves.
            along.cancel_scope.cancel()
        # The last batch may have failed the run, by its dead records, when `_end_on_failure` was cancelled already.
        self._context.feedback.check()

    async def sync(self) -> None:
        """Make durable, and ack, what was written, within LAST_SYNC_SECONDS; also when cancelled."""
        with anyio.move_on_after(LAST_SYNC_SECONDS, shield=True):
            await self.outbox.sync()

    async def close(self) -> None:
        """Close the outputs, also when cancelled."""
        with anyio.CancelScope(shield=True):
            # A sink that fails to close does not keep the dead letters open.
            try:
                await self._outputs.sink.close()
            finally:
                await self._outputs.dead_letters.close()

    def reload(self, settings: Settings, transform: Transform) -> None:
        """Deliver by other settings from now on; the outputs stay."""
        self._options = settings.delivery
        self._settlement.reload(settings, transform)
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
        # An outage is left out here because it gives its own reason: see Run._not_ready.
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
        # The error of a hard stop: the run then ends as `stopped`, not as `failed`.
        raise InboxAborted

    async def _sync_regularly(self) -> None:
        while True:
            # A reload ends the wait, since its interval may be shorter than the rest of this one.
            with anyio.move_on_after(self._options.checkpoint_interval):
                await self._reloaded.wait()
            await self.outbox.sync()
