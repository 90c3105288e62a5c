"""One run of a pipeline with a state folder: it goes on where the last one was, and stores how far it has come.

The folder is held from the first look into it until the run has ended and is stored so. Nothing is read from a source
or written to an output before everything that resumes knows where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio
from anyio import to_thread

from streambatch.core.clock import Clock
from streambatch.core.errors import StateError, StateOutage
from streambatch.core.ledger import Ledger
from streambatch.core.parts import Model, Reader
from streambatch.core.report import RunReport
from streambatch.delivery.committer import STATE
from streambatch.delivery.outages import OutputOutages
from streambatch.delivery.outbox import Outbox
from streambatch.durability.checkpointer import Checkpointer
from streambatch.durability.manifest import Provenance, describe_run
from streambatch.durability.options import RunsOptions
from streambatch.durability.resume import plan_batches, postponed_ids, resume_readers
from streambatch.durability.store.store import StateStore
from streambatch.durability.stored import IntendedBatch, RunChange, StoredState
from streambatch.microbatch.planned import PlannedBatches
from streambatch.scoring.states import dump_states
from streambatch.scoring.transform import Transform
from streambatch.storage.folder import StateFolder

PRUNE_SECONDS = 3600.0
"""How often old runs are forgotten."""


class _Found(NamedTuple):
    """The state that the last run left."""

    state: StoredState
    intended: list[IntendedBatch]
    has_scored: bool
    """Whether the model is known to have scored records."""


class CheckpointedRun:
    """The state of one run. `resume` comes first; `prune` goes on beside the run; `end` comes last in any case."""

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
        self._has_begun = False

    async def resume(
        self,
        readers: Sequence[Reader],
        readings: Mapping[str, Mapping[str, Any]],
        ledger: Ledger,
        transform: Transform,
        outbox: Outbox,
    ) -> PlannedBatches | None:
        """Open the state, give each part what it goes on from, and begin a run. Returns what is to be cut again.

        readings: by source, the options that decide how its bytes become records.
        Raises HeldError, StateError, or StepError for steps that don't fit their stored state.
        """
        # Entered here and left in `end`: it is held for as long as the run lasts, over many calls.
        self._folder.__enter__()
        found = await self._open(outbox.outages)
        # Before any part is given its state: under other options, its positions mean other records.
        for name, reading in readings.items():
            self._store.check_reading(name, reading)
        transform.restore(found.state.steps)
        transform.is_proven = found.has_scored
        resume_readers(readers, found.state, ledger)
        planned = plan_batches(found.state, found.intended, readers)
        self._checkpointer = Checkpointer(
            self._store,
            found.state,
            ledger,
            readers,
            clock=self._clock,
            dump=partial(dump_states, transform.steps),  # not a method of the transform, which a reload replaces
            postponed=partial(postponed_ids, planned),
        )
        outbox.restore(self._checkpointer, found.state.outputs)
        # Only now: a start that fails before leaves no run behind.
        await outbox.outages.outlast(STATE, partial(self._begin, readings))
        self._checkpointer.start()
        return planned

    def reloaded(self, sequence: int, provenance: Provenance) -> None:
        """Take note of what batches from this sequence on are made with.

        It is stored with the first of them that is acked.
        """
        before, self._provenance = self._provenance, provenance
        if (before.config_digest, before.model) == (provenance.config_digest, provenance.model):
            return
        assert self._checkpointer is not None
        differing = {key: value for key, value in provenance.config.items() if before.config.get(key) != value}
        self._checkpointer.changed(
            sequence,
            RunChange(
                at=self._clock.wall(),
                batch=-1,  # known once the first of them is written
                config=differing,
                config_digest=provenance.config_digest,
                model=provenance.model,
            ),
        )

    async def prune(self) -> None:
        """Forget old runs now and then, until cancelled."""
        while True:
            with suppress(StateOutage):  # they can be forgotten the next time
                await to_thread.run_sync(self._store.prune, self._runs.keep, self._clock.wall())
            await anyio.sleep(PRUNE_SECONDS)

    async def end(self, report: RunReport, ledger: Ledger, outages: OutputOutages, *, has_failed: bool) -> None:
        """Store how the run ended, and give the folder back.

        Raises StateError, unless the run failed anyhow.
        """
        try:
            if self._has_begun:
                await outages.outlast(STATE, partial(self._end, report, ledger))
        except StateError:
            if not has_failed:  # else it would hide why the run failed
                raise
        finally:
            if self._checkpointer is not None:
                self._checkpointer.close()
            # The folder last: once it is given back, another process may open the store.
            self._store.close()
            self._folder.__exit__()

    async def _open(self, outages: OutputOutages) -> _Found:
        """Open the store and read it, once no outage keeps that from being done."""
        found: list[_Found] = []

        async def read() -> None:
            found.append(await to_thread.run_sync(self._opened))

        await outages.outlast(STATE, read)
        return found[0]

    def _opened(self) -> _Found:
        self._store.open()
        # A model of no digest can't be told from another. It is taken for a new one: if that was wrong, a stop loses
        # nothing, while a wrong model that goes on makes dead letters of all there is.
        digest = self._provenance.model.get("sha256")
        has_scored = digest is not None and self._store.has_scored(digest)
        return _Found(self._store.load(), self._store.intended(), has_scored)

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

    async def _end(self, report: RunReport, ledger: Ledger) -> None:
        """Store the last counts, and how far was read with them.

        What a run that failed had received since its last checkpoint is then known to the next one.
        """
        assert self._checkpointer is not None
        await self._checkpointer.commit((), {}, self._checkpointer.point())
        at, counts = self._clock.wall(), {name: each.copy() for name, each in ledger.sources.items()}
        await to_thread.run_sync(
            lambda: self._store.end_run(report.run, report.ended, report.error, at, counts, report.as_dict())
        )


def checkpointed_run(
    folder: Path | StateFolder | None,
    *,
    run: str,
    pipeline: str,
    clock: Clock,
    provenance: Provenance | None,
    runs: RunsOptions | None,
    model: Model,
) -> CheckpointedRun | None:
    """Return the state of a run in a folder; None without one. Without a provenance, the model's digest is noted."""
    if folder is None:
        return None
    if provenance is None:
        provenance = Provenance(model={} if model.digest is None else {"sha256": model.digest})
    runs = runs or RunsOptions()
    return CheckpointedRun(folder, run=run, pipeline=pipeline, clock=clock, provenance=provenance, runs=runs)
