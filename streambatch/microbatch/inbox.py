"""The bounded queue of chunks between sources and batcher: one lane per source, served fairly by bytes.

Never holds more than `max_records` records or `max_bytes` bytes; only a lone record larger than `max_bytes` may. A
chunk that doesn't fit waits with the task that brought it, in order within its lane, and lanes are let in by turns. A
lane that holds little waits for no other: room for it is kept free, and if it holds no more than its share of a batch,
all of it goes into the next one.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Container, Iterable
from dataclasses import replace
from math import inf
from typing import Annotated

import anyio
from pydantic import Field

from streambatch.core.batches import Trigger
from streambatch.core.chunks import Chunk
from streambatch.core.clock import Clock
from streambatch.core.options import options
from streambatch.core.signal import Signal
from streambatch.core.units import Size

QUANTUM = 8 << 10
"""Bytes a lane may send before the next one's turn, while several have something to send."""
KEPT = 4
"""One part in so many of the queue is kept for lanes that hold little, the same for each; all share the rest."""


@options
class QueueLimits:
    """How much may wait between sources and batcher."""

    max_records: Annotated[int, Field(ge=1)] = 65536
    """Records that may wait to be batched."""
    max_bytes: Annotated[Size, Field(ge=1)] = 64 << 20
    """Bytes that may wait to be batched; of `[limits] memory` a quarter at most."""

    def within(self, size: int) -> "QueueLimits":
        """Return limits of at most `size` bytes, so that a full queue leaves others their part of the memory."""
        return replace(self, max_bytes=max(1, min(self.max_bytes, size)))


class InboxAborted(Exception):
    """The pipeline gave up: what was being put will not be taken in."""


class _Waiter:
    """A task's place in the line of its lane, and what it still has to put."""

    __slots__ = ("called", "rest")

    def __init__(self, rest: Chunk) -> None:
        self.called = anyio.Event()
        self.rest = rest


class _Lane:
    """The chunks of one source, and the tasks that wait with more of them."""

    __slots__ = ("chunks", "credit", "records", "size", "waiting")

    def __init__(self) -> None:
        self.chunks: deque[Chunk] = deque()
        self.waiting: deque[_Waiter] = deque()
        self.credit = self.records = self.size = 0

    @property
    def is_hungry(self) -> bool:
        """Whether something waits for room while the lane holds nothing."""
        return not self.chunks and bool(self.waiting)


class _Room:
    """How much each lane may add. Pure: it counts what the lanes hold, and keeps room for those that hold little."""

    __slots__ = ("_kept", "_lanes", "_unused_records", "_unused_size", "first", "limits", "records", "size")

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.records = self.size = 0
        self.first: _Lane | None = None
        """A lane that holds nothing and got nothing in: it goes before all others."""
        self._lanes: list[_Lane] = []
        self._kept = 0, 0  # records and bytes that are kept for each lane
        self._unused_records = self._unused_size = 0  # of what is kept, over all lanes

    def add(self, lane: _Lane) -> None:
        """Keep room for one more lane."""
        self._lanes.append(lane)
        self.resize(self.limits)

    def resize(self, limits: QueueLimits) -> None:
        """Keep room within other limits: the same for each lane."""
        self.limits = limits
        parts = KEPT * max(1, len(self._lanes))
        self._kept = limits.max_records // parts, limits.max_bytes // parts
        unused = [self._unused(each) for each in self._lanes]
        self._unused_records, self._unused_size = map(sum, zip((0, 0), *unused, strict=True))

    def move(self, lane: _Lane, records: int, size: int) -> None:
        """Count what a lane now holds more, or less."""
        # By differences: sums over all lanes would make each chunk dearer the more sources there are.
        unused = self._unused(lane)
        lane.records += records
        lane.size += size
        self.records += records
        self.size += size
        now_unused = self._unused(lane)
        self._unused_records += now_unused[0] - unused[0]
        self._unused_size += now_unused[1] - unused[1]

    def is_there_for(self, lane: _Lane) -> bool:
        """Whether a lane may add anything."""
        return self._records_for(lane) > 0 and self._bytes_for(lane) > 0

    def fitting(self, lane: _Lane, chunk: Chunk) -> int:
        """Return how many records of a chunk a lane may add; a lone one may be too large for the bytes."""
        records = self._records_for(lane)
        if records <= 0:
            return 0
        # Into an empty queue one record of any size goes, or one larger than the limit would wait for ever.
        return chunk.fitting(records, self._bytes_for(lane)) or (1 if self.records == 0 else 0)

    def _records_for(self, lane: _Lane) -> int:
        # All others wait, so that room gathers for the lane that goes first.
        if self.first is not None and self.first is not lane:
            return 0
        return self.limits.max_records - self.records - (self._unused_records - self._unused(lane)[0])

    def _bytes_for(self, lane: _Lane) -> int:
        return self.limits.max_bytes - self.size - (self._unused_size - self._unused(lane)[1])

    def _unused(self, lane: _Lane) -> tuple[int, int]:
        """Return how many records and bytes of what is kept for a lane it doesn't use."""
        return max(0, self._kept[0] - lane.records), max(0, self._kept[1] - lane.size)


