"""Micro-batches for a program's own loop: of anything that can be iterated asynchronously, or of a source.

Reading goes on in a task of its own, bounded, while the program works on a batch. That task and every handle it holds
end with the `async with`, however that is left.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from math import inf
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

import anyio
from anyio.abc import TaskGroup

from streambatch.codecs.formats import framing_for_format
from streambatch.codecs.rows import records_of
from streambatch.codecs.table.chunk import TableChunk
from streambatch.core.batches import Batch, Trigger
from streambatch.core.budget import Budget, Limits
from streambatch.core.chunks import Chunk, Fault
from streambatch.core.clock import Clock, SystemClock
from streambatch.core.errors import OptionError, first_cause
from streambatch.core.events import Observer
from streambatch.core.parts import Site, Source
from streambatch.core.units import format_size
from streambatch.core.wrapping import RunningSource, as_source
from streambatch.microbatch.batcher import Batcher
from streambatch.microbatch.inbox import Inbox, InboxAborted, QueueLimits
from streambatch.microbatch.intake import SourceIntake
from streambatch.microbatch.window import BatchPolicy, Window
from streambatch.spool.spooled import reader_of

Item = TypeVar("Item")

MAX_BYTES = 4 << 20
"""Bytes of a source's records in a batch, at most, if nothing else is said."""
CLOSE_SECONDS = 5.0
"""How long a generator that is left early may take to clean up."""


@overload
def microbatches(
    source: AsyncIterable[Item], *, max_records: int = 512, max_wait: float = 0.05, clock: Clock | None = None
) -> ItemBatches[Item]: ...


@overload
def microbatches(
    source: Source | RunningSource,
    *,
    max_records: int = 512,
    max_wait: float = 0.05,
    max_bytes: int = MAX_BYTES,
    queue: QueueLimits | None = None,
    limits: Limits | None = None,
    clock: Clock | None = None,
) -> SourceBatches: ...


def microbatches(
    source: AsyncIterable[Any] | Source | RunningSource,
    *,
    max_records: int = 512,
    max_wait: float = 0.05,
    max_bytes: int | None = None,
    queue: QueueLimits | None = None,
    limits: Limits | None = None,
    clock: Clock | None = None,
) -> ItemBatches[Any] | SourceBatches:
    """Return what gives batches of `source`: `async with microbatches(source) as batches: async for batch in batches`.

    Of an asynchronous iterable a batch is a list of its items; of a source it is a SourceBatch. It closes at
    `max_records`, at `max_bytes` (sources only), or `max_wait` seconds after its first record arrived if it is asked
    for by then; while nobody asks it goes on filling. What the source raised is raised once the batches before it are
    out. Left early, by break, exception or cancellation, it ends what it started; an asynchronous generator is closed,
    and what it raises then is raised too.

    queue, limits: how much of a source may be held, as in a Pipeline; an iterable is read one batch ahead.
    Raises ConfigError or OptionError for options that make no sense, TypeError for what can't be read.
    """
    clock = clock or SystemClock()
    if isinstance(source, AsyncIterable):
        for option, value in (("max_bytes", max_bytes), ("queue", queue), ("limits", limits)):
            if value is not None:
                raise OptionError(option, value, "nothing, for what is no source: items have no size in bytes")
        return ItemBatches(source, BatchPolicy(max_records=max_records, max_wait=max_wait), clock)
    if not isinstance(source, Source) and not callable(getattr(source, "run", None)):
        found = type(source).__name__
        raise TypeError(f"microbatches: expected a source or what `async for` takes, found {found}")
    policy = BatchPolicy(
        max_records=max_records, max_wait=max_wait, max_bytes=MAX_BYTES if max_bytes is None else max_bytes
    )
    limits = limits or Limits()
    if policy.max_bytes > limits.memory:
        allowed = f"at most limits.memory, which is {format_size(limits.memory)}: it would never fill"
        raise OptionError("max_bytes", format_size(policy.max_bytes), allowed)
    return SourceBatches(as_source(source), policy, queue or QueueLimits(), limits, clock)


class SourceBatch:
    """A batch of a source's records, undecoded.

    sequence: its number, from 0. trigger: why it closed. chunks: the records as they were read, with partitions,
    positions and, for CSV, columns. count, size: records and bytes in them.
    """

    def __init__(self, batch: Batch, format: str) -> None:
        self.sequence, self.chunks, self.count, self.size = batch.sequence, batch.chunks, batch.count, batch.size
        self.trigger: Trigger = batch.trigger
        self._format = format

    def records(self) -> list[bytes]:
        """Return the records in order, without what frames them; `faults` has those that died of their framing.

        Rows of a table come as JSON objects; `chunk.data()` has those of a chunk as a pyarrow.RecordBatch.
        """
        strip = framing_for_format(self._format).strip
        records: list[bytes] = []
        for chunk in self.chunks:
            if isinstance(chunk, TableChunk):
                records += [bytes(chunk.raw(index)) for index in range(chunk.count)]
            elif chunk.fault is None:
                records += records_of(chunk, strip)
        return records

    def faults(self) -> list[tuple[Fault, bytes]]:
        """Return the records that were too long or cut off: why, and their bytes, the first 64 KiB at most."""
        return [(chunk.fault, bytes(chunk.data())) for chunk in self.chunks if chunk.fault is not None]

    def positions(self) -> dict[str, int]:
        """Return where the last record of each partition ends, by the partition's name."""
        return {chunk.partition.name: chunk.position for chunk in self.chunks}

    def __repr__(self) -> str:
        return f"<SourceBatch {self.sequence}: {self.count} records, {self.trigger}>"


