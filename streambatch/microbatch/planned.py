"""Planned batches: what the journal says was sent and not acked goes out again, cut as it was cut before.

Pure: chunks in, batches out. Of a partition, a planned range takes the records that end after the range before it and
no later than its own end, so that none is lost or doubled in any case. Planned batches leave in planned order; records
that belong to none of them are held and follow. A batch keeps its id only if it holds what was planned. At a stop those
that are not complete are postponed to the next run, and with them all that can be read again, for no record may
overtake those before it.

A planned batch goes through these states:

    filling    a range of it may still get records            -> complete, postponed
    complete   all its ranges are closed: full, or given up   -> out, postponed
    out        `next` returned it; or it was left out, since none of its records came
    postponed  a stop came first: the next run has it in its plan
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from streambatch.core.batches import Trigger
from streambatch.core.chunks import Chunk, Partition


class PlannedRange(Protocol):
    """Consecutive records of one partition: how many, and the position of the last of them."""

    @property
    def source(self) -> str: ...

    @property
    def partition(self) -> str: ...

    @property
    def end(self) -> int: ...

    @property
    def records(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBatch:
    """A batch to be cut again."""

    ranges: Sequence[PlannedRange]
    """Its records, in order."""
    id: str | None = None
    """The name that it had."""
    changed_id: str | None = None
    """Its name if it comes to hold other records."""
    trigger: Trigger = "size"
    """Why it closed."""


class UnplannedChunks:
    """Chunks that came while planned batches were waited for, and belong to none of them; first in, first out."""

    __slots__ = ("_chunks", "records", "size")

    def __init__(self) -> None:
        self._chunks: deque[Chunk] = deque()
        self.records = self.size = 0

    def add(self, chunk: Chunk) -> None:
        """Append a chunk."""
        self._chunks.append(chunk)
        self.records += chunk.count
        self.size += chunk.size

    def take(self, records: int, size: int, *, whole_record: bool) -> Chunk | None:
        """Return the next chunk, or the part of it that fits, as `Inbox.take` does."""
        if not self._chunks:
            return None
        chunk = self._chunks[0]
        count = chunk.fitting(records, size) or (1 if whole_record else 0)
        if count == 0:
            return None
        chunk = self._chunks.popleft() if count == chunk.count else chunk.split_off(count)
        self.records -= chunk.count
        self.size -= chunk.size
        return chunk

    def drop(self, sources: Collection[str]) -> None:
        """Forget the chunks of these sources."""
        kept = [chunk for chunk in self._chunks if chunk.partition.source not in sources]
        self._chunks.clear()
        self.records = self.size = 0
        for chunk in kept:
            self.add(chunk)


class PlannedBatches:
    """Planned batches that are filled from the chunks of a new run."""

    def __init__(self, plan: Iterable[PlannedBatch], resumable: Collection[str] = ()) -> None:
        """resumable: the sources whose records can be read again by a later run."""
        self.resumable = resumable
        self.unplanned = UnplannedChunks()
        """The records that belong to no planned batch."""
        self.postponed: Sequence[PlannedBatch] = ()
        """The planned batches that a later run is to cut, once `postpone` was called."""
        self.changed = 0
        """Planned batches that went out with other records than planned, or had none left."""
        self._filling = deque(_FillingBatch(planned) for planned in plan)
        self._open_ranges: dict[Partition, deque[_OpenRange]] = {}
        for batch in self._filling:
            for at, planned in enumerate(batch.planned.ranges):
                key = Partition(planned.source, planned.partition)
                self._open_ranges.setdefault(key, deque()).append(_OpenRange(batch, at))
        self.awaited = {key.source for key in self._open_ranges}
        """The sources that planned records are still to come from."""
        self._held_records = self._held_size = 0  # of planned batches, and after a stop all that is to be read again
        self._oldest = inf

    @property
    def is_used_up(self) -> bool:
        """Whether all planned batches are out."""
        return not self._filling

    @property
    def records(self) -> int:
        """Records that are held at the moment, planned or not."""
        return self._held_records + self.unplanned.records

    @property
    def size(self) -> int:
        """Bytes that are held at the moment, planned or not."""
        return self._held_size + self.unplanned.size

    @property
    def postponed_records(self) -> int:
        """Records that a later run is to read again, since it is to cut planned batches."""
        return self._held_records if self.postponed else 0

    @property
    def oldest_arrival(self) -> float:
        """Monotonic seconds, no later than the arrival of any record that is held; infinity when none is."""
        return self._oldest if self.records else inf

    def add(self, chunk: Chunk) -> bool:
        """Take the next chunk of its partition over. Returns whether a planned batch got records of it."""
        # By the property, which forgets an old minimum once nothing is held.
        self._oldest = min(self.oldest_arrival, chunk.arrived_at)
        if self.postponed and chunk.partition.source in self.resumable:
            # Counted, not kept: the next run reads it again.
            self._hold(chunk)
            return False
        before = self._held_records
        rest: Chunk | None = chunk
        ranges = self._open_ranges.get(chunk.partition)
        while ranges and rest is not None:
            rest = self._fill(ranges, rest)
        if ranges is not None and not ranges:
            self._close([chunk.partition])
        if rest is not None:
            self.unplanned.add(rest)
        return self._held_records > before

    def next(self) -> tuple[list[Chunk], PlannedBatch] | None:
        """Return the chunks of the next planned batch if it is complete, and what is known of it.

        Its id is `changed_id` if it holds other records than planned; a batch of which nothing came is left out.
        """
        # In planned order, whichever fills up first: the front of the line holds back the others.
        while self._filling and not self._filling[0].open_ranges:
            batch = self._filling.popleft()
            self.changed += not batch.is_exact
            if chunks := batch.chunks():
                self._held_records -= sum(chunk.count for chunk in chunks)
                self._held_size -= sum(chunk.size for chunk in chunks)
                planned = batch.planned
                return chunks, planned if batch.is_exact else replace(planned, id=planned.changed_id)
        return None

    def expect_no_more(self, source: str | None = None, partition: str | None = None) -> None:
        """Wait for no more planned records: of a partition, of a source, or at all."""
        gone = [key for key in self._open_ranges if source in (None, key.source) and partition in (None, key.name)]
        for key in gone:
            for planned in self._open_ranges[key]:
                planned.close()
        self._close(gone)

    def postpone(self) -> None:
        """Leave the planned batches that are not out, and all that can be read again, to a later run.

        What is still to be taken is of other sources, and in no planned batch: it would be lost.
        """
        self.postponed = [batch.planned for batch in self._filling]
        self._close(list(self._open_ranges))
        # The totals stay: what is dropped here still counts, as postponed.
        records, size = self.records, self.size
        self.unplanned.drop(self.resumable)
        self._held_records, self._held_size = records - self.unplanned.records, size - self.unplanned.size

    def _fill(self, ranges: deque[_OpenRange], chunk: Chunk) -> Chunk | None:
        """Give the first range its own records, and return the others."""
        planned = ranges[0]
        end = planned.range.end
        # Positions only grow, so that the records up to the end of the range are the first ones.
        count = bisect_right(range(chunk.count), end, key=chunk.position_of)
        rest: Chunk | None = chunk
        if count == chunk.count:
            planned.chunks.append(chunk)
            self._hold(chunk)
            rest = None
        elif count:
            part = chunk.split_off(count)
            planned.chunks.append(part)
            self._hold(part)
        # A record past its end closes a range too: those of a partition come in order, so that no more of it will come.
        if rest is not None or chunk.position == end:
            ranges.popleft().close()
        return rest

    def _hold(self, chunk: Chunk) -> None:
        self._held_records += chunk.count
        self._held_size += chunk.size

    def _close(self, keys: Iterable[Partition]) -> None:
        for key in keys:
            del self._open_ranges[key]
        self.awaited = {key.source for key in self._open_ranges}


class _FillingBatch:
    """A planned batch as it fills up."""

    __slots__ = ("chunks_by_range", "is_exact", "open_ranges", "planned")

    def __init__(self, planned: PlannedBatch) -> None:
        self.planned = planned
        self.chunks_by_range: list[list[Chunk]] = [[] for _ in planned.ranges]
        self.open_ranges = len(planned.ranges)
        self.is_exact = True

    def chunks(self) -> list[Chunk]:
        return [chunk for chunks in self.chunks_by_range for chunk in chunks]


class _OpenRange:
    """A range of a planned batch that may still get records."""

    __slots__ = ("batch", "chunks", "range")

    def __init__(self, batch: _FillingBatch, at: int) -> None:
        self.batch, self.range, self.chunks = batch, batch.planned.ranges[at], batch.chunks_by_range[at]

    def close(self) -> None:
        """Take note that no more records of the range come."""
        self.batch.open_ranges -= 1
        is_complete = sum(chunk.count for chunk in self.chunks) == self.range.records
        if not is_complete or self.chunks[-1].position != self.range.end:
            self.batch.is_exact = False
