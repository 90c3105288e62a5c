"""What a state folder adds to a pipeline: it goes on where it was, and stores how far it has come.

The folder is held from the first look into it until the run has ended and is stored so; nothing is read from a source
or written to an output before everything that resumes knows where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
from anyio import to_thread
from msgspec.structs import replace
from pydantic import Field

from streambatch.core.chunks import Partition
from streambatch.core.clock import Clock
from streambatch.core.errors import StateError, StateOutage
from streambatch.core.ledger import Ledger
from streambatch.core.options import options
from streambatch.core.parts import Model, Reader
from streambatch.core.report import RunReport
from streambatch.core.units import Duration
from streambatch.delivery.outages import OutputOutages
from streambatch.delivery.outbox import Outbox
from streambatch.durability.checkpointer import Checkpointer, batch_id
from streambatch.durability.manifest import RunsOptions, describe_run
from streambatch.durability.store.store import StateStore
from streambatch.durability.stored import Intent, RunChange, State
from streambatch.microbatch.planned import PlannedBatch, PlannedBatches
from streambatch.scoring.states import dump_states
from streambatch.scoring.transform import Transform
from streambatch.storage.folder import StateFolder

PRUNE_SECONDS = 3600.0
"""How often old runs are forgotten."""


@options
class Delivery:
    """When what was written is made durable, and how long a stop may take."""

    checkpoint_interval: Annotated[Duration, Field(gt=0)] = 1.0
    """Time between two checkpoints."""
    drain_timeout: Annotated[Duration, Field(ge=0)] = 20.0
    """Time a graceful stop may take before what is in flight is given up."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a pipeline comes from, for the manifest of its runs.

    config: effective, with secrets redacted. model: `path`, `format`, `sha256`, `parameters`. sink: such as `path` and
    `format`.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    config_digest: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    sink: Mapping[str, Any] = field(default_factory=dict)


class Durability:
    """The state of one run."""

    def __init__(
        self,
        folder: Path | StateFolder,
        *,
        run: str,
        pipeline: str,
        clock: Clock,
        provenance: Provenance,
        runs: RunsOptions,
    ) -> None:
        self._folder = folder if isinstance(folder, StateFolder) else StateFolder(folder)
        self._store = StateStore(self._folder.path, clock.wall)
        self._run, self._pipeline, self._clock = run, pipeline, clock
        self._provenance, self._runs = provenance, runs
        self._checkpointer: Checkpointer | None = None
        self._has_begun = self._is_proven = False

    async def resume(
        self,
        readers: Sequence[Reader],
        readings: Mapping[str, Mapping[str, Any]],
        ledger: Ledger,
        transform: Transform,
        outbox: Outbox,
    ) -> PlannedBatches | None:
        """Open the state, tell every part how far it has come, and begin a run. Returns what is to be cut again.

        readings: by source, the options that decide how its bytes become records.
        Raises HeldError, StateError, or StepError for steps that don't fit their stored state.
        """
        self._folder.__enter__()
        await outbox.outages.outlast("state", self._open)
        state, intents = self._found
        for name, reading in readings.items():
            self._store.check_reading(name, reading)
        transform.restore(state.steps)
        transform.is_proven = self._is_proven
        _resume(readers, state, ledger)
        dump = partial(dump_states, transform.steps)  # and not the transform's own: its model may be replaced
        planned = _plan(state, intents, readers)
        self._checkpointer = Checkpointer(
            self._store, state, ledger, readers, clock=self._clock, dump=dump, left=partial(_left, planned)
        )
        outbox.restore(self._checkpointer, state.outputs)
        await outbox.outages.outlast("state", lambda: self._begin(readings))
        self._checkpointer.start()
        return planned

    async def prune(self) -> None:
        """Forget old runs now and then, until cancelled."""
        while True:
            with suppress(StateOutage):  # they can be forgotten the next time
                await to_thread.run_sync(self._store.prune, self._runs.keep, self._clock.wall())
            await anyio.sleep(PRUNE_SECONDS)

    async def end(self, report: RunReport, ledger: Ledger, outages: OutputOutages, *, has_failed: bool) -> None:
        """Store how the run ended, and let go of the folder.

        Raises StateError, unless the run failed anyhow: nothing is to hide why.
        """
        try:
            if self._has_begun:
                await outages.outlast("state", lambda: self._end(report, ledger))
        except StateError:
            if not has_failed:
                raise
        finally:
            if self._checkpointer is not None:
                self._checkpointer.close()
            self._store.close()
            self._folder.__exit__()

    def reloaded(self, sequence: int, provenance: Provenance) -> None:
        """Learn what batches from this sequence on are made with; it is stored with the first of them that is acked."""
        before, self._provenance = self._provenance, provenance
        if (before.config_digest, before.model) == (provenance.config_digest, provenance.model):
            return
        assert self._checkpointer is not None
        differing = {key: value for key, value in provenance.config.items() if before.config.get(key) != value}
        self._checkpointer.changed(
            sequence,
            RunChange(
                at=self._clock.wall(),
                batch=-1,
                config=differing,
                config_digest=provenance.config_digest,
                model=provenance.model,
            ),
        )

    async def _open(self) -> None:
        self._found = await to_thread.run_sync(self._opened)

    def _opened(self) -> tuple[State, list[Intent]]:
        self._store.open()
        # A model of no digest can't be told from another. It is taken for a new one: if that was wrong, a stop loses
        # nothing, while a wrong model that goes on makes dead letters of all there is.
        digest = self._provenance.model.get("sha256")
        self._is_proven = digest is not None and self._store.has_scored(digest)
        return self._store.load(), self._store.intended()

    async def _end(self, report: RunReport, ledger: Ledger) -> None:
        """Store the last counts, and how far was read with them: what a run that failed had received since its last
        checkpoint is known to the next one."""
        assert self._checkpointer is not None
        await self._checkpointer.commit((), {}, self._checkpointer.point())
        at, counts = self._clock.wall(), {name: each.copy() for name, each in ledger.sources.items()}
        await to_thread.run_sync(
            lambda: self._store.end_run(report.run, report.ended, report.error, at, counts, report.as_dict())
        )

    async def _begin(self, readings: Mapping[str, Mapping[str, Any]]) -> None:
        provenance = self._provenance
        start = describe_run(
            run=self._run,
            pipeline=self._pipeline,
            started=self._clock.wall(),
            config=provenance.config,
            config_digest=provenance.config_digest,
            model=provenance.model,
            sinks={"sink": provenance.sink},
            readings=readings,
        )
        await to_thread.run_sync(self._store.begin_run, start)
        self._has_begun = True