class _Reading(ABC):
    """A task that reads, for as long as an `async with` lasts."""

    def __init__(self) -> None:
        self._tasks: TaskGroup | None = None
        self._is_reading = self._is_left = False
        self._error: Exception | None = None
        self._late_error: Exception | None = None

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError("microbatches: entered twice, but what it reads is read once")
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._is_reading = True
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._tasks is None:
            return
        self._is_reading, self._is_left = False, True
        self._tasks.cancel_scope.cancel()
        self._stop()
        # The task group is not told of an error in the body: it would wrap it.
        await self._tasks.__aexit__(None, None, None)
        if self._late_error is not None:
            raise self._late_error

    def __aiter__(self) -> Self:
        return self

    async def _run(self) -> None:
        try:
            if not self._is_left:
                await self._read()
        except Exception as error:
            if self._is_left:
                self._late_error = error
            else:
                self._error = error
        self._is_reading = False
        self._stop()

    def _end(self) -> Exception:
        """Return what ends the iteration."""
        if self._tasks is None or self._is_left:
            return RuntimeError("microbatches: to be iterated inside its `async with`")
        return self._error or StopAsyncIteration()

    @abstractmethod
    async def _read(self) -> None:
        """Read to the end."""

    @abstractmethod
    def _stop(self) -> None:
        """Learn that nothing more is read, and let whoever waits for it know."""


class ItemBatches(_Reading, Generic[Item]):
    """Lists of an iterable's items; made by `microbatches`. One more list is filled while one is worked on."""

    def __init__(self, source: AsyncIterable[Item], policy: BatchPolicy, clock: Clock) -> None:
        super().__init__()
        self._source, self._policy, self._clock = source, policy, clock
        self._items: list[Item] = []
        self._deadline = inf
        self._changed: anyio.Event | None = None
        self._room: anyio.Event | None = None

    async def __anext__(self) -> list[Item]:
        """Wait for a batch and return it; cancelled, it loses nothing. Raises what the iterable raised."""
        while not self._is_due(now := self._clock.monotonic()):
            if not self._is_reading:
                raise self._end()
            if self._changed is None:
                self._changed = anyio.Event()
            with anyio.move_on_after(self._deadline - now):
                await self._changed.wait()
        batch = self._items.copy()
        self._items.clear()
        self._deadline = inf
        if self._room is not None:
            self._room.set()
        return batch

    def _is_due(self, now: float) -> bool:
        items = self._items
        return len(items) >= self._policy.max_records or (
            bool(items) and (now >= self._deadline or not self._is_reading)
        )

    async def _read(self) -> None:
        iterator = aiter(self._source)
        try:
            items, full = self._items, self._policy.max_records
            async for item in iterator:
                if not items:
                    self._opened()
                items.append(item)
                if len(items) >= full:
                    await self._taken()
        finally:
            if isinstance(iterator, AsyncGenerator):
                with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                    await iterator.aclose()

    def _opened(self) -> None:
        self._deadline = self._clock.monotonic() + self._policy.max_wait
        self._notify()

    async def _taken(self) -> None:
        """Wait until the full batch was taken."""
        self._notify()
        self._room = anyio.Event()
        await self._room.wait()
        self._room = None

    def _stop(self) -> None:
        if self._is_left:
            self._items.clear()
        self._notify()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


class SourceBatches(_Reading):
    """Batches of a source; made by `microbatches`, to be iterated by one task.

    Asking for the next batch tells the source that it is done with the one before. counts: records received, and of
    these dropped by a source that is to drop what it has no room for; and refused, which were never received.
    """

    def __init__(self, source: Source, policy: BatchPolicy, queue: QueueLimits, limits: Limits, clock: Clock) -> None:
        super().__init__()
        self._source, self._clock = source, clock
        self._reader = reader_of(source, Site(clock=clock))
        self._inbox, self._memory = Inbox(queue.within(limits.memory // 4)), Budget(limits.memory)
        self._batcher = Batcher(self._inbox, Window(policy), clock)
        self._receipts = _Receipts()
        self._batch: SourceBatch | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        return self._receipts.counts

    async def listening(self) -> str | None:
        """Wait until the source listens, and return its address; return None at once if it never does."""
        return await self._reader.listening()

    async def __anext__(self) -> SourceBatch:
        """Wait for a batch and return it; cancelled, it loses nothing. Raises what the source raised."""
        if self._tasks is None or self._is_left:
            raise self._end()
        if self._batch is not None:
            self._reader.acked(self._batch.positions())
            self._memory.give(self._batch.size)
            self._batch = None
        batch = await self._batcher.next()
        if batch is None:
            raise self._end()
        self._batch = SourceBatch(batch, self._source.format)
        return self._batch

    async def _read(self) -> None:
        intake = SourceIntake(
            self._source.name,
            self._source.when_full,
            self._inbox,
            self._receipts,
            self._memory,
            clock=self._clock,
            observer=Observer(),
            run_id=secrets.token_hex(4),
        )
        try:
            await self._reader.run(intake)
        except Exception as error:
            cause = first_cause(error)
            if not isinstance(cause, InboxAborted):
                raise cause from cause.__cause__

    def _stop(self) -> None:
        self._inbox.close("flush")
        if self._is_left:
            self._inbox.abort()


class _Receipts:
    """Counts what comes in."""

    def __init__(self) -> None:
        self.counts = {"received": 0, "dropped": 0, "refused": 0}

    def received(self, chunk: Chunk) -> int:
        self.counts["received"] += chunk.count
        return 0

    def recovered(self, chunk: Chunk) -> None:
        self.counts["received"] += chunk.count

    def dropped(self, chunk: Chunk, reason: str) -> None:
        self.counts["dropped"] += chunk.count

    def lost(self, source: str, records: int) -> None:
        self.counts["dropped"] += records

    def refused(self, source: str, records: int, reason: str) -> None:
        self.counts["refused"] += records
