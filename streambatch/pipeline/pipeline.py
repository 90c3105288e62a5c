"""One task group that wires the stages: sources fill the inbox, batches are cut, scored, written in order and acked.

Whatever ends a run, every record received is by then scored, dead-lettered, dropped by config, or counted as unacked.
The pipeline knows what parts are, never a concrete source, model or sink.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from streambatch.core.batches import Batch
from streambatch.core.budget import Budget, Limits
from streambatch.core.clock import Clock, SystemClock
from streambatch.core.errors import first_cause
from streambatch.core.events import Observer, Observers
from streambatch.core.ledger import Ledger
from streambatch.core.naming import distinctly_named
from streambatch.core.outcomes import Outcome, Reject
from streambatch.core.parts import Sink, Site, Source
from streambatch.core.report import Ended, RunReport, Snapshot
from streambatch.core.schema import RecordSchema
from streambatch.core.wrapping import RunningSource, WritingSink, as_sink, as_source
from streambatch.core.wrapping_scoring import as_model, as_step
from streambatch.delivery.dead_letter_file import dead_letter_writer
from streambatch.delivery.dead_letters import DeadLetterEncoder, DeadLetterOptions, stop_share, too_many_dead
from streambatch.delivery.outbox import Outbox
from streambatch.durability.manifest import RunsOptions
from streambatch.durability.resume import Delivery, Provenance, durability_in
from streambatch.microbatch.batcher import Batcher
from streambatch.microbatch.inbox import Inbox, InboxAborted, QueueLimits
from streambatch.microbatch.inflight import InFlight
from streambatch.microbatch.intake import SourceIntake
from streambatch.microbatch.window import BatchPolicy, Window
from streambatch.pipeline.reload import Settings
from streambatch.pipeline.status import Vitals
from streambatch.scoring.executors.choice import Workers, make_executor, terms_of
from streambatch.scoring.factory import encoder_for, transform_for
from streambatch.scoring.transform import Transform
from streambatch.spool.source import reader_of
from streambatch.storage.folder import StateFolder

TURN_SECONDS = 0.004
"""How long batches are scored on the event loop before others have their turn."""
LAST_SYNC_SECONDS = 2.0
"""How long a hard stop may take to make durable what was written."""


class Pipeline:
    """Sources, one window, workers and a sink; runs once.

    Without `state_dir` a batch is acked when it is written; with it, once it is in a checkpoint, one every
    `delivery.checkpoint_interval`, from which the next run goes on.
    """

    def __init__(
        self,
        *,
        sources: Sequence[Source | RunningSource],
        record: RecordSchema,
        model: Any,
        sink: Sink | WritingSink,
        name: str = "pipeline",
        batch: BatchPolicy | None = None,
        preprocess: Sequence[Any] = (),
        workers: Workers | None = None,
        queue: QueueLimits | None = None,
        limits: Limits | None = None,
        delivery: Delivery | None = None,
        dead_letter: DeadLetterOptions | None = None,
        state_dir: Path | StateFolder | None = None,
        runs: RunsOptions | None = None,
        provenance: Provenance | None = None,
        observer: Observer | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name, self.sink, self._record = name, as_sink(sink), record
        self.state_dir = state_dir.path if isinstance(state_dir, StateFolder) else state_dir
        self.sources = distinctly_named(map(as_source, sources))
        self.clock: Clock = clock or SystemClock()
        self.observer = observer or Observer()
        self.workers, self.delivery = workers or Workers(), delivery or Delivery()
        self._vitals = Vitals(name, self.sink.name, clock=self.clock, observer=self.observer)
        self.run_id = self._vitals.run_id
        limits, dead_letter = limits or Limits(), dead_letter or DeadLetterOptions()
        self.ledger, self._told = Ledger(), Observers(self.observer, self._vitals)
        site = Site(pipeline=name, state_dir=self.state_dir, clock=self.clock)
        self._readers = {source.name: reader_of(source, site) for source in self.sources}
        self._writer = self.sink.build(replace(site, part=f"sink.{self.sink.name}"))
        for reader in self._readers.values():
            self.ledger.add_source(reader.name, is_resumable=reader.is_resumable)
        self._intakes: dict[str, SourceIntake] = {}
        self.inbox = Inbox((queue or QueueLimits()).within(limits.memory // 4), self._readers)
        self.budget = Budget(limits.memory)
        self._window = Window(batch or BatchPolicy())
        self._batcher = Batcher(self.inbox, self._window, self.clock)
        self._encoder = encoder_for(self.sink.format, record)
        self._preprocess = tuple(as_step(step).build(site) for step in preprocess)
        model = self.model = as_model(model).build(site)
        self._transform = transform_for(self.sources, record, self._preprocess, model, self._encoder, self.observer)
        self._executor = make_executor(self.workers, self._transform, self._scored, self.clock.monotonic)
        self._in_flight = InFlight(self._executor.capacity, limits.memory // 4)
        self._bound_in_flight()
        self._dead_letters = dead_letter_writer(dead_letter, self.state_dir, self.clock)
        self._is_finite = all(source.is_finite for source in self.sources)
        self._stop_at = stop_share(dead_letter, is_finite=self._is_finite)
        self._outbox = Outbox(
            self._writer,
            self._dead_letters,
            self,
            DeadLetterEncoder(name, self.run_id, self.clock),
            clock=self.clock,
            observer=self.observer,
        )
        self._durability = durability_in(
            state_dir, run=self.run_id, pipeline=name, clock=self.clock, provenance=provenance, runs=runs, model=model
        )
        self._tasks: anyio.abc.TaskGroup | None = None
        self._freed: anyio.Event | None = None
        self._failure: Exception | None = None
        self._failed, self._stop_asked, self._reloaded = anyio.Event(), anyio.Event(), anyio.Event()

    async def run(self) -> RunReport:
        """Run to the end of the input or until stopped, and report.

        Raises the StreambatchError that ended the run; `report` then says so too. Cancelling it is a hard stop.
        """
        self._vitals.begin()
        try:
            await self._open_run_close()
        except anyio.get_cancelled_exc_class():
            await self._end("stopped", None)
            raise
        except BaseException as error:
            cause = first_cause(error, besides=InboxAborted)
            if not isinstance(cause, InboxAborted):
                await self._end("failed", cause)
                raise cause from cause.__cause__
            report = await self._end("stopped", None)
            await checkpoint()  # where it was given up because it is cancelled, it is here
            return report
        return await self._end("stopped" if self._stop_asked.is_set() else "input_ended", None)

    @property
    def report(self) -> RunReport | None:
        """What the run did, once it has ended."""
        return self._vitals.report

    def stop(self) -> None:
        """Stop gracefully: take in no more, finish and ack what was received; `run` then returns."""
        if self._vitals.state in ("starting", "running"):
            self._vitals.enter("draining")
        self._stop_asked.set()

    def abort(self) -> None:
        """Stop hard: give up what is in flight; `run` then returns."""
        self.stop()
        self.inbox.abort()
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def transform_of(self, settings: Settings) -> Transform:
        """Return what scores batches by other settings; any thread may call it. Raises for those that won't do."""
        settings.check(self.model, self.workers, self._preprocess)
        parts = self._record, settings.preprocess, settings.model
        return transform_for(self.sources, *parts, self._encoder, self.observer)

    def reload(self, settings: Settings, transform: Transform) -> None:
        """Go on by other settings, of which `transform` was made: from the next batch that is cut on.

        Batches that were cut before end as they began. Call it on the event loop, once the pipeline runs.
        """
        transform.go_on_from(self._transform)
        self._transform, self.model, self._preprocess = transform, settings.model, tuple(settings.preprocess)
        self.workers, self.delivery = settings.workers, settings.delivery
        self._executor.replace(terms_of(self.workers, transform, self.clock.monotonic), self.workers.count)
        self._window.replace(settings.batch)
        self._bound_in_flight()
        self.inbox.resize(settings.queue.within(self.budget.capacity // 4))
        self._stop_at = stop_share(settings.dead_letter, is_finite=self._is_finite)
        if self._durability is not None:
            self._durability.reloaded(self._window.next_sequence, settings.provenance)
        self._free()
        self.inbox.notify()
        self._reloaded.set()

    def snapshot(self) -> Snapshot:
        """Return counts and state of this moment; call it on the event loop."""
        return self._vitals.snapshot(
            self.ledger,
            self.inbox,
            self.budget,
            self._in_flight,
            self._outbox,
            policy=self._window.policy,
            workers=self.workers,
            worker_restarts=getattr(self._executor, "restarts", 0),
            intakes=self._intakes,
            readers=self._readers.values(),
        )

    def is_resumable(self, source: str) -> bool:
        """Whether what is not acked of a source is read again by the next run with the same state folder."""
        return self._durability is not None and self._readers[source].is_resumable

    async def listening(self, source: str) -> str | None:
        """Wait until a source listens, and return its address; return None at once if it never does."""
        return await self._readers[source].listening()

    @property
    def safe_records(self) -> int:
        """Records that are not scored and wait in a spool, or were left to be cut again by the next run."""
        in_spools = sum(spool.backlog_records for reader in self._readers.values() if (spool := reader.spool))
        return in_spools + self._batcher.left_records

    async def _open_run_close(self) -> None:
        try:
            if await self._open():
                await self._run_opened()
        finally:
            await self._close_outputs()

    async def _run_opened(self) -> None:
        try:
            async with anyio.create_task_group() as self._tasks:
                for task in (self._read, self._cut, self._deliver):
                    self._tasks.start_soon(self.inbox.or_abort, task)
                self._vitals.enter("draining" if self._stop_asked.is_set() else "running")
        finally:
            with anyio.move_on_after(LAST_SYNC_SECONDS, shield=True):
                await self._outbox.sync()

    async def _open(self) -> bool:
        """Resume, and open the outputs. Returns False when an outage kept it from that and a stop was asked for."""
        return await self._outbox.outages.run_unless_stopped(self._stop_asked, self._resume)

    async def _resume(self) -> None:
        if self._durability is not None:
            readings = {source.name: source.reading() for source in self.sources}
            readers = list(self._readers.values())
            recut = await self._durability.resume(readers, readings, self.ledger, self._transform, self._outbox)
            self._batcher = Batcher(self.inbox, self._window, self.clock, recut)
        await self._outbox.open(self._encoder.header())

    async def _close_outputs(self) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await self._writer.close()
            finally:
                await self._dead_letters.close()

    async def _read(self) -> None:
        """Run the sources to their end or until stopped; then close the inbox, which ends everything after it."""
        async with anyio.create_task_group() as reading:
            reading.start_soon(self._stop_reading, reading.cancel_scope)
            async with anyio.create_task_group() as sources:
                for source in self.sources:
                    sources.start_soon(self._run_source, source, name=f"source {source.name}")
            reading.cancel_scope.cancel()
        self.inbox.close("shutdown" if self._stop_asked.is_set() else "flush")
        self._vitals.enter("draining")

    async def _run_source(self, source: Source) -> None:
        reader = self._readers[source.name]
        if not reader.is_resumable:
            self._batcher.give_up(source.name)
        await reader.run(self._intake(source))
        if not self._stop_asked.is_set():  # or it may not have come to its end
            self._batcher.give_up(source.name)

    def _intake(self, source: Source) -> SourceIntake:
        intake = self._intakes[source.name] = SourceIntake(
            source.name, source.when_full, self.inbox, self.ledger, self.budget,
            clock=self.clock, observer=self._told, run_id=self.run_id,
        )  # fmt: skip
        return intake

    async def _stop_reading(self, scope: anyio.CancelScope) -> None:
        await self._stop_asked.wait()
        self.inbox.hurry("shutdown")  # sources may wait for what becomes of the records they put
        scope.cancel()

    async def _cut(self) -> None:
        """Cut a batch whenever one is due and a worker can take it."""
        yielded = self.clock.monotonic()
        async with self._executor:
            while True:
                await self._slot()
                batch = await self._batcher.next()
                if batch is None:
                    break
                self._submit(batch)
                now = self.clock.monotonic()
                if now - yielded > TURN_SECONDS:
                    await checkpoint()
                    yielded = now
        self._outbox.close()

    def _bound_in_flight(self) -> None:
        patience = self._window.policy.max_wait
        self._in_flight.resize(self._executor.capacity, workers=self.workers.count, patience=patience)

    async def _slot(self) -> None:
        self._raise_failure()
        while not self._in_flight.has_slot:
            self._vitals.waits_for = "backpressure"
            self._freed = anyio.Event()
            await self._freed.wait()
            self._vitals.waits_for = "input"

    def _submit(self, batch: Batch) -> None:
        if self._in_flight.scoring == 0:
            self._vitals.scored_at = batch.stamps.closed
        self._in_flight.started(batch)
        self.ledger.opened(batch)
        self._vitals.cut(batch)
        self._executor.submit(batch)

    def _scored(self, batch: Batch, result: Outcome | Exception) -> None:
        self._vitals.scored_at = batch.stamps.encoded
        if isinstance(result, Exception):
            self._in_flight.scored(batch, None)
            self._fail(result)
            return
        self._in_flight.scored(batch, result)
        self.budget.take(result.size)
        self.observer.batch_scored(batch, result)
        self._outbox.add(batch, result)
        self._free()

    @property
    def is_busy(self) -> bool:
        return self.inbox.records >= self._window.policy.max_records

    def written(self, batch: Batch, outcome: Outcome) -> None:
        self.budget.give(self._in_flight.written(batch, outcome))
        self._vitals.written(batch)
        self._free()

    def acked(self, batch: Batch, outcome: Outcome) -> None:
        for partition, position in self.ledger.acked(batch, outcome).items():
            self._readers[partition.source].acked({partition.name: position})
        if outcome.dead and (error := too_many_dead(self.ledger.totals(), self._stop_at)) is not None:
            self._fail(error)

    def refused(self, batch: Batch, index: int, error: str) -> Reject:
        return self._transform.refused(batch, index, error)

    async def _deliver(self) -> None:
        """Write and ack until all is out; the tasks that go along end with it."""
        async with anyio.create_task_group() as along:
            along.start_soon(self._end_on_failure)
            along.start_soon(self._limit_drain)
            if self._durability is not None:
                along.start_soon(self._sync_regularly)
                along.start_soon(self._durability.prune)
            await self._outbox.run()
            along.cancel_scope.cancel()
        self._raise_failure()

    async def _end_on_failure(self) -> None:
        await self._failed.wait()
        self._raise_failure()

    async def _limit_drain(self) -> None:
        await self._stop_asked.wait()
        await anyio.sleep(self.delivery.drain_timeout)
        self.abort()

    async def _sync_regularly(self) -> None:
        while True:
            self._reloaded = anyio.Event()
            with anyio.move_on_after(self.delivery.checkpoint_interval):
                await self._reloaded.wait()
            await self._outbox.sync()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._failed.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _free(self) -> None:
        if self._freed is not None:
            self._freed.set()
            self._freed = None

    async def _end(self, ended: Ended, error: BaseException | None) -> RunReport:
        report = self._vitals.end(ended, error, self.ledger)
        if self._durability is not None:
            with anyio.move_on_after(LAST_SYNC_SECONDS, shield=True):
                await self._durability.end(report, self.ledger, self._outbox.outages, has_failed=error is not None)
        return report
