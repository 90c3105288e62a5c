"""The bounded queue of chunks between sources and batcher: one lane per source, served fairly by bytes.

Never holds more than `max_records` records or `max_bytes` bytes; only a lone record larger than `max_bytes` may. What
doesn't fit waits with the task that brought it, in order within its lane, and lanes are let in by turns.
"""

from collections import deque
from math import inf
from typing import Annotated

import anyio
from pydantic import Field

from streambatch.clock import Clock
from streambatch.options import options
from streambatch.records import Chunk, Trigger
from streambatch.units import Size

QUANTUM = 8 << 10
"""Bytes a lane may send before the next one's turn, while several have something to send."""
RESERVE = 16
"""While there are several lanes, one that holds over half of the queue leaves one part in so many to the others."""


@options
class QueueLimits:
    """How much may wait between sources and batcher."""

    max_records: Annotated[int, Field(ge=1)] = 65536
    """Records that may wait to be batched."""
    max_bytes: Annotated[Size, Field(ge=1)] = 64 << 20
    """Bytes that may wait to be batched."""


class InboxAborted(Exception):
    """The pipeline gave up: what was being put will not be taken in."""


class _Lane:
    __slots__ = ("chunks", "credit", "records", "size", "waiting")

    def __init__(self) -> None:
        self.chunks: deque[Chunk] = deque()
        self.waiting: deque[anyio.Event] = deque()
        self.credit = self.records = self.size = 0


class Inbox:
    """Bounded lanes of chunks. `put` waits for room, `take` never waits, `changed` waits for something to take."""

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.records = 0
        self.size = 0
        self.closed_by: Trigger | None = None
        self.hurried_by: Trigger | None = None
        self._lanes: dict[str, _Lane] = {}
        self._order: deque[_Lane] = deque()
        self._busy: deque[_Lane] = deque()
        self._changed: anyio.Event | None = None
        self._aborted = False

    @property
    def oldest_arrival(self) -> float:
        """Monotonic seconds at which the oldest waiting chunk arrived; infinity when nothing waits."""
        return min((lane.chunks[0].arrived_at for lane in self._busy), default=inf)

    def is_full_for(self, source: str) -> bool:
        """Whether whatever a source puts now would have to wait."""
        lane = self._lane(source)
        return bool(lane.waiting) or min(self._room(lane)) <= 0

    def has_room(self, chunk: Chunk) -> bool:
        """Tell whether the whole chunk fits now."""
        return self._fitting(self._lane(chunk.partition.source), chunk) == chunk.count

    async def put(self, chunk: Chunk, clock: Clock) -> None:
        """Add a chunk, in parts as room comes. Raises InboxAborted when the pipeline gives up meanwhile."""
        lane = self._lane(chunk.partition.source)
        rest = chunk if lane.waiting else self._admit(lane, chunk, clock.monotonic())
        first_in_line = False
        while rest is not None:
            await self._turn(lane, first_in_line)
            before = rest.count
            rest = self._admit(lane, rest, clock.monotonic())
            first_in_line = True
            if rest is not None and rest.count < before:
                self._admit_next(besides=lane)
        self._admit_next()

    def take(self, records: int, size: int, *, whole_record: bool) -> Chunk | None:
        """Return the next chunk, or the part of it that fits; with `whole_record` at least one record of any size.

        None means that nothing waits or that the next record doesn't fit.
        """
        while self._busy:
            lane = self._busy[0]
            if len(self._busy) > 1 and lane.credit <= 0:
                lane.credit += QUANTUM
                self._busy.rotate(-1)
                continue
            return self._serve(lane, records, size, whole_record)
        return None

    def hurry(self, trigger: Trigger) -> None:
        """Have every open batch closed at once from now on, since no more than a rest will be put."""
        self.hurried_by = trigger
        self._notify()

    def close(self, trigger: Trigger) -> None:
        """Say that nothing more will be put: `flush` at the end of input, `shutdown` at a stop."""
        self.closed_by = trigger
        self.hurry(trigger)

    def abort(self) -> None:
        """Make every waiting and later put fail."""
        self._aborted = True
        for lane in self._lanes.values():
            while lane.waiting:
                lane.waiting.popleft().set()

    async def changed(self) -> None:
        """Wait until something was put or the inbox was closed."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _lane(self, source: str) -> _Lane:
        lane = self._lanes.get(source)
        if lane is None:
            lane = self._lanes[source] = _Lane()
            self._order.append(lane)
        return lane

    def _room(self, lane: _Lane) -> tuple[int, int]:
        """Return how many records and bytes a lane may add."""
        limits = self.limits
        records, size = limits.max_records - self.records, limits.max_bytes - self.size
        if len(self._lanes) > 1 and (2 * lane.records > limits.max_records or 2 * lane.size > limits.max_bytes):
            records -= limits.max_records // RESERVE
            size -= limits.max_bytes // RESERVE
        return records, size

    def _fitting(self, lane: _Lane, chunk: Chunk) -> int:
        records, size = self._room(lane)
        if records <= 0:
            return 0
        return chunk.fitting(records, size) or (1 if self.records == 0 else 0)

    def _admit(self, lane: _Lane, chunk: Chunk, entered_at: float) -> Chunk | None:
        if self._aborted:
            raise InboxAborted
        count = self._fitting(lane, chunk)
        if count == 0:
            return chunk
        rest = None
        if count < chunk.count:
            chunk, rest = chunk.split_off(count), chunk
        chunk.entered_at = entered_at
        if not lane.chunks:
            self._busy.append(lane)
        lane.chunks.append(chunk)
        self.records += chunk.count
        self.size += chunk.size
        lane.records += chunk.count
        lane.size += chunk.size
        self._notify()
        return rest

    async def _turn(self, lane: _Lane, first_in_line: bool) -> None:
        turn = anyio.Event()
        (lane.waiting.appendleft if first_in_line else lane.waiting.append)(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self._admit_next()
            else:
                lane.waiting.remove(turn)
            raise

    def _admit_next(self, besides: _Lane | None = None) -> None:
        """Wake the next task in line for which there is room, lane by lane."""
        if self.records >= self.limits.max_records or self.size >= self.limits.max_bytes:
            return
        for _ in range(len(self._order)):
            lane = self._order[0]
            self._order.rotate(-1)
            if lane is not besides and lane.waiting and min(self._room(lane)) > 0:
                lane.waiting.popleft().set()
                return

    def _serve(self, lane: _Lane, records: int, size: int, whole_record: bool) -> Chunk | None:
        chunk = lane.chunks[0]
        count = chunk.fitting(records, size) or (1 if whole_record else 0)
        if count == 0:
            return None
        if len(self._busy) > 1:
            count = max(1, min(count, chunk.fitting(records, lane.credit)))
        if count < chunk.count:
            chunk = chunk.split_off(count)
        else:
            lane.chunks.popleft()
            if not lane.chunks:
                self._busy.popleft()
                lane.credit = 0
        taken = chunk.size
        lane.credit -= taken
        lane.records -= chunk.count
        lane.size -= taken
        self.records -= chunk.count
        self.size -= taken
        self._admit_next()
        return chunk