class Inbox:
    """Bounded lanes of chunks. `put` waits for room, `take` never waits, `changed` waits for something to take.

    sources: those for which room is kept from the start; for others, it is from their first chunk on.
    """

    def __init__(self, limits: QueueLimits, sources: Iterable[str] = ()) -> None:
        self.closed_by: Trigger | None = None
        """Why nothing more will be put."""
        self.hurried_by: Trigger | None = None
        """Why no batch is to wait for more, since little will be put."""
        self.ended: set[str] = set()
        """The sources that have put all that they will."""
        self._room = _Room(limits)
        self._lanes: dict[str, _Lane] = {}
        self._order: deque[_Lane] = deque()  # in which lanes are let in
        self._busy: deque[_Lane] = deque()  # those that hold chunks, in the order in which they are served
        self._changed = Signal()
        self._is_aborted = False
        for source in sources:
            self._lane(source)

    @property
    def limits(self) -> QueueLimits:
        return self._room.limits

    @property
    def records(self) -> int:
        return self._room.records

    @property
    def size(self) -> int:
        return self._room.size

    @property
    def oldest_arrival(self) -> float:
        """Monotonic seconds at which the oldest waiting chunk arrived; infinity when nothing waits."""
        return min((lane.chunks[0].arrived_at for lane in self._busy), default=inf)

    def is_full_for(self, source: str) -> bool:
        """Whether a chunk that a source puts now would have to wait."""
        lane = self._lane(source)
        return bool(lane.waiting) or not self._room.is_there_for(lane)

    def room_for(self, chunk: Chunk) -> int:
        """Return how many records of the chunk would be let in now."""
        lane = self._lane(chunk.partition.source)
        return 0 if lane.waiting else self._room.fitting(lane, chunk)

    async def put(self, chunk: Chunk, clock: Clock) -> None:
        """Add a chunk, in parts as room comes. Raises InboxAborted when the pipeline gives up meanwhile."""
        lane = self._lane(chunk.partition.source)
        # Behind the chunks that wait already, room or not: a source's records keep their order.
        rest = chunk if lane.waiting else self._admit(lane, chunk, clock.monotonic())
        try:
            if rest is not None:
                await self._put_in_line(lane, rest, clock)
        finally:
            # In any case: a task that was called, and is cancelled or leaves room, has to pass its turn on.
            self._admit_next()

    def take(self, records: int, size: int, *, whole_record: bool) -> Chunk | None:
        """Return the next chunk, or the part of it that fits; with `whole_record` at least one record of any size.

        records, size: what the batch has room for. None means that nothing waits or that the next record doesn't fit.
        """
        if not self._busy:
            return None
        if len(self._busy) == 1:
            return self._serve(self._busy[0], records, size, whole_record)
        light = self._light_lane(records, size)
        if light is not None:
            return self._serve(light, records, size, whole_record)
        # Deficit round robin: a lane that has sent its bytes gets a further quantum and goes to the end of the line.
        while self._busy[0].credit <= 0:
            self._busy[0].credit += QUANTUM
            self._busy.rotate(-1)
        lane = self._busy[0]
        return self._serve(lane, records, size, whole_record, size_max=lane.credit)

    def take_of(self, sources: Container[str]) -> Chunk | None:
        """Return the next chunk of one of these sources, out of turn and whole; None when none of theirs waits."""
        for lane in self._busy:
            if lane.chunks[0].partition.source in sources:
                return self._serve(lane, lane.records, lane.size, whole_record=True)
        return None

    def is_waited_for_by(self, sources: Iterable[str]) -> bool:
        """Whether one of these sources waits for room, and will until something of others is taken."""
        lanes = [self._lanes[source] for source in sources if source in self._lanes]
        return any(lane.is_hungry and not self._room.fitting(lane, lane.waiting[0].rest) for lane in lanes)

    def resize(self, limits: QueueLimits) -> None:
        """Hold no more than other limits allow from now on; what is there already stays."""
        self._room.resize(limits)
        self._admit_next()

    def hurry(self, trigger: Trigger) -> None:
        """Close every open batch at once from now on, since no more than a rest will be put."""
        self.hurried_by = trigger
        self.notify()

    def end(self, source: str) -> None:
        """Take note that a source has put all that it will."""
        self.ended.add(source)
        self.notify()

    def close(self, trigger: Trigger) -> None:
        """Take note that nothing more will be put: `flush` at the end of input, `shutdown` at a stop."""
        self.closed_by = trigger
        self.hurry(trigger)

    def abort(self) -> None:
        """Make every waiting and later put fail."""
        self._is_aborted = True
        for lane in self._lanes.values():
            for waiter in lane.waiting:
                # It finds out in `_admit`, which raises InboxAborted.
                waiter.called.set()

    async def or_abort(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task that takes or puts, and abort when it fails.

        Sources may wait for room that is made no more, and no cancellation reaches them there: see SourceIntake.
        """
        try:
            await task()
        except BaseException:
            self.abort()
            raise

    def notify(self) -> None:
        """Wake the tasks that wait in `changed`."""
        self._changed.notify()

    async def changed(self) -> None:
        """Wait until something was put, or can't be, or the inbox was closed, or until `notify`."""
        await self._changed.wait()

    def _lane(self, source: str) -> _Lane:
        lane = self._lanes.get(source)
        if lane is None:
            lane = self._lanes[source] = _Lane()
            self._order.append(lane)
            self._room.add(lane)
        return lane

    def _admit(self, lane: _Lane, chunk: Chunk, entered_at: float) -> Chunk | None:
        """Let in as much of a chunk as there is room for; return the rest."""
        if self._is_aborted:
            raise InboxAborted
        room = self._room
        count = room.fitting(lane, chunk)
        if count == 0:
            if not lane.chunks and room.first is None:
                room.first = lane  # or something large would never find the room it needs
            return chunk
        if room.first is lane:
            room.first = None
        rest = None
        if count < chunk.count:
            # `split_off` returns the first records and leaves the others in the chunk.
            chunk, rest = chunk.split_off(count), chunk
        chunk.entered_at = entered_at
        if not lane.chunks:
            self._busy.append(lane)
        lane.chunks.append(chunk)
        room.move(lane, chunk.count, chunk.size)
        self._changed.notify()
        return rest

    async def _put_in_line(self, lane: _Lane, chunk: Chunk, clock: Clock) -> None:
        """Keep a place in the lane's line until the whole chunk is in."""
        waiter = _Waiter(chunk)
        lane.waiting.append(waiter)
        try:
            while True:
                if lane.is_hungry:
                    self._changed.notify()  # the task that waits for this lane may have to make room
                await waiter.called.wait()
                # Replaced before room is looked for: a call that comes from here on is a new one.
                waiter.called = anyio.Event()
                before = waiter.rest.count
                rest = self._admit(lane, waiter.rest, clock.monotonic())
                if rest is None:
                    break
                waiter.rest = rest
                if rest.count < before:
                    # Some of the chunk went in: the other lanes have their turn before the rest of it.
                    self._admit_next(besides=lane)
        finally:
            lane.waiting.remove(waiter)
            if self._room.first is lane:
                self._room.first = None

    def _admit_next(self, besides: _Lane | None = None) -> None:
        """Wake the next task in line for which there is room, lane by lane."""
        for _ in range(len(self._order)):
            lane = self._order[0]
            self._order.rotate(-1)
            if lane is besides or not lane.waiting or lane.waiting[0].called.is_set():
                continue
            # One at a time: the room that is left is known only once this task took some, and it then calls the next.
            if self._room.is_there_for(lane):
                lane.waiting[0].called.set()
                return

    def _light_lane(self, records: int, size: int) -> _Lane | None:
        """Return a lane that holds no more than its equal share of that; what the others are left is as much each."""
        lanes = len(self._busy)
        for lane in self._busy:
            if lane.records * lanes <= records and lane.size * lanes <= size:
                return lane
        return None

    def _serve(
        self, lane: _Lane, records: int, size: int, whole_record: bool, *, size_max: int | None = None
    ) -> Chunk | None:
        """Return what of a lane's first chunk fits; no more than `size_max` bytes if that is one record at least."""
        chunk = lane.chunks[0]
        count = chunk.fitting(records, size) or (1 if whole_record else 0)
        if count == 0:
            return None
        if size_max is not None:
            count = max(1, min(count, chunk.fitting(records, size_max)))
        if count < chunk.count:
            chunk = chunk.split_off(count)
        else:
            lane.chunks.popleft()
        lane.credit -= chunk.size
        if not lane.chunks:
            self._busy.remove(lane)
            # An idle lane saves up no credit, and owes none.
            lane.credit = 0
        self._room.move(lane, -chunk.count, -chunk.size)
        self._admit_next()
        return chunk
