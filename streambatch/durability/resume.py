"""Give each part of a pipeline its share of the stored state at the start, so that it goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence

from streambatch.core.chunks import Partition
from streambatch.core.ledger import Ledger
from streambatch.core.parts import Reader
from streambatch.durability.numbering import batch_id
from streambatch.durability.stored import IntendedBatch, StoredState
from streambatch.microbatch.planned import PlannedBatch, PlannedBatches


def resume_readers(readers: Sequence[Reader], state: StoredState, ledger: Ledger) -> None:
    """Give the readers the positions of their partitions, and the ledger what counts as recovered when it comes."""
    for reader in readers:
        if not reader.is_resumable:
            continue
        saved = state.partitions.get(reader.name, {})
        reader.resume(saved)
        # A spool tells the intake itself, since it knows what it holds.
        if reader.counts_recovered:
            continue
        for name, partition in saved.items():
            if partition.read_to > partition.position:
                ledger.resume(Partition(reader.name, name), partition.read_to)


def plan_batches(
    state: StoredState, intended: Sequence[IntendedBatch], readers: Sequence[Reader]
) -> PlannedBatches | None:
    """Return the batches that were about to be sent and are not acked, to be cut again; None if there are none."""
    if not intended:
        return None
    resumable = {reader.name for reader in readers if reader.is_resumable}
    planned = PlannedBatches([_planned(state.state_id, batch) for batch in intended], resumable)
    # Their records don't come again: a batch that waits for them would wait for ever.
    for gone in planned.awaited - resumable:
        planned.expect_no_more(gone)
    return planned


def postponed_ids(planned: PlannedBatches | None) -> Sequence[str]:
    """Return the ids of the batches that are left to the next run."""
    return [batch.id for batch in planned.postponed if batch.id is not None] if planned is not None else ()


def _planned(state_id: str, batch: IntendedBatch) -> PlannedBatch:
    return PlannedBatch(
        ranges=batch.ranges,
        id=batch_id(state_id, batch.batch, batch.revision),
        changed_id=batch_id(state_id, batch.batch, batch.revision + 1),
    )
