"""The driver of the sink: puts finished batches back in order, writes them, makes them durable, reports them acked.

Batches come in any order and leave in the order they were cut. Scores and dead letters of a batch are both written
before it counts as written, and both synced before it counts as acked; without `durable` it is acked when written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import anyio

from streambatch.clock import Clock
from streambatch.events import Observer
from streambatch.records import Batch, Outcome, Reject, SegmentedSink, Sink
from streambatch.sinks.replies import send_replies

WRITE_SIZE = 256 << 10
"""Bytes worth a write of their own; while a full batch waits to be scored, less gets LINGER seconds to grow."""
LINGER = 0.004
UNSYNCED_BATCHES_MAX = 32768
"""Batches that may wait for a segment of the sink to be closed."""

Finished = tuple[Batch, Outcome]


class DeadLetters(Protocol):
    """Where rejects are written."""

    async def write(self, rejects: Sequence[Reject]) -> None: ...

    async def sync(self) -> None: ...

    async def finish(self) -> None: ...


class Outbox:
    """Finished batches on their way out. `add` comes from the executor, `run` is one task, `sync` any task's."""

    def __init__(
        self,
        sink: Sink,
        dead_letters: DeadLetters,
        *,
        clock: Clock,
        observer: Observer,
        is_durable: bool,
        written: Callable[[Batch, Outcome], None],
        acked: Callable[[Batch, Outcome], None],
        is_busy: Callable[[], bool],
    ) -> None:
        self._sink, self._dead_letters = sink, dead_letters
        self._clock, self._observer = clock, observer
        self._is_durable, self._written, self._acked, self._is_busy = is_durable, written, acked, is_busy
        self._early: dict[int, Finished] = {}
        self._ready: list[Finished] = []
        self._ready_size = 0
        self._segments = sink if isinstance(sink, SegmentedSink) else None
        if self._segments is not None:
            self._segments.timed_by(clock)
        self._unsynced: deque[tuple[int, Finished]] = deque()
        self._writes = 0
        self._next_sequence = 0
        self._is_closed = False
        self._changed: anyio.Event | None = None
        self._syncing = anyio.Lock()
        self.writing_since: float | None = None
        self.last_written_wall = self.last_synced_wall = clock.wall()

    def add(self, batch: Batch, outcome: Outcome) -> None:
        """Take a finished batch; it leaves after all that were cut before it."""
        self._early[batch.sequence] = (batch, outcome)
        while (finished := self._early.pop(self._next_sequence, None)) is not None:
            self._ready.append(finished)
            self._ready_size += len(finished[1].payload)
            self._next_sequence += 1
        if self._ready and self._changed is not None:
            self._changed.set()

    def close(self) -> None:
        """Say that nothing more will be added; `run` then writes what is left, completes the outputs and returns."""
        self._is_closed = True
        if self._changed is not None:
            self._changed.set()

    async def run(self) -> None:
        """Write what is ready until closed and empty."""
        while self._ready or not self._is_closed:
            if not self._ready:
                self._changed = anyio.Event()
                await self._changed.wait()
            elif self._ready_size < WRITE_SIZE and not self._is_closed and self._is_busy():
                await anyio.sleep(LINGER)
                await self._write(self._take())
            else:
                await self._write(self._take())
        if self._segments is not None:
            await self._segments.finish()
        await self._dead_letters.finish()
        await self.sync()

    async def sync(self) -> None:
        """Make durable what was written until now, and ack what is: all of it, unless the sink has to close a segment
        first."""
        async with self._syncing:
            if not self._unsynced and self._segments is None:
                return
            writes, count = self._writes, len(self._unsynced)
            started = self._clock.monotonic()
            try:
                await self._sink.sync()
                if self._segments is not None:
                    if count > UNSYNCED_BATCHES_MAX and self._segments.durable_writes <= self._unsynced[0][0]:
                        await self._segments.finish()
                    writes = min(writes, self._segments.durable_writes)
                await self._dead_letters.sync()
            except BaseException:
                self._observer.synced(self._clock.monotonic() - started, ok=False)
                raise
            now = self._clock.monotonic()
            self.last_synced_wall = self._clock.wall()
            if count:
                self._observer.synced(now - started, ok=True)
            self._ack_written(writes, count, now)

    def _take(self) -> list[Finished]:
        """Return what is ready, up to what is worth a write: a sink that rotates never splits one."""
        count = size = 0
        while count < len(self._ready) and size < WRITE_SIZE:
            size += len(self._ready[count][1].payload)
            count += 1
        finished, self._ready = self._ready[:count], self._ready[count:]
        self._ready_size -= size
        return finished

    async def _write(self, finished: list[Finished]) -> None:
        started = self.writing_since = self._clock.monotonic()
        payload = finished[0][1].payload if len(finished) == 1 else b"".join([o.payload for _, o in finished])
        try:
            if payload:
                await self._sink.write(payload)
                self._writes += 1
        except Exception as error:
            self._observer.sink_failed(self._sink.name, error)
            raise
        rejects = [reject for _, outcome in finished for reject in outcome.rejects]
        if rejects:
            await self._dead_letters.write(rejects)
        if any(outcome.replies for _, outcome in finished):
            send_replies(finished)
        now = self._clock.monotonic()
        self.writing_since, self.last_written_wall = None, self._clock.wall()
        for batch, outcome in finished:
            batch.stamps.sink_started, batch.stamps.written = started, now
            self._written(batch, outcome)
            self._observer.batch_written(batch, outcome)
            batch.release()
            outcome.release()
            if self._is_durable:
                self._unsynced.append((self._writes, (batch, outcome)))
            else:
                self._ack(batch, outcome, now)

    def _ack_written(self, writes: int, count: int, now: float) -> None:
        """Ack the first `count` batches that wait, as far as they were in the first `writes` writes."""
        while count and self._unsynced[0][0] <= writes:
            self._ack(*self._unsynced.popleft()[1], now)
            count -= 1

    def _ack(self, batch: Batch, outcome: Outcome, now: float) -> None:
        batch.stamps.durable = now
        self._acked(batch, outcome)
        self._observer.batch_acked(batch, outcome)
