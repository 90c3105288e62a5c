"""The driver of the sink: puts finished batches back in order, writes them, makes them durable, reports them acked.

Batches come in any order and leave in the order they were cut. Dead letters and scores of a batch are both written
before it counts as written, and both synced, and stored in a checkpoint, before it counts as acked; without checkpoints
it is acked when written. How far the outputs go is noted after each write, so that a checkpoint covers exactly the
batches it acks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import anyio

from streambatch.core.batches import Batch
from streambatch.core.clock import Clock
from streambatch.core.durable import Commit, Mark
from streambatch.core.events import Observer
from streambatch.core.outcomes import Outcome, Reject
from streambatch.core.parts import Writer
from streambatch.delivery.outages import Holding
from streambatch.delivery.posting import Refuse, post
from streambatch.delivery.replies import send_replies

WRITE_SIZE = 256 << 10
"""Bytes worth a write of their own; while a full batch waits to be scored, less gets LINGER seconds to grow."""
LINGER = 0.004
UNSYNCED_BATCHES_MAX = 32768
"""Batches that may wait for their ack."""
CLOSE_DUE_SECONDS = 1.0
"""How often outputs are asked to close what is old enough."""
SINK, DEAD_LETTERS = "sink", "dead_letters"
"""What checkpoints call the two outputs."""

Finished = tuple[Batch, Outcome]
Marks = Mapping[str, Mark]


class DeadLetters(Protocol):
    """Where rejects are written."""

    def restore(self, mark: Mark | None, commit: Commit) -> None: ...

    def mark(self) -> Mark: ...

    async def open(self) -> None: ...

    async def write(self, rejects: Sequence[Reject]) -> None: ...

    async def sync(self) -> None: ...

    async def close_due(self) -> None: ...

    async def finish(self) -> None: ...


class Checkpoints(Protocol):
    """Where it is stored what is durable."""

    async def begin(self) -> None:
        """Called before the first write: store what no start without it would find again. Raises StateOutage."""
        ...

    def written(self, batch: Batch, outcome: Outcome, place: Mark) -> None:
        """Note a batch whose bytes are about to be released; `place` is how far the sink goes with it."""
        ...

    async def digested(self) -> None:
        """Wait while what was noted holds too many bytes."""
        ...

    async def intend(self, batches: Sequence[Batch]) -> None:
        """Store which records the batches hold that are about to be sent."""
        ...

    def point(self) -> Any:
        """Return what stands for all that was noted until now."""
        ...

    async def commit(self, finished: Sequence[Finished], marks: Marks, point: Any) -> None:
        """Store that these batches are acked, and how far the outputs go with them; `point` is of the moment when they
        were the last ones noted. Raises StateOutage."""
        ...


class _Written(NamedTuple):
    """Batches that were written together: after how many writes, and how far the outputs then went."""

    writes: int
    finished: list[Finished]
    marks: Marks


class Outbox:
    """Finished batches on their way out. `add` comes from the executor, `run` is one task, `sync` any task's."""

    def __init__(
        self,
        sink: Writer,
        dead_letters: DeadLetters,
        *,
        clock: Clock,
        observer: Observer,
        written: Callable[[Batch, Outcome], None],
        acked: Callable[[Batch, Outcome], None],
        is_busy: Callable[[], bool],
        id_of: Callable[[Batch], str],
        refuse: Refuse,
    ) -> None:
        self._id_of, self._refuse = id_of, refuse
        self._sink, self._dead_letters = sink, dead_letters
        self._checkpoints: Checkpoints | None = None
        self._clock, self._observer = clock, observer
        self._written, self._acked, self._is_busy = written, acked, is_busy
        self._early: dict[int, Finished] = {}
        self._ready: list[Finished] = []
        self._ready_size = 0
        self._segments = sink if sink.is_segmented else None
        self._identified = sink if sink.is_identified else None
        self._rewindable = sink if sink.is_rewindable else None
        self._unsynced: deque[_Written] = deque()
        self._unsynced_batches = self._writes = 0
        self._marks: dict[str, Mark] = {}
        self._next_sequence = 0
        self._has_begun = self._is_closed = False
        self._close_due_at = 0.0
        self._changed: anyio.Event | None = None
        self._syncing = anyio.Lock()
        self.holding = Holding(clock, observer)
        self.writing_since: float | None = None
        self.last_written_wall = self.last_synced_wall = clock.wall()

    def restore(self, checkpoints: Checkpoints, marks: Marks) -> None:
        """Ack from now on what is in a checkpoint; tell the outputs, which are not open, how far the last one goes."""
        self._checkpoints, self._marks = checkpoints, dict(marks)
        if self._rewindable is not None:
            self._rewindable.restore(marks.get(SINK), self._commit_sink)
        self._dead_letters.restore(marks.get(DEAD_LETTERS), self._commit_dead_letters)

    async def open(self, header: bytes) -> None:
        """Open the outputs; `header` starts a fresh one. Waits for outages to end."""
        await self._hold(SINK, partial(self._sink.open, header))
        await self._hold(DEAD_LETTERS, self._dead_letters.open)
        if self._checkpoints is not None:
            self._marks = self._marks_now()

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
            if self._clock.monotonic() >= self._close_due_at:
                await self._close_due()
            if not self._ready:
                await self._wait()
                continue
            if self._ready_size < WRITE_SIZE and not self._is_closed and self._is_busy():
                await anyio.sleep(LINGER)
            await self._write(self._take())
        if self._segments is not None:
            await self._hold(SINK, self._segments.finish)
        await self._hold(DEAD_LETTERS, self._dead_letters.finish)
        self._marks = self._marks_now()
        await self.sync()

    async def sync(self) -> None:
        """Make durable what was written until now, and ack what is: all of it, unless the sink has to close a segment
        first."""
        async with self._syncing:
            if not self._unsynced and self._checkpoints is None:
                return
            groups, marks, point = len(self._unsynced), dict(self._marks), self._point()
            started = self._clock.monotonic()
            try:
                await self._hold(SINK, self._sink.sync)
                await self._hold(DEAD_LETTERS, self._dead_letters.sync)
                groups, marks = self._durable(groups, marks)
                await self._commit(groups, marks, point)
            except BaseException:
                self._observer.synced(self._clock.monotonic() - started, ok=False)
                raise
            if groups:
                self._observer.synced(self._clock.monotonic() - started, ok=True)

    async def _wait(self) -> None:
        self._changed = anyio.Event()
        with anyio.move_on_after(CLOSE_DUE_SECONDS):
            await self._changed.wait()

    async def _close_due(self) -> None:
        if self._segments is not None:
            await self._hold(SINK, self._segments.close_due)
        await self._hold(DEAD_LETTERS, self._dead_letters.close_due)
        self._close_due_at = self._clock.monotonic() + CLOSE_DUE_SECONDS

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
        if not self._has_begun:
            await self._begin()
        if self._unsynced_batches > UNSYNCED_BATCHES_MAX:
            await self._sync_all()
        started = self.writing_since = self._clock.monotonic()
        if self._identified is not None:
            await self._post(self._identified, finished)
            await self._bury(finished)
        else:
            await self._bury(finished)
            await self._put(finished)
        if any(outcome.replies for _, outcome in finished):
            send_replies(finished)
        now = self._clock.monotonic()
        self.writing_since, self.last_written_wall = None, self._clock.wall()
        if self._checkpoints is not None:
            self._marks = self._marks_now()
        for batch, outcome in finished:
            batch.stamps.sink_started, batch.stamps.written = started, now
            self._let_go(batch, outcome)
            if self._checkpoints is None:
                self._ack(batch, outcome, now)
        if self._checkpoints is not None:
            self._unsynced.append(_Written(self._writes, finished, self._marks))
            self._unsynced_batches += len(finished)
            await self._checkpoints.digested()

    def _let_go(self, batch: Batch, outcome: Outcome) -> None:
        self._written(batch, outcome)
        self._observer.batch_written(batch, outcome)
        if self._checkpoints is not None:
            self._checkpoints.written(batch, outcome, self._marks.get(SINK, {}))
        batch.release()
        outcome.release()

    async def _begin(self) -> None:
        if self._checkpoints is not None:
            async with self._syncing:
                await self.holding.through("state", self._checkpoints.begin)
        self._has_begun = True

    async def _bury(self, finished: list[Finished]) -> None:
        """Write the dead letters: before the scores, since no score may be in a segment closed before they are."""
        rejects = [reject for _, outcome in finished for reject in outcome.rejects]
        if rejects:
            await self._hold(DEAD_LETTERS, partial(self._dead_letters.write, rejects))

    async def _put(self, finished: list[Finished]) -> None:
        payload = finished[0][1].payload if len(finished) == 1 else b"".join([o.payload for _, o in finished])
        if payload:
            await self._hold(SINK, partial(self._sink.write, payload))
            self._writes += 1

    async def _post(self, sink: Writer, finished: list[Finished]) -> None:
        if self._checkpoints is not None:
            await self._hold(SINK, partial(self._checkpoints.intend, [batch for batch, _ in finished]))
        for batch, outcome in finished:
            await post(sink, batch, outcome, self._id_of(batch), partial(self._hold, SINK), self._refuse)
            self._writes += 1

    async def _hold(self, output: str, call: Callable[[], Awaitable[object]]) -> None:
        name = self._sink.name if output == SINK else "dead_letter"
        await self.holding.through(name, call)

    async def _sync_all(self) -> None:
        await self.sync()
        if self._unsynced and self._segments is not None:
            await self._hold(SINK, self._segments.finish)
            await self.sync()

    def _durable(self, groups: int, marks: dict[str, Mark]) -> tuple[int, dict[str, Mark]]:
        """Return how many of the groups a sync made durable, and how far the outputs go with them."""
        if self._segments is None:
            return groups, marks
        durable = self._segments.durable_writes
        done = [group for group in islice(self._unsynced, groups) if group.writes <= durable]
        if len(done) == groups:
            return groups, marks
        return len(done), dict(done[-1].marks) if done else {}

    async def _commit_sink(self, mark: Mark) -> None:
        """Ack all that was written: it is in what the sink has synced and is about to close."""
        async with self._syncing:
            await self._hold(DEAD_LETTERS, self._dead_letters.sync)
            await self._commit(len(self._unsynced), {**self._marks, SINK: mark})
            self._marks = {**self._marks, SINK: mark}

    async def _commit_dead_letters(self, mark: Mark) -> None:
        """Ack all that was written before the segment of dead letters is closed that holds what died of it."""
        if self._unsynced:
            await self._sync_all()
        async with self._syncing:
            await self._commit(0, {**self._marks, DEAD_LETTERS: mark})
            self._marks = {**self._marks, DEAD_LETTERS: mark}

    async def _commit(self, groups: int, marks: Marks, point: Any = None) -> None:
        finished = [each for group in islice(self._unsynced, groups) for each in group.finished]
        if self._checkpoints is not None:
            commit = partial(self._checkpoints.commit, finished, marks, point or self._checkpoints.point())
            await self.holding.through("state", commit)
        now = self._clock.monotonic()
        self.last_synced_wall = self._clock.wall()
        for _ in range(groups):
            group = self._unsynced.popleft()
            self._unsynced_batches -= len(group.finished)
        for batch, outcome in finished:
            self._ack(batch, outcome, now)

    def _point(self) -> Any:
        return self._checkpoints.point() if self._checkpoints is not None else None

    def _marks_now(self) -> dict[str, Mark]:
        marks = {DEAD_LETTERS: self._dead_letters.mark()}
        if self._rewindable is not None:
            marks[SINK] = self._rewindable.mark()
        return marks

    def _ack(self, batch: Batch, outcome: Outcome, now: float) -> None:
        batch.stamps.durable = now
        self._acked(batch, outcome)
        self._observer.batch_acked(batch, outcome)
