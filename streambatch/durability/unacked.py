"""Journal entries of batches that are written and in no checkpoint yet. Pure: batches in, entries out, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import groupby, islice

import msgspec

from streambatch.core.batches import Batch
from streambatch.core.checkpoints import OutputMark
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.outcomes import Outcome
from streambatch.durability.stored import IntendedBatch, JournalEntry, RecordRange, RunChange


class UnackedBatches:
    """The journal entries of batches, and the changes that began with them."""

    def __init__(self) -> None:
        self.noted = 0
        """Batches that were noted since the start."""
        self._entries: deque[JournalEntry] = deque()
        self._announced: deque[tuple[int, RunChange]] = deque()  # by the sequence of the first batch made with it
        self._changes: deque[tuple[int, RunChange]] = deque()  # by how many batches were noted before it
        self._cut_to: dict[Partition, int] = {}

    @property
    def acked(self) -> int:
        """How many of the batches that were noted are in a checkpoint."""
        return self.noted - len(self._entries)

    def announce(self, sequence: int, change: RunChange) -> None:
        """Take note that batches from this sequence on are made with a change."""
        self._announced.append((sequence, change))

    def note(self, batch: Batch, number: int, outcome: Outcome, place: OutputMark) -> None:
        """Note a batch that was written. place: how far the sink goes with it."""
        while self._announced and self._announced[0][0] <= batch.sequence:
            _, change = self._announced.popleft()
            self._changes.append((self.noted, msgspec.structs.replace(change, batch=number)))
        self.noted += 1
        self._entries.append(
            JournalEntry(
                batch=number,
                ranges=_ranges_of(batch, self._cut_to),
                scored=sum(outcome.scored.values()),
                dead=sum(outcome.dead.values()),
                place=(place["segment"], place["length"]) if "segment" in place else None,
            )
        )

    def intended(self, batches: Sequence[tuple[Batch, int, int]]) -> list[IntendedBatch]:
        """Return the intents of batches that are written next, given with their number and revision."""
        # A copy, since these batches are not written yet: `note` moves the original on.
        cut_to = dict(self._cut_to)
        return [IntendedBatch(number, _ranges_of(batch, cut_to), revision) for batch, number, revision in batches]

    def first(self, count: int) -> list[JournalEntry]:
        """Return the entries of the first batches."""
        return list(islice(self._entries, count))

    def changes_in(self, count: int) -> list[RunChange]:
        """Return the changes that began with one of the first batches."""
        return [change for noted, change in self._changes if noted < self.acked + count]

    def stored(self, entries: int, changes: int) -> None:
        """Drop the first entries and changes: they are in a checkpoint."""
        for _ in range(entries):
            self._entries.popleft()
        for _ in range(changes):
            self._changes.popleft()

    def forget(self, partition: Partition) -> None:
        """Forget a partition that is over; one that comes again under its name begins at its first record."""
        self._cut_to.pop(partition, None)


def _ranges_of(batch: Batch, cut_to: dict[Partition, int]) -> tuple[RecordRange, ...]:
    """Return the ranges of a batch, in the order of its records, and advance the partitions' ends in `cut_to`."""
    ranges = []
    for partition, chunks in groupby(batch.chunks, _partition_of):
        first, *more = chunks
        start, end = cut_to.get(partition, first.begins_at), (more[-1] if more else first).position
        cut_to[partition] = end
        records = first.count + sum(chunk.count for chunk in more)
        ranges.append(RecordRange(partition.source, partition.name, start, end, records))
    return tuple(ranges)


def _partition_of(chunk: Chunk) -> Partition:
    return chunk.partition
