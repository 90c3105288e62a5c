"""Makes checkpoints: gathers what a pipeline says of the batches it writes, and stores it in one transaction.

What a checkpoint says of one moment is true of that moment: counts, positions, lengths and journal are those after the
batches it acks, whatever goes on meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, islice
from typing import Any

import anyio
import msgspec
from anyio import to_thread

from streambatch.core.batches import Batch
from streambatch.core.checkpoints import OutputMark
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.clock import Clock
from streambatch.core.ledger import Ledger
from streambatch.core.outcomes import Outcome
from streambatch.core.parts import Reader
from streambatch.core.report import Counts
from streambatch.durability.digests import Digests, Point
from streambatch.durability.store.store import StateStore
from streambatch.durability.stored import (
    Checkpoint,
    Intent,
    JournalEntry,
    Progress,
    Range,
    RunChange,
    State,
    StoredPartition,
)

Finished = tuple[Batch, Outcome]


class Checkpointer:
    """The checkpoints of one run. Every batch has a number that is its own for good, and an id made of it.

    left: tells the ids, in order, of the batches intended by an earlier run that a later one is to cut again.
    """

    def __init__(
        self,
        store: StateStore,
        state: State,
        ledger: Ledger,
        readers: Sequence[Reader],
        *,
        clock: Clock,
        dump: Callable[[Any], bytes],
        left: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._left = left
        self._store, self._ledger, self._clock, self._dump = store, ledger, clock, dump
        self._sources = {reader.name: reader for reader in readers if reader.is_resumable}
        self._state_id, self._next_number = state.state_id, state.next_batch
        self._numbers: dict[int, int] = {}
        self._entries: deque[JournalEntry] = deque()
        self._cut_to: dict[Partition, int] = {}
        self._noted = 0
        self._digests = Digests()
        self._digest_of: dict[Partition, str] = {}
        self._partitions = {
            Partition(source, name): _progress_of(saved)
            for source, names in state.partitions.items()
            for name, saved in names.items()
        }
        self._changed: set[Partition] = set()
        self._coming: deque[tuple[int, RunChange]] = deque()
        self._changes: deque[tuple[int, RunChange]] = deque()
        self._over: set[Partition] = set()
        self._counts: Mapping[str, Counts] = {}
        self._outputs: Mapping[str, OutputMark] = dict(state.outputs)

    def start(self) -> None:
        """Start to hash what is noted."""
        self._digests.start()

    def close(self) -> None:
        """Stop hashing."""
        self._digests.close()

    async def begin(self) -> None:
        """Store where new partitions begin that aren't read from their start: after a crash they would begin elsewhere.

        Raises StateOutage.
        """
        known = set(self._partitions)
        self._look_at_sources()
        if any(self._partitions[each].position for each in self._changed - known):
            await self.commit([], {}, self.point())

    def id_of(self, batch: Batch) -> str:
        """Return what names a batch, also if it is cut again after a crash."""
        return batch.id if batch.id is not None else batch_id(self._state_id, Intent(self._number(batch), ()))

    def changed(self, sequence: int, change: RunChange) -> None:
        """Learn what batches from this sequence on are made with. Its number for good is that of the first of them."""
        self._coming.append((sequence, change))

    def written(self, batch: Batch, outcome: Outcome, place: OutputMark) -> None:
        """Note a batch whose bytes are about to be released."""
        while self._coming and self._coming[0][0] <= batch.sequence:
            _, change = self._coming.popleft()
            self._changes.append((self._noted, msgspec.structs.replace(change, batch=self._number(batch))))
        for chunk in batch.chunks:
            if chunk.partition.source in self._sources:
                self._digests.add(chunk)
        self._noted += 1
        self._entries.append(
            JournalEntry(
                batch=self._number(batch),
                ranges=_ranges_of(batch, self._cut_to),
                scored=sum(outcome.scored.values()),
                dead=sum(outcome.dead.values()),
                place=(place["segment"], place["length"]) if "segment" in place else None,
            )
        )
        del self._numbers[batch.sequence]

    async def digested(self) -> None:
        """Wait while what was noted holds too many bytes."""
        await self._digests.settle()

    def point(self) -> tuple[int, Point]:
        """Return what stands for all that was noted until now."""
        return self._noted, self._digests.point()

    async def intend(self, batches: Sequence[Batch]) -> None:
        """Store which records the batches hold that are about to be sent. Raises StateOutage."""
        cut_to = dict(self._cut_to)
        intents = [
            Intent(self._number(batch), _ranges_of(batch, cut_to), _revision_in(batch.id) if batch.id else 0)
            for batch in batches
        ]
        await to_thread.run_sync(self._store.intend, intents)

    async def commit(
        self, finished: Sequence[Finished], marks: Mapping[str, OutputMark], point: tuple[int, Point]
    ) -> None:
        """Store that these batches, the first of those noted, are acked, and how far the outputs go with them.

        Raises StateOutage, after which the same may be stored later.
        """
        noted, digests = point
        self._digest_of |= await self._digests.until(digests)
        is_all = noted == self._noted - len(self._entries) + len(finished)
        checkpoint = self._checkpoint(finished, marks, with_digests=is_all)
        if checkpoint is None:
            return
        with anyio.CancelScope(shield=True):  # what is stored is never stored again
            await to_thread.run_sync(self._store.commit, checkpoint)
        self._stored(checkpoint)

    def _number(self, batch: Batch) -> int:
        """Return a batch's number: a new one unless it is cut again; numbers go up in the order they are asked for."""
        number = self._numbers.get(batch.sequence)
        if number is None:
            if batch.id is not None:
                number = _number_in(batch.id)
            else:
                number, self._next_number = self._next_number, self._next_number + 1
            self._numbers[batch.sequence] = number
        return number

    def _checkpoint(
        self, finished: Sequence[Finished], marks: Mapping[str, OutputMark], *, with_digests: bool
    ) -> Checkpoint | None:
        """Return what there is to store at this moment; None if all of it is."""
        counts = self._ledger.after(finished)
        entries = list(islice(self._entries, len(finished)))
        self._look_at_sources()
        self._advance(entries, with_digests=with_digests)
        outputs = {name: mark for name, mark in marks.items() if self._outputs.get(name) != mark}
        if not entries and not outputs and not self._changed and counts == self._counts:
            return None
        forgotten = [each for each in self._over if self._is_acked(each)]
        steps = finished[-1][1].states if finished else None
        acked = self._noted - len(self._entries)
        left = [_number_in(id) for id in self._left()]
        return Checkpoint(
            at=self._clock.wall(),
            counts=counts,
            partitions={each: self._partitions[each] for each in self._changed},
            forgotten=forgotten,
            outputs=outputs,
            steps=self._dump(steps) if steps is not None else None,
            journal=entries,
            changes=[change for noted, change in self._changes if noted < acked + len(entries)],
            left=(left[0], left[-1]) if left else None,
        )

    def _look_at_sources(self) -> None:
        """Learn which partitions are new, were read on, or are over."""
        for partition, (begun, reached) in self._ledger.reached().items():
            known = self._known(partition, begun)
            self._change(partition, known, read_to=max(known.read_to, reached))
        for name, source in self._sources.items():
            for partition_name, notes in source.notes().items():
                partition = Partition(name, partition_name)
                if notes is None:
                    self._over.add(partition)
                    continue
                self._over.discard(partition)
                self._change(partition, self._known(partition, int(notes.get("start", 0))), notes=notes)

    def _advance(self, entries: Sequence[JournalEntry], *, with_digests: bool) -> None:
        """Move the positions of what is acked."""
        acked = {(each.source, each.partition): each.end for entry in entries for each in entry.ranges}
        for (source, name), position in acked.items():
            if source in self._sources:
                partition = Partition(source, name)
                digest = self._digest_of.get(partition) if with_digests else None
                known = self._known(partition, position)
                read_to = max(known.read_to, position)
                self._change(partition, known, position=position, read_to=read_to, digest=digest)

    def _known(self, partition: Partition, begun: int) -> Progress:
        """Return how far a partition has come: one that is new, to where it was begun."""
        return self._partitions.get(partition) or Progress(position=begun, read_to=begun, notes={})

    def _change(self, partition: Partition, known: Progress, **changes: Any) -> None:
        self._partitions[partition] = msgspec.structs.replace(known, **changes)
        self._changed.add(partition)

    def _is_acked(self, partition: Partition) -> bool:
        known = self._partitions.get(partition)
        return known is None or known.position >= known.read_to

    def _stored(self, checkpoint: Checkpoint) -> None:
        """Learn that a checkpoint is durable."""
        for _ in checkpoint.journal:
            self._entries.popleft()
        for _ in checkpoint.changes:
            self._changes.popleft()
        self._counts, self._outputs = checkpoint.counts, {**self._outputs, **checkpoint.outputs}
        for partition, progress in checkpoint.partitions.items():
            if self._partitions.get(partition) is progress:
                self._changed.discard(partition)
        for partition in checkpoint.forgotten:
            self._over.discard(partition)
            self._changed.discard(partition)
            for each in (self._partitions, self._cut_to, self._digest_of):
                each.pop(partition, None)
            self._digests.forget(partition)