def durability_in(
    folder: Path | StateFolder | None,
    *,
    run: str,
    pipeline: str,
    clock: Clock,
    provenance: Provenance | None,
    runs: RunsOptions | None,
    model: Model,
) -> Durability | None:
    """Return the state of a run in a folder; None without one. Of a model of unknown provenance its digest is noted."""
    if folder is None:
        return None
    if provenance is None:
        provenance = Provenance(model={} if model.digest is None else {"sha256": model.digest})
    runs = runs or RunsOptions()
    return Durability(folder, run=run, pipeline=pipeline, clock=clock, provenance=provenance, runs=runs)


def _plan(state: State, intents: Sequence[Intent], readers: Sequence[Reader]) -> PlannedBatches | None:
    """Return what is to be cut again; of sources that are gone, or can't be read again, nothing is waited for."""
    if not intents:
        return None
    resumable = {reader.name for reader in readers if reader.is_resumable}
    planned = PlannedBatches([_planned(state.state_id, intent) for intent in intents], resumable)
    for gone in planned.awaited - resumable:
        planned.expect_no_more(gone)
    return planned


def _left(planned: PlannedBatches | None) -> Sequence[str]:
    """Return the ids of the batches that are left to the next run."""
    return [batch.id for batch in planned.postponed if batch.id is not None] if planned is not None else ()


def _planned(state_id: str, intent: Intent) -> PlannedBatch:
    changed = replace(intent, revision=intent.revision + 1)
    return PlannedBatch(ranges=intent.ranges, id=batch_id(state_id, intent), changed_id=batch_id(state_id, changed))


def _resume(readers: Sequence[Reader], state: State, ledger: Ledger) -> None:
    for reader in readers:
        saved = state.partitions.get(reader.name, {})
        if reader.is_resumable:
            reader.resume(saved)
            for name, partition in saved.items() if not reader.counts_recovered else ():
                if partition.read_to > partition.position:
                    ledger.resume(Partition(reader.name, name), partition.read_to)
