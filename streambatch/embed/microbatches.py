"""Micro-batches for a program's own loop: of anything that can be iterated asynchronously, or of a source.

Reading goes on in a task of its own, bounded, while the program works on a batch. That task and every handle it holds
end with the `async with`, however that is left.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterable, Mapping
from typing import Any, overload

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
from streambatch.embed.background import ReadAhead
from streambatch.embed.items import Item, ItemBatches
from streambatch.microbatch.batcher import Batcher
from streambatch.microbatch.inbox import Inbox, InboxAborted, QueueLimits
from streambatch.microbatch.intake import SourceIntake
from streambatch.microbatch.window import BatchPolicy, Window
from streambatch.spool.spooled import reader_of

MAX_BYTES = 4 << 20
"""Bytes of a source's records in a batch, at most, if nothing else is said."""


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
    for by then; until then it goes on filling. An error of the source is raised once the batches before it are
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


class SourceBatches(ReadAhead):
    """Batches of a source; made by `microbatches`, to be iterated by one task.

    Asking for the next batch tells the source that it is done with the one before. counts: records received, and of
    these dropped by a source that is to drop what it has no room for; and refused, which were never received.
    """

    def __init__(self, source: Source, policy: BatchPolicy, queue: QueueLimits, limits: Limits, clock: Clock) -> None:
        super().__init__()
        self._format = source.format
        self._reader = reader_of(source, Site(clock=clock))
        # A quarter, as in a Pipeline (QUEUE_SHARE), so that batches in the program's hands find memory as well.
        self._inbox = Inbox(queue.within(limits.memory // 4))
        self._receipts = _SourceCounts()
        self._intake = SourceIntake(
            source.name,
            source.when_full,
            self._inbox,
            self._receipts,
            Budget(limits.memory),
            clock=clock,
            observer=Observer(),
            run_id=secrets.token_hex(4),
        )
        self._batcher = Batcher(self._inbox, Window(policy), clock)
        self._batch: SourceBatch | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        return self._receipts.counts

    async def listening(self) -> str | None:
        """Wait until the source listens, and return its address; return None at once if it never does."""
        return await self._reader.listening()

    async def __anext__(self) -> SourceBatch:
        """Wait for a batch and return it; cancelled, it loses nothing. Raises what the source raised."""
        if not self._is_open:
            raise self._ending()
        if self._batch is not None:
            self._reader.acked(self._batch.positions())
            self._intake.memory.give(self._batch.size)
            self._batch = None
        batch = await self._batcher.next()
        if batch is None:
            raise self._ending()
        self._batch = SourceBatch(batch, self._format)
        return self._batch

    async def _read(self) -> None:
        try:
            await self._reader.run(self._intake)
        except Exception as error:
            cause = first_cause(error)
            # The `async with` was left while the source waited for room: that is no error of the source.
            if not isinstance(cause, InboxAborted):
                raise cause from cause.__cause__

    def _stopped(self) -> None:
        # Ends the wait for the next batch; `abort` ends that of a source for room.
        self._inbox.close("flush")
        if self._state == "left":
            self._inbox.abort()


class _SourceCounts:
    """Counts the records that come in."""

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
