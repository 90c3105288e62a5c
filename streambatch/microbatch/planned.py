"""Cuts the batches of an earlier run again: what the journal says was sent and not acked goes out in the same cuts.

Pure: chunks in, batches out. Of a partition, a planned range takes the records that end after the range before it and
no later than its own end, so that none is lost or doubled whatever comes. Planned batches leave in planned order; what
belongs to none of them is held and follows. A batch keeps its id only if it holds what was planned. At a stop those
that are not whole stay planned, and with them all that can be read again, for no record may overtake those before it.
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
    """A batch to be cut again: its records in order, what it is called, and why it closed.

    changed_id: what it is called if other records come.
    """

    ranges: Sequence[PlannedRange]
    id: str | None = None
    changed_id: str | None = None
    trigger: Trigger = "size"


class _Cut:
    """A planned batch as it fills up."""

    __slots__ = ("is_exact", "missing", "parts", "planned")

    def __init__(self, planned: PlannedBatch) -> None:
        self.planned = planned
        self.parts: list[list[Chunk]] = [[] for _ in planned.ranges]
        self.missing = len(planned.ranges)
        self.is_exact = True

    def chunks(self) -> list[Chunk]:
        return [chunk for part in self.parts for chunk in part]


class _Slot:
    """The place of one range in its batch."""

    __slots__ = ("cut", "part", "range")

    def __init__(self, cut: _Cut, at: int) -> None:
        self.cut, self.range, self.part = cut, cut.planned.ranges[at], cut.parts[at]

    def close(self) -> None:
        """Learn that no more records of the range come."""
        self.cut.missing -= 1
        is_whole = sum(chunk.count for chunk in self.part) == self.range.records
        if not is_whole or self.part[-1].position != self.range.end:
            self.cut.is_exact = False


class Recut:
    """Planned batches that are filled from the chunks of a new run.

    resumable: the sources whose records can be read again by a later run. records, size: held at the moment, as
    `rest_records` and `rest_size` for those that belong to no planned batch. awaited: the sources that have planned
    records still to come. changed: planned batches that went out with other records than planned, or had none left.
    left: the planned batches that a later run is to cut.
    """

    def __init__(self, plan: Iterable[PlannedBatch], resumable: Collection[str] = ()) -> None:
        self.resumable = resumable
        self.left: Sequence[PlannedBatch] = ()
        self._cuts = deque(_Cut(planned) for planned in plan)
        self._open: dict[Partition, deque[_Slot]] = {}
        for cut in self._cuts:
            for at, planned in enumerate(cut.planned.ranges):
                key = Partition(planned.source, planned.partition)
                self._open.setdefault(key, deque()).append(_Slot(cut, at))
        self._rest: deque[Chunk] = deque()
        self._oldest = inf
        self.records = self.size = self.rest_records = self.rest_size = self.changed = 0
        self.awaited = {key.source for key in self._open}

    @property
    def is_over(self) -> bool:
        """Whether all planned batches are out."""
        return not self._cuts

    @property
    def left_records(self) -> int:
        """Records that a later run is to read again, since it is to cut planned batches."""
        return self.records - self.rest_records if self.left else 0

    @property
    def oldest_arrival(self) -> float:
        """Monotonic seconds, no later than the arrival of any record that is held; infinity when none is."""
        return self._oldest if self.records else inf

    def add(self, chunk: Chunk) -> None:
        """Take the next chunk of its partition over."""
        self._oldest = min(self.oldest_arrival, chunk.arrived_at)
        self.records += chunk.count
        self.size += chunk.size
        if self.left and chunk.partition.source in self.resumable:
            return
        rest: Chunk | None = chunk
        slots = self._open.get(chunk.partition)
        while slots and rest is not None:
            rest = self._fill(slots, rest)
        if slots is not None and not slots:
            self._forget([chunk.partition])
        if rest is not None:
            self._rest.append(rest)
            self.rest_records += rest.count
            self.rest_size += rest.size

    def next(self) -> tuple[list[Chunk], PlannedBatch] | None:
        """Return the chunks of the next planned batch if they are all there, and what is known of it.

        Its id is another one if it changed; a batch of which nothing came is left out.
        """
        while self._cuts and not self._cuts[0].missing:
            cut = self._cuts.popleft()
            self.changed += not cut.is_exact
            if chunks := cut.chunks():
                self.records -= sum(chunk.count for chunk in chunks)
                self.size -= sum(chunk.size for chunk in chunks)
                planned = cut.planned
                return chunks, planned if cut.is_exact else replace(planned, id=planned.changed_id)
        return None

    def take(self, records: int, size: int, *, whole_record: bool) -> Chunk | None:
        """Return the next of the chunks that follow the plan, or the part of it that fits; as the inbox does."""
        if not self._rest:
            return None
        chunk = self._rest[0]
        count = chunk.fitting(records, size) or (1 if whole_record else 0)
        if count == 0:
            return None
        chunk = self._rest.popleft() if count == chunk.count else chunk.split_off(count)
        self.records -= chunk.count
        self.size -= chunk.size
        self.rest_records -= chunk.count
        self.rest_size -= chunk.size
        return chunk

    def give_up(self, source: str | None = None, partition: str | None = None) -> None:
        """Learn that no planned records come any more: of a partition, of a source, or at all."""
        gone = [key for key in self._open if source in (None, key.source) and partition in (None, key.name)]
        for key in gone:
            for slot in self._open[key]:
                slot.close()
        self._forget(gone)

    def leave(self) -> None:
        """Leave the planned batches that are not out, and all that can be read again, to a later run.

        What is left to take is of other sources, and comes in no planned batch: it would be lost.
        """
        self.left = [cut.planned for cut in self._cuts]
        self._forget(list(self._open))
        self._rest = deque(chunk for chunk in self._rest if chunk.partition.source not in self.resumable)
        self.rest_records = sum(chunk.count for chunk in self._rest)
        self.rest_size = sum(chunk.size for chunk in self._rest)

    def _fill(self, slots: deque[_Slot], chunk: Chunk) -> Chunk | None:
        """Give the first slot what is its own, and return what is not."""
        slot, end = slots[0], slots[0].range.end
        count = bisect_right(range(chunk.count), end, key=chunk.position_of)
        rest: Chunk | None = chunk
        if count == chunk.count:
            slot.part.append(chunk)
            rest = None
        elif count:
            slot.part.append(chunk.split_off(count))
        if rest is not None or chunk.position == end:
            slots.popleft().close()
        return rest

    def _forget(self, keys: Iterable[Partition]) -> None:
        for key in keys:
            del self._open[key]
        self.awaited = {key.source for key in self._open}
