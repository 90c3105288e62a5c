"""One start-to-stop of a pipeline: its stages, in one task group.

At its end, however it came, every record received is scored, dead-lettered, dropped by config, or counted as unacked.
A run knows the interfaces of parts, never a concrete source, model or sink.
"""

from __future__ import annotations

import anyio
from anyio.lowlevel import checkpoint

from streambatch.core.budget import Budget
from streambatch.core.errors import OptionError, first_cause
from streambatch.core.events import Observers
from streambatch.core.ledger import Ledger
from streambatch.core.parts import Reader
from streambatch.core.report import Ended, RunReport, Snapshot
from streambatch.core.text import encodable
from streambatch.delivery.dead_letter_file import dead_letter_writer
from streambatch.delivery.dead_letters import DeadLetterEncoder
from streambatch.durability.checkpointed_run import checkpointed_run
from streambatch.microbatch.inbox import Inbox, InboxAborted
from streambatch.microbatch.inflight import InFlight
from streambatch.microbatch.intake import SourceIntake
from streambatch.microbatch.window import Window
from streambatch.pipeline.context import RunContext
from streambatch.pipeline.cutting import Cutting
from streambatch.pipeline.delivering import LAST_SYNC_SECONDS, Delivering, RunOutputs
from streambatch.pipeline.feedback import Feedback
from streambatch.pipeline.reading import Input, Reading
from streambatch.pipeline.settings import QUEUE_SHARE, Description, Settings
from streambatch.pipeline.settlement import Settlement
from streambatch.pipeline.status import Lifecycle, SourceFailures, new_run_id
from streambatch.scoring.factory import encoder_for, transform_for
from streambatch.scoring.transform import Transform
from streambatch.spool.spooled import reader_of


