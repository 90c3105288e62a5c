"""The second stage of a run: batches are cut whenever one is due and a worker can take it, and scored.

First come the batches that an earlier run left to be cut again, if there are any; their cutter is then done with.
"""

from __future__ import annotations

from anyio.lowlevel import checkpoint

from streambatch.core.batches import TRIGGERS, Batch
from streambatch.core.outcomes import Outcome
from streambatch.core.report import CuttingStatus, DriverState
from streambatch.delivery.outbox import Outbox
from streambatch.microbatch.batcher import Batcher
from streambatch.microbatch.inbox import Inbox
from streambatch.microbatch.planned import PlannedBatches
from streambatch.microbatch.planned_cutter import PlannedCutter
from streambatch.microbatch.window import Window
from streambatch.pipeline.context import RunContext
from streambatch.pipeline.settings import Settings
from streambatch.scoring.executors.choice import context_of, make_executor
from streambatch.scoring.transform import Transform

TURN_SECONDS = 0.004
"""How long batches are scored on the event loop before others have their turn."""


class Cutting:
    """The window and the workers of one run."""

    def __init__(
        self,
        context: RunContext,
        settings: Settings,
        transform: Transform,
        inbox: Inbox,
        window: Window,
        outbox: Outbox,
    ) -> None:
        self._context, self._inbox, self._window, self._outbox = context, inbox, window, outbox
        self.transform, self._workers = transform, settings.workers
        self._executor = make_executor(settings.workers, transform, self._scored, context.clock.monotonic)
        self._planned: PlannedBatches | None = None
        self._batches: dict[str, int] = dict.fromkeys(TRIGGERS, 0)
        self._waits_for = "input"
        self.scored_at = context.clock.monotonic()
        """When a worker last finished a batch, or got one after a pause."""
        self._bound_in_flight()

    @property
    def batches(self) -> dict[str, int]:
        """Batches cut so far, by trigger."""
        return dict(self._batches)

    @property
    def next_sequence(self) -> int:
        """The number of the batch that is cut next."""
        return self._window.next_sequence

    @property
    def postponed_records(self) -> int:
        """Records that were taken in and are read again by the next run, which is to cut planned batches."""
        return self._planned.postponed_records if self._planned is not None else 0

    def resume(self, planned: PlannedBatches | None) -> None:
        """Cut these batches first. For before `run`."""
        self._planned = planned

    async def run(self) -> None:
        """Cut batches until the inbox is closed and empty; close the outbox when the workers are done."""
        cutters: list[PlannedCutter | Batcher] = [Batcher(self._inbox, self._window, self._context.clock)]
        if self._planned is not None:
            # Planned batches go out first: they hold the earliest records that are not acked, and no later record may
            # overtake those.
            cutters.insert(0, PlannedCutter(self._planned, self._inbox, self._window, self._context.clock))
        async with self._executor:
            for cutter in cutters:
                await self._use_up(cutter)
        # Not inside the `async with`: only when the executor is left have all its batches come back.
        self._outbox.close()

    def reload(self, settings: Settings, transform: Transform) -> None:
        """Cut and score by other settings from the next batch on; batches that were cut before end as they began."""
        # Before the executor gets the transform: its steps with memory then begin with the states that the others left.
        transform.go_on_from(self.transform)
        self.transform, self._workers = transform, settings.workers
        context = context_of(settings.workers, transform, self._context.clock.monotonic)
        self._executor.replace(context, settings.workers.count)
        self._window.replace(settings.batch)
        self._bound_in_flight()
        # More workers may mean a free slot, and `_slot` waits for a notification.
        self._context.feedback.slot_freed.notify()
        # The batcher sleeps until the deadline of the old policy: wake it to look at the new one.
        self._inbox.notify()

    def status(self, now: float) -> CuttingStatus:
        """Return how batches are cut and scored."""
        policy, in_flight = self._window.policy, self._context.feedback.in_flight
        # A call of the model that has a time limit is a declared wait: it is given up in time.
        scoring = "model" if self._workers.timeout is not None else None
        return CuttingStatus(
            batches=self.batches,
            inflight_batches=in_flight.batches,
            target_records=policy.max_records,
            target_wait=policy.max_wait,
            workers=self._workers.count,
            worker_restarts=self._executor.restarts,
            drivers={
                "batch": DriverState(now, self._waits_for),
                "score": DriverState(self.scored_at, scoring if in_flight.scoring else "input"),
            },
        )

    async def _use_up(self, cutter: PlannedCutter | Batcher) -> None:
        clock = self._context.clock
        yielded = clock.monotonic()
        while True:
            await self._slot()
            batch = await cutter.next()
            if batch is None:
                return
            self._submit(batch)
            now = clock.monotonic()
            # While slots are free and the inbox is full, nothing above has to wait: without this, an inline model would
            # keep the readers and writers from their turn.
            if now - yielded > TURN_SECONDS:
                await checkpoint()
                yielded = now

    async def _slot(self) -> None:
        """Wait until another batch may be cut. Raises what the run failed with meanwhile."""
        feedback = self._context.feedback
        feedback.check()
        while not feedback.in_flight.has_slot:
            self._waits_for = "backpressure"
            await feedback.slot_freed.wait()
            self._waits_for = "input"

    def _submit(self, batch: Batch) -> None:
        context = self._context
        in_flight = context.feedback.in_flight
        # The workers were idle: the time that they are silent counts from this batch on, not from the one before the
        # pause.
        if in_flight.scoring == 0:
            self.scored_at = batch.stamps.closed
        # Everything is counted before `submit`: an inline executor scores in it and calls `_scored` before it returns.
        in_flight.started(batch)
        context.ledger.opened(batch)
        self._batches[batch.trigger] += 1
        context.observer.batch_closed(batch)
        self._executor.submit(batch)

    def _scored(self, batch: Batch, result: Outcome | Exception) -> None:
        """Pass on what the executor made of a batch."""
        context = self._context
        feedback = context.feedback
        self.scored_at = batch.stamps.encoded
        if isinstance(result, Exception):
            feedback.in_flight.scored(batch, None)
            feedback.fail(result)
            return
        feedback.in_flight.scored(batch, result)
        context.budget.take(result.size)
        context.observer.batch_scored(batch, result)
        self._outbox.add(batch, result)
        feedback.slot_freed.notify()

    def _bound_in_flight(self) -> None:
        patience = self._window.policy.max_wait
        in_flight = self._context.feedback.in_flight
        in_flight.resize(self._executor.capacity, workers=self._workers.count, patience=patience)
