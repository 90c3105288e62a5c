"""Makes checkpoints: gathers the facts on written batches, and stores them in one transaction.

A checkpoint is of one moment: counts, positions, lengths and journal are those after the
batches it acks, though reading, scoring and writing go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
from anyio import to_thread

from streambatch.core.batches import Batch
from streambatch.core.checkpoints import OutputMark
from streambatch.core.clock import Clock
from streambatch.core.ledger import Ledger
from streambatch.core.outcomes import Outcome
from streambatch.core.parts import Reader
from streambatch.core.report import Counts
from streambatch.durability.digests import DigestPoint, Digests
from streambatch.durability.numbering import BatchNumbers, number_in, revision_in
from streambatch.durability.positions import PartitionPositions
from streambatch.durability.store.store import StateStore
from streambatch.durability.stored import Checkpoint, RunChange, StoredState
from streambatch.durability.unacked import UnackedBatches

Finished = tuple[Batch, Outcome]


class Checkpointer:
    """The checkpoints of one run: `delivery.committer.Checkpoints`."""

    def __init__(
        self,
        store: StateStore,
        state: StoredState,
        ledger: Ledger,
        readers: Sequence[Reader],
        *,
        clock: Clock,
        dump: Callable[[Any], bytes],
        postponed: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """dump: encodes the states of the steps with memory. postponed: returns the ids, in order, of the batches
        intended by an earlier run that a later one is to cut again."""
        self._store, self._ledger, self._clock = store, ledger, clock
        self._dump, self._postponed = dump, postponed
        self._numbers = BatchNumbers(state.state_id, state.next_batch)
        self._unacked = UnackedBatches()
        self._positions = PartitionPositions(state.partitions, readers, ledger)
        self._digests = Digests()
        self._counts: Mapping[str, Counts] = {}
        self._outputs: Mapping[str, OutputMark] = dict(state.outputs)

    def start(self) -> None:
        """Start to hash the records that are noted."""
        self._digests.start()

    def close(self) -> None:
        """Stop hashing."""
        self._digests.close()

    async def begin(self) -> None:
        """Store where new partitions begin that aren't read from their start: after a crash they would begin elsewhere.

        Raises StateOutage.
        """
        if self._positions.look_for_late_starts():
            await self.commit([], {}, self.point())

    def id_of(self, batch: Batch) -> str:
        """Return the id of a batch, which is the same if it is cut again after a crash."""
        return self._numbers.id_of(batch)

    def changed(self, sequence: int, change: RunChange) -> None:
        """Take note that batches from this sequence on are made with a change, which gets the number of the first."""
        self._unacked.announce(sequence, change)

    def written(self, batch: Batch, outcome: Outcome, place: OutputMark) -> None:
        """Note a batch whose bytes are about to be released."""
        for chunk in batch.chunks:
            # Records that can't be read again can't be verified, so they are not hashed.
            if chunk.partition.source in self._positions.resumable:
                self._digests.add(chunk)
        self._unacked.note(batch, self._numbers.number_of(batch), outcome, place)
        self._numbers.forget(batch)

    async def digested(self) -> None:
        """Wait while records that wait to be hashed hold too many bytes."""
        await self._digests.settle()

    def point(self) -> tuple[int, DigestPoint]:
        """Return a point that stands for all batches noted until now."""
        return self._unacked.noted, self._digests.point()

    async def intend(self, batches: Sequence[Batch]) -> None:
        """Store which records the batches hold that are about to be sent. Raises StateOutage."""
        numbered = [
            (batch, self._numbers.number_of(batch), revision_in(batch.id) if batch.id else 0) for batch in batches
        ]
        await to_thread.run_sync(self._store.intend, self._unacked.intended(numbered))

    async def commit(
        self, finished: Sequence[Finished], marks: Mapping[str, OutputMark], point: tuple[int, DigestPoint]
    ) -> None:
        """Store that these batches, the first of those noted, are acked, and how far the outputs go with them.

        Raises StateOutage, after which the same may be stored later.
        """
        noted, digests = point
        self._positions.hashed(await self._digests.until(digests))
        # The digests are of all that was noted up to the point: of what is acked only if that is the same.
        is_all = noted == self._unacked.acked + len(finished)
        checkpoint = self._checkpoint(finished, marks, with_digests=is_all)
        if checkpoint is None:
            return
        with anyio.CancelScope(shield=True):  # what is stored is never stored again
            await to_thread.run_sync(self._store.commit, checkpoint)
        self._stored(checkpoint)

    def _checkpoint(
        self, finished: Sequence[Finished], marks: Mapping[str, OutputMark], *, with_digests: bool
    ) -> Checkpoint | None:
        """Return the checkpoint of this moment; None if the last one has all of it."""
        # No await from here on: reading, scoring and writing go on in every one, and all of this is of one moment.
        counts = self._ledger.after(finished)
        entries = self._unacked.first(len(finished))
        self._positions.look()
        self._positions.advance(entries, with_digests=with_digests)
        partitions = self._positions.changed()
        outputs = {name: mark for name, mark in marks.items() if self._outputs.get(name) != mark}
        if not entries and not outputs and not partitions and counts == self._counts:
            return None
        # Batches are in order: the last one's states are those after all of them.
        steps = finished[-1][1].states if finished else None
        postponed = [number_in(id) for id in self._postponed()]
        return Checkpoint(
            at=self._clock.wall(),
            counts=counts,
            partitions=partitions,
            # After `advance`: this checkpoint may ack the last record of a partition.
            forgotten=self._positions.acked_and_over(),
            outputs=outputs,
            steps=self._dump(steps) if steps is not None else None,
            journal=entries,
            changes=self._unacked.changes_in(len(entries)),
            postponed=(postponed[0], postponed[-1]) if postponed else None,
        )

    def _stored(self, checkpoint: Checkpoint) -> None:
        """Take note that a checkpoint is durable."""
        self._unacked.stored(len(checkpoint.journal), len(checkpoint.changes))
        self._counts, self._outputs = checkpoint.counts, {**self._outputs, **checkpoint.outputs}
        self._positions.stored(checkpoint.partitions)
        for partition in checkpoint.forgotten:
            self._positions.forget(partition)
            self._unacked.forget(partition)
            self._digests.forget(partition)