class Run:
    """The parts of one run, built for it. Used once; nothing is opened before `run`."""

    def __init__(self, description: Description, settings: Settings) -> None:
        """Raises what a part raises that can't be built, or doesn't fit the others."""
        clock, memory = description.clock, description.limits.memory
        self._description = description
        settings = self.settings = settings.built(description.site)
        """With steps and model built."""
        self._context = context = RunContext(
            run_id=new_run_id(clock),
            clock=clock,
            observer=description.observer,
            ledger=Ledger(),
            budget=Budget(memory),
            # One slot for now: Cutting sets the bounds, since it makes the executor.
            feedback=Feedback(InFlight(1, memory // QUEUE_SHARE)),
        )
        self._checkpointed = checkpointed_run(
            description.state_dir,
            run=context.run_id,
            pipeline=description.name,
            clock=clock,
            provenance=settings.provenance,
            runs=description.runs,
            model=settings.model,
        )
        self.lifecycle = Lifecycle(clock, description.observer)
        self.reading = self._build_reading(settings)
        # One for all transforms of the run, also after a reload: the header is written once, and all rows must fit it.
        self._encoder = encoder_for(description.sink.format, description.record)
        transform, window = self._transform_of(settings), Window(settings.batch)
        inbox = self.reading.inbox
        settlement = Settlement(
            context,
            settings,
            transform,
            self.reading.readers,
            has_full_batch=lambda: inbox.records >= window.policy.max_records,
            is_finite=description.is_finite,
        )
        self.delivering = Delivering(context, settings, self._build_outputs(settings), settlement, self._checkpointed)
        self.cutting = Cutting(context, settings, transform, inbox, window, self.delivering.outbox)
        self._tasks: anyio.abc.TaskGroup | None = None
        self.report: RunReport | None = None
        """The report of the run, once it has ended."""

    @property
    def id(self) -> str:
        return self._context.run_id

    async def run(self) -> RunReport:
        """Run to the end of the input or until stopped, and report; see `Pipeline.run`."""
        self.lifecycle.begin()
        self.cutting.scored_at = self.lifecycle.began_at
        try:
            await self._open_run_close()
        except anyio.get_cancelled_exc_class():
            await self._end("stopped", None)
            raise
        except BaseException as error:
            # InboxAborted alone is a hard stop or a drain that took too long; beside another error it is its
            # consequence.
            cause = first_cause(error, besides=InboxAborted)
            if not isinstance(cause, InboxAborted):
                await self._end("failed", cause)
                # Out of the exception groups of the stages: a caller catches the error itself.
                raise cause from cause.__cause__
            report = await self._end("stopped", None)
            await checkpoint()  # where it was given up because it is cancelled, it is here
            return report
        return await self._end("stopped" if self._context.feedback.stop_asked.is_set() else "input_ended", None)

    def stop(self) -> None:
        """Stop gracefully; see `Pipeline.stop`."""
        if self.lifecycle.state in ("starting", "running"):
            self.lifecycle.enter("draining")
        self._context.feedback.stop_asked.set()

    def abort(self) -> None:
        """Stop hard; see `Pipeline.abort`."""
        self.stop()
        # Cancellation alone doesn't do: sources that wait for room are shielded from it, see SourceIntake.
        self.reading.inbox.abort()
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def transform_of(self, settings: Settings) -> Transform:
        """Return what scores batches by other settings; see `Pipeline.transform_of`."""
        settings = settings.built(self._description.site)
        settings.check_reload(self.settings)
        return self._transform_of(settings)

    def reload(self, settings: Settings, transform: Transform) -> None:
        """Go on by other settings, of which `transform` was made; see `Pipeline.reload`."""
        # The transform's own model: options would load it a second time, on the event loop, as another object.
        self.settings = settings.built_around(transform.model, self._description.site)
        self.reading.reload(self._description.queue_limits(settings))
        self.cutting.reload(settings, transform)
        self.delivering.reload(settings, transform)
        if self._checkpointed is not None and settings.provenance is not None:
            self._checkpointed.reloaded(self.cutting.next_sequence, settings.provenance)

    def snapshot(self) -> Snapshot:
        """Return counts and state of this moment."""
        lifecycle, budget = self.lifecycle, self._context.budget
        now = self._context.clock.monotonic()
        return Snapshot(
            pipeline=self._description.name,
            run_id=self.id,
            state=lifecycle.state,
            started_at_wall=lifecycle.began_wall,
            taken_at=now,
            uptime_seconds=now - lifecycle.began_at,
            not_ready=self._not_ready(now),
            memory_used=budget.used,
            memory_capacity=budget.capacity,
            reading=self.reading.status(now),
            cutting=self.cutting.status(now),
            delivering=self.delivering.status(now),
        )

    def is_resumable(self, source: str) -> bool:
        """Whether what is not acked of a source is read again by the next run; see `Pipeline.is_resumable`."""
        return self._checkpointed is not None and self.reading.readers[source].is_resumable

    async def listening(self, source: str | None) -> str | None:
        """Wait until a source listens, and return its address; None if it never does in this run."""
        reader = self._reader_named(source)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._until_ended, tasks.cancel_scope)
            address = await reader.listening()
            tasks.cancel_scope.cancel()
            return address
        # The run ended first, and `_until_ended` cancelled the wait.
        return None

    @property
    def safe_records(self) -> int:
        """Records that are not scored and safe; see `Pipeline.safe_records`."""
        return self.reading.spooled_records + self.cutting.postponed_records

    def _transform_of(self, settings: Settings) -> Transform:
        description = self._description
        return transform_for(
            description.sources,
            description.record,
            settings.preprocess,
            settings.model,
            self._encoder,
            description.observer,
        )

    def _build_reading(self, settings: Settings) -> Reading:
        description, context = self._description, self._context
        readers = {source.name: reader_of(source, description.site()) for source in description.sources}
        for name, reader in readers.items():
            context.ledger.add_source(name, is_resumable=reader.is_resumable)
        inbox, failures = Inbox(description.queue_limits(settings), readers), SourceFailures(context.clock)
        observer = Observers(description.observer, failures)
        inputs = [
            Input(
                readers[source.name],
                SourceIntake(
                    source.name,
                    source.when_full,
                    inbox,
                    context.ledger,
                    context.budget,
                    clock=context.clock,
                    observer=observer,
                    run_id=self.id,
                ),
            )
            for source in description.sources
        ]
        return Reading(inputs, inbox, failures, context.feedback.stop_asked)

    def _build_outputs(self, settings: Settings) -> RunOutputs:
        description = self._description
        return RunOutputs(
            description.sink.build(description.site(f"sink.{description.sink.name}")),
            dead_letter_writer(settings.dead_letter, description.state_path, description.clock),
            DeadLetterEncoder(description.name, self.id, description.clock),
        )

    async def _open_run_close(self) -> None:
        try:
            if await self._open():
                await self._run_opened()
        finally:
            await self.delivering.close()

    async def _open(self) -> bool:
        """Resume, and open the outputs. Returns False when an outage kept it from that and a stop was asked for."""
        return await self.delivering.outbox.outages.run_unless_stopped(self._context.feedback.stop_asked, self._resume)

    async def _resume(self) -> None:
        outbox = self.delivering.outbox
        # Before the outputs are opened: they get the marks of the last checkpoint, and cut their files back to those.
        if self._checkpointed is not None:
            readings = {source.name: source.reading() for source in self._description.sources}
            readers = list(self.reading.readers.values())
            planned = await self._checkpointed.resume(
                readers, readings, self._context.ledger, self.cutting.transform, outbox
            )
            self.cutting.resume(planned)
        await outbox.open(self._encoder.header())

    async def _run_opened(self) -> None:
        try:
            async with anyio.create_task_group() as self._tasks:
                for stage in (self._read, self.cutting.run, self.delivering.run):
                    self._tasks.start_soon(self.reading.inbox.or_abort, stage)
                # A stop may have been asked for while the outputs were opened.
                self.lifecycle.enter("draining" if self._context.feedback.stop_asked.is_set() else "running")
        finally:
            # Also after a failure or a hard stop: a batch that is written and acked is not scored again by the next
            # run.
            await self.delivering.sync()

    async def _read(self) -> None:
        await self.reading.run()
        self.lifecycle.enter("draining")

    async def _end(self, ended: Ended, error: BaseException | None) -> RunReport:
        report = self.report = self._report(ended, error)
        # After the report was made: who waits for the end may read it at once.
        self.lifecycle.end("failed" if ended == "failed" else "stopped")
        if self._checkpointed is not None:
            outages = self.delivering.outbox.outages
            with anyio.move_on_after(LAST_SYNC_SECONDS, shield=True):
                await self._checkpointed.end(report, self._context.ledger, outages, has_failed=error is not None)
        return report

    def _report(self, ended: Ended, error: BaseException | None) -> RunReport:
        seconds, totals = self._context.clock.monotonic() - self.lifecycle.began_at, self._context.ledger.totals()
        return RunReport(
            run=self.id,
            pipeline=self._description.name,
            ended=ended,
            error=encodable(str(error) or type(error).__name__) if error is not None else None,
            seconds=seconds,
            records=totals.as_records(),
            batches=self.cutting.batches,
            records_per_second=(totals.scored + totals.dead_lettered) / max(seconds, 1e-9),
            latency_seconds=self.delivering.latency,
        )

    def _not_ready(self, now: float) -> list[str]:
        reasons = [] if self.lifecycle.state == "running" else [f"the pipeline is {self.lifecycle.state}"]
        reasons += self.delivering.outbox.outages.reasons(now)
        reasons += self.reading.failures.reasons(now)
        reasons += self.delivering.stalls(now)
        return [encodable(reason) for reason in reasons]

    def _reader_named(self, source: str | None) -> Reader:
        readers = self.reading.readers
        if source is None and len(readers) == 1:
            return next(iter(readers.values()))
        if source is None or source not in readers:
            raise OptionError("source", source or "none", f"one of {', '.join(readers)}")
        return readers[source]

    async def _until_ended(self, scope: anyio.CancelScope) -> None:
        await self.lifecycle.ended.wait()
        scope.cancel()
