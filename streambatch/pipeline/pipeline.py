"""A pipeline as a program sees it: what it is made from, and the run that is at work, comes next, or was the last.

A run is built ahead, so that parts that don't fit each other are found out when the pipeline is put together. Nothing
of it is opened, or used twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from streambatch.core.budget import Limits
from streambatch.core.clock import Clock
from streambatch.core.errors import RunningError
from streambatch.core.events import Observer
from streambatch.core.parts import Sink, Source
from streambatch.core.report import RunReport, Snapshot
from streambatch.core.schema import RecordSchema
from streambatch.core.signal import Signal
from streambatch.core.wrapping import RunningSource, WritingSink
from streambatch.delivery.dead_letters import DeadLetterOptions
from streambatch.durability.manifest import Provenance
from streambatch.durability.options import Delivery, RunsOptions
from streambatch.microbatch.inbox import QueueLimits
from streambatch.microbatch.window import BatchPolicy
from streambatch.pipeline.run import Run
from streambatch.pipeline.settings import Description, Settings, describe
from streambatch.scoring.executors.choice import Workers
from streambatch.scoring.transform import Transform
from streambatch.storage.folder import StateFolder


class Pipeline:
    """Sources, one window, workers and a sink. It may be run again after a run has ended.

    Without `state_dir` a batch is acked when it is written; with it, once it is in a checkpoint, one every
    `delivery.checkpoint_interval`, from which the next run goes on.
    It can be pickled if its parts can: what comes out has not run.
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
        """Raises ConfigError, OptionError, ShapeError or StepError for parts that can't be built or don't fit."""
        description = describe(
            name=name,
            sources=sources,
            record=record,
            sink=sink,
            limits=limits,
            state_dir=state_dir,
            runs=runs,
            observer=observer,
            clock=clock,
        )
        settings = Settings(
            preprocess=tuple(preprocess),
            model=model,
            batch=batch or BatchPolicy(),
            workers=workers or Workers(),
            queue=queue or QueueLimits(),
            delivery=delivery or Delivery(),
            dead_letter=dead_letter or DeadLetterOptions(),
            provenance=provenance,
        )
        self._description, self._settings = description, settings
        self._run = Run(description, settings)
        self._renewed = Signal()

    @classmethod
    def of(cls, description: Description, settings: Settings) -> Pipeline:
        """Return a pipeline of what the keywords of the constructor are made into."""
        # Not by `__init__`, which takes the parts one by one: here they are put together already.
        pipeline = cls.__new__(cls)
        pipeline._description, pipeline._settings = description, settings
        pipeline._run = Run(description, settings)
        pipeline._renewed = Signal()
        return pipeline

    def __reduce__(self) -> tuple[Any, ...]:
        folder = self._description.state_path  # whether it is held is not passed on
        return Pipeline.of, (replace(self._description, state_dir=folder), self._settings)

    @property
    def name(self) -> str:
        return self._description.name

    @property
    def sources(self) -> Sequence[Source]:
        return self._description.sources

    @property
    def sink(self) -> Sink:
        return self._description.sink

    @property
    def model(self) -> Any:
        """The model, as it was built last."""
        return self._run.settings.model

    @property
    def state_dir(self) -> Path | None:
        return self._description.state_path

    @property
    def clock(self) -> Clock:
        return self._description.clock

    @property
    def run_id(self) -> str:
        """The id of the run that is at work; else of the one that comes first, or was the last."""
        return self._run.id

    async def run(self) -> RunReport:
        """Run to the end of the input or until stopped, and report.

        Raises the StreambatchError that ended the run; `report` then says so too. Cancelling it is a hard stop.
        Raises RunningError while an earlier call has not ended.
        """
        if self._run.lifecycle.has_begun:
            if not self._run.lifecycle.ended.is_set():
                raise RunningError(self.name, self.run_id)
            # The first run was built by the constructor, each further one is built here.
            self._run = Run(self._description, self._settings)
            # `listening` waits for a run that has not ended.
            self._renewed.notify()
        return await self._run.run()

    @property
    def report(self) -> RunReport | None:
        """The report of the run, once it has ended."""
        return self._run.report

    def stop(self) -> None:
        """Stop gracefully: take in no more, finish and ack what was received; `run` then returns.

        Before the first run, that run ends at once; after a run has ended, it does nothing.
        """
        self._run.stop()

    def abort(self) -> None:
        """Stop hard: give up what is in flight; `run` then returns."""
        self._run.abort()

    def transform_of(self, settings: Settings) -> Transform:
        """Return what scores batches by other settings; any thread may call it. Raises for those that won't do."""
        return self._run.transform_of(settings)

    def reload(self, settings: Settings, transform: Transform) -> None:
        """Go on by other settings, of which `transform` was made: from the next batch that is cut on.

        Batches that were cut before end as they began. Call it on the event loop, once the pipeline runs.
        """
        self._run.reload(settings, transform)
        # Last: settings that the run refused must not come back with the next run.
        self._settings = settings

    def snapshot(self) -> Snapshot:
        """Return counts and state of this moment; call it on the event loop."""
        return self._run.snapshot()

    async def listening(self, source: str | None = None) -> str | None:
        """Wait until a source listens, and return its address; None if it never does, or if the run ends before.

        Between two runs it waits for the next one. source: its name; may be left out where there is one source.
        Raises OptionError for one that is not there.
        """
        # The address of a run that is over is of no use; the next run may get another.
        while self._run.lifecycle.ended.is_set():
            await self._renewed.wait()
        return await self._run.listening(source)

    def is_resumable(self, source: str) -> bool:
        """Whether what is not acked of a source is read again by the next run with the same state folder."""
        return self._run.is_resumable(source)

    @property
    def safe_records(self) -> int:
        """Records that are not scored and wait in a spool, or were left to be cut again by the next run."""
        return self._run.safe_records