def batch_id(state_id: str, intent: Intent) -> str:
    """Return what names a batch outside of its state. One that could not be cut the same again keeps its number, and
    so its place among the others, and gets another name."""
    return f"{state_id}-{intent.batch}" + (f"r{intent.revision}" if intent.revision else "")


def _number_in(id: str) -> int:
    return int(id.rpartition("-")[2].partition("r")[0])


def _revision_in(id: str) -> int:
    return int(id.rpartition("-")[2].partition("r")[2] or 0)


def _progress_of(saved: StoredPartition) -> Progress:
    return Progress(position=saved.position, read_to=saved.read_to, notes=saved.notes, digest=None)


def _ranges_of(batch: Batch, cut_to: dict[Partition, int]) -> tuple[Range, ...]:
    """Return what a batch was cut from, in the order of its records, and note in `cut_to` where partitions go on."""
    ranges = []
    for partition, chunks in groupby(batch.chunks, _partition_of):
        first, *more = chunks
        start, end = cut_to.get(partition, first.begins_at), (more[-1] if more else first).position
        cut_to[partition] = end
        records = first.count + sum(chunk.count for chunk in more)
        ranges.append(Range(partition.source, partition.name, start, end, records))
    return tuple(ranges)


def _partition_of(chunk: Chunk) -> Partition:
    return chunk.partition
