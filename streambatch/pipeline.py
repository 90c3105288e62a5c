"""One task group that wires the stages: sources fill the inbox, batches are cut when a worker can take one, scored,
written in order and acked.

Whatever ends a run, every record received is by then scored, dead-lettered, dropped by config, or counted as unacked.
The pipeline knows protocols, never a concrete source, model or sink.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import anyio
from anyio.lowlevel import checkpoint
from pydantic import Field

from streambatch.clock import Clock, SystemClock
from streambatch.codecs.schema import RecordSchema
from streambatch.errors import TooManyDeadError, first_cause
from streambatch.events import Observer, State
from streambatch.microbatch.batcher import Batcher
from streambatch.microbatch.budget import Budget, Limits
from streambatch.microbatch.inbox import Inbox, InboxAborted, QueueLimits
from streambatch.microbatch.inflight import InFlight
from streambatch.microbatch.intake import SourceIntake
from streambatch.microbatch.window import BatchPolicy, Window
from streambatch.options import options
from streambatch.records import TRIGGERS, Batch, Outcome, Sink, Source
from streambatch.scoring.executors import Workers, make_executor
from streambatch.scoring.formats import encoder_for, transform_for
from streambatch.sinks.outbox import Outbox
from streambatch.state.dead_letter_log import DeadLetterLog, stop_share
from streambatch.state.dead_letters import DeadLetterOptions
from streambatch.state.ledger import Ledger
from streambatch.state.report import DriverState, Ended, Quantiles, RunReport, Snapshot
from streambatch.units import Duration

TURN_SECONDS = 0.004
"""How long batches are scored on the event loop before others have their turn."""
LAST_SYNC_SECONDS = 2.0
"""How long a hard stop may take to make durable what was written."""
STALL_SECONDS = 5.0
"""How long a sink may take for a write before the pipeline is no longer ready."""
SHARE_COUNTS_FROM = 1000
"""Records after which the share of dead ones is held against `stop_at`."""


@options
class Delivery:
    """When what was written is made durable, and how long a stop may take."""

    checkpoint_interval: Annotated[Duration, Field(gt=0)] = 1.0
    """Time between two syncs of the outputs."""
    drain_timeout: Annotated[Duration, Field(ge=0)] = 20.0
    """Time a graceful stop may take before what is in flight is given up."""


class Pipeline:
    """Sources, one window, workers and a sink; runs once.

    Without `state_dir` a batch is acked when it is written; with it, when it is synced, every
    `delivery.checkpoint_interval`.
    """

    def __init__(
        self,
        *,
        sources: Sequence[Source],
        record: RecordSchema,
        model: Any,
        sink: Sink,
        name: str = "pipeline",
        batch: BatchPolicy | None = None,
        preprocess: Sequence[Any] = (),
        workers: Workers | None = None,
        queue: QueueLimits | None = None,
        limits: Limits | None = None,
        delivery: Delivery | None = None,
        dead_letter: DeadLetterOptions | None = None,
        state_dir: Path | None = None,
        observer: Observer | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name, self.sink, self.model, self.state_dir = name, sink, model, state_dir
        self.sources = distinctly_named(sources)
        self.clock: Clock = clock or SystemClock()
        self.observer = observer or Observer()
        self.workers, self.delivery = workers or Workers(), delivery or Delivery()
        self.run_id = _new_run_id(self.clock)
        self.report: RunReport | None = None
        limits, dead_letter = limits or Limits(), dead_letter or DeadLetterOptions()
        self.ledger = Ledger()
        self._by_name = {source.name: source for source in self.sources}
        for name_of_source in self._by_name:
            self.ledger.add_source(name_of_source)
        self.inbox = Inbox(queue or QueueLimits())
        self.budget = Budget(limits.memory)
        policy = batch or BatchPolicy()
        self._batcher = Batcher(self.inbox, Window(policy), self.clock)
        self._encoder = encoder_for(sink.format, record)
        transform = transform_for(self.sources, record, preprocess, model, self._encoder)
        self._executor = make_executor(self.workers, transform, self._scored, self.clock.monotonic)
        self._in_flight = InFlight(self._executor.capacity, limits.memory // 4)
        self._dead_letters = DeadLetterLog(dead_letter, state_dir, pipeline=name, run=self.run_id, clock=self.clock)
        self._stop_at = stop_share(dead_letter, is_finite=all(source.is_finite for source in self.sources))
        self._outbox = Outbox(
            sink,
            self._dead_letters,
            clock=self.clock,
            observer=self.observer,
            is_durable=state_dir is not None,
            written=self._written,
            acked=self._acked,
            is_busy=lambda: self.inbox.records >= policy.max_records,
        )
        self._batches: dict[str, int] = dict.fromkeys(TRIGGERS, 0)
        self._state: State = "starting"
        self._started, self._started_wall = self.clock.monotonic(), self.clock.wall()
        self._scored_at, self._waits_for = self._started, "input"
        self._tasks: anyio.abc.TaskGroup | None = None
        self._freed: anyio.Event | None = None
        self._failure: Exception | None = None
        self._latency, self._stop_asked = Quantiles(), anyio.Event()

    async def run(self) -> RunReport:
        """Run to the end of the input or until stopped, and report.

        Raises the StreambatchError that ended the run; `report` then says so too. Cancelling it is a hard stop.
        """
        self._started, self._started_wall = self.clock.monotonic(), self.clock.wall()
        try:
            await self._open_run_close()
        except anyio.get_cancelled_exc_class():
            self._finish("stopped", None)
            raise
        except BaseException as error:
            cause = first_cause(error)
            if not isinstance(cause, InboxAborted):
                self._finish("failed", cause)
                raise cause from cause.__cause__
        return self._finish("stopped" if self._stop_asked.is_set() else "input_ended", None)

    def stop(self) -> None:
        """Stop gracefully: take in no more, finish and ack what was received; `run` then returns."""
        if self._state in ("starting", "running"):
            self._enter("draining")
        self._stop_asked.set()

    def abort(self) -> None:
        """Stop hard: give up what is in flight; `run` then returns."""
        self.stop()
        self.inbox.abort()
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def snapshot(self) -> Snapshot:
        """Return counts and state of this moment; call it on the event loop."""
        now, queue = self.clock.monotonic(), self.inbox
        return Snapshot(
            pipeline=self.name,
            run_id=self.run_id,
            state=self._state,
            started_at_wall=self._started_wall,
            taken_at=now,
            uptime_seconds=now - self._started,
            sources={name: counts.copy() for name, counts in self.ledger.sources.items()},
            totals=self.ledger.totals(),
            dead_letters=dict(self.ledger.dead_letters),
            batches=dict(self._batches),
            queue_records=queue.records,
            queue_bytes=queue.size,
            queue_capacity_records=queue.limits.max_records,
            queue_capacity_bytes=queue.limits.max_bytes,
            queue_oldest_arrival=queue.oldest_arrival,
            memory_used=self.budget.used,
            memory_capacity=self.budget.capacity,
            inflight_batches=self._in_flight.batches,
            workers=self.workers.count,
            drivers=self._drivers(now),
            latency=self._latency.as_dict(),
            not_ready=self._not_ready(now),
            last_synced_wall=self._outbox.last_synced_wall,
            last_written_wall=self._outbox.last_written_wall,
        )

    async def _open_run_close(self) -> None:
        await self.sink.open(self._encoder.header())
        try:
            await self._dead_letters.open()
            async with anyio.create_task_group() as self._tasks:
                for task in (self._read, self._cut, self._deliver):
                    self._tasks.start_soon(task)
                if self._stop_asked.is_set():
                    self._enter("draining")
                else:
                    self._enter("running")
        finally:
            with anyio.move_on_after(LAST_SYNC_SECONDS, shield=True):
                await self._close()

    async def _close(self) -> None:
        try:
            await self._outbox.sync()
        finally:
            await self.sink.close()
            await self._dead_letters.close()

    async def _read(self) -> None:
        """Run the sources to their end or until stopped; then close the inbox, which ends everything after it."""
        async with anyio.create_task_group() as reading:
            reading.start_soon(self._stop_reading, reading.cancel_scope)
            async with anyio.create_task_group() as sources:
                for source in self.sources:
                    sources.start_soon(source.run, self._intake(source), name=f"source {source.name}")
            reading.cancel_scope.cancel()
        self.inbox.close("shutdown" if self._stop_asked.is_set() else "flush")
        self._enter("draining")

    def _intake(self, source: Source) -> SourceIntake:
        return SourceIntake(
            source.name,
            getattr(source, "when_full", "block"),
            self.inbox,
            self.ledger,
            self.budget,
            clock=self.clock,
            observer=self.observer,
            run_id=self.run_id,
        )

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
        self._raise_failure()
        self._outbox.close()

    async def _slot(self) -> None:
        self._raise_failure()
        while not self._in_flight.has_slot:
            self._waits_for = "backpressure"
            self._freed = anyio.Event()
            await self._freed.wait()
            self._waits_for = "input"
            self._raise_failure()

    def _submit(self, batch: Batch) -> None:
        if self._in_flight.scoring == 0:
            self._scored_at = batch.stamps.closed
        self._in_flight.started(batch)
        self._batches[batch.trigger] += 1
        self.ledger.opened(batch)
        self.observer.batch_closed(batch)
        self._executor.submit(batch)

    def _scored(self, batch: Batch, result: Outcome | Exception) -> None:
        self._scored_at = batch.stamps.encoded
        if isinstance(result, Exception):
            self._in_flight.scored(None)
            self._fail(result)
            return
        self._in_flight.scored(result)
        self.budget.take(result.size)
        self.observer.batch_scored(batch, result)
        self._outbox.add(batch, result)
        self._free()

    def _written(self, batch: Batch, outcome: Outcome) -> None:
        self.budget.give(self._in_flight.written(batch, outcome))
        for chunk in batch.chunks:
            self._latency.add(batch.stamps.written - chunk.arrived_at, chunk.count)
        self._free()

    def _acked(self, batch: Batch, outcome: Outcome) -> None:
        for partition, position in self.ledger.acked(batch, outcome).items():
            self._by_name[partition.source].acked({partition.name: position})
        if outcome.dead:
            self._check_share()

    def _check_share(self) -> None:
        totals = self.ledger.totals()
        settled = totals.scored + totals.dead_lettered
        if settled >= SHARE_COUNTS_FROM and totals.dead_lettered > self._stop_at * settled:
            self._fail(TooManyDeadError(totals.dead_lettered, settled, self._stop_at))

    async def _deliver(self) -> None:
        """Write and ack until all is out; the tasks that go along end with it."""
        async with anyio.create_task_group() as along:
            along.start_soon(self._limit_drain)
            if self.state_dir is not None:
                along.start_soon(self._sync_regularly)
            await self._outbox.run()
            along.cancel_scope.cancel()
        self._raise_failure()

    async def _limit_drain(self) -> None:
        await self._stop_asked.wait()
        await anyio.sleep(self.delivery.drain_timeout)
        self.abort()

    async def _sync_regularly(self) -> None:
        while True:
            await anyio.sleep(self.delivery.checkpoint_interval)
            await self._outbox.sync()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._free()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _free(self) -> None:
        if self._freed is not None:
            self._freed.set()
            self._freed = None

    def _enter(self, state: State) -> None:
        if self._state != state:
            self._state = state
            self.observer.state_changed(state)

    def _finish(self, ended: Ended, error: BaseException | None) -> RunReport:
        seconds = self.clock.monotonic() - self._started
        totals = self.ledger.totals()
        self.report = RunReport(
            run=self.run_id,
            pipeline=self.name,
            ended=ended,
            error=(str(error) or type(error).__name__) if error is not None else None,
            seconds=seconds,
            records=totals.as_records(),
            batches=dict(self._batches),
            records_per_second=(totals.scored + totals.dead_lettered) / max(seconds, 1e-9),
            latency_seconds=self._latency.as_dict(),
        )
        self._enter("failed" if ended == "failed" else "stopped")
        return self.report

    def _drivers(self, now: float) -> dict[str, DriverState]:
        writing = "backpressure" if self._outbox.writing_since is not None else "input"
        return {
            "batch": DriverState(now, self._waits_for),
            "score": DriverState(self._scored_at, None if self._in_flight.scoring else "input"),
            "sink": DriverState(now, writing),
        }

    def _not_ready(self, now: float) -> list[str]:
        reasons = [] if self._state == "running" else [f"the pipeline is {self._state}"]
        since = self._outbox.writing_since
        if since is not None and now - since > STALL_SECONDS:
            reasons.append(f"sink {self.sink.name}: a write has been waiting for {now - since:.0f} s")
        return reasons


def distinctly_named(sources: Sequence[Source]) -> list[Source]:
    """Return the sources, each with a name of its own: a second `file` becomes `file_2`."""
    seen: dict[str, int] = {}
    named = []
    for source in sources:
        seen[source.name] = number = seen.get(source.name, 0) + 1
        named.append(source if number == 1 else _renamed(source, f"{source.name}_{number}"))
    return named


def _renamed(source: Any, name: str) -> Source:
    return replace(source, name=name)  # type: ignore[no-any-return]  # every source is a dataclass


def _new_run_id(clock: Clock) -> str:
    started = datetime.fromtimestamp(clock.wall(), UTC)
    return f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
