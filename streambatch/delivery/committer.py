"""From written to acked: outputs are synced, a checkpoint is stored, and the batches in it are acked.

A checkpoint acks exactly the batches that the marks in it cover, since how far the outputs go is noted after each
write. No batch is acked that the outputs may still lose.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice, takewhile
from typing import Any, NamedTuple, Protocol

import anyio

from streambatch.core.batches import Batch
from streambatch.core.checkpoints import OutputMark
from streambatch.core.clock import Clock
from streambatch.core.events import Observer
from streambatch.core.outcomes import Outcome
from streambatch.delivery.outputs import DEAD_LETTERS, SINK, Marks, OutputPair
from streambatch.delivery.owner import BatchOwner, Finished

UNSYNCED_BATCHES_MAX = 32768
"""Batches that may wait for their ack."""
STATE = "state"
"""The name of the state in outages."""


class Checkpoints(Protocol):
    """The store of checkpoints."""

    async def begin(self) -> None:
        """Store, before the first write, facts that a later start could not find again. Raises StateOutage."""
        ...

    def id_of(self, batch: Batch) -> str:
        """Return the id of a batch, which is the same if it is cut again after a crash."""
        ...

    def written(self, batch: Batch, outcome: Outcome, place: OutputMark) -> None:
        """Note a batch whose bytes are about to be released; `place` is how far the sink goes with it."""
        ...

    async def digested(self) -> None:
        """Wait while noted batches hold too many bytes."""
        ...

    async def intend(self, batches: Sequence[Batch]) -> None:
        """Store which records the batches hold that are about to be sent. Raises StateOutage."""
        ...

    def point(self) -> Any:
        """Return a point that stands for all batches noted until now."""
        ...

    async def commit(self, finished: Sequence[Finished], marks: Marks, point: Any) -> None:
        """Store that these batches are acked, and how far the outputs go with them; `point` is of the moment when they
        were the last ones noted. Raises StateOutage."""
        ...


class _Written(NamedTuple):
    """Batches that were written together, and where the outputs then were."""

    finished: Sequence[Finished]
    sink_writes: int
    dead_letter_writes: int
    marks: Marks


class Committer:
    """Batches that are written and not acked. One task writes; `sync` may come from any task, and takes its turn."""

    def __init__(
        self, checkpoints: Checkpoints, outputs: OutputPair, owner: BatchOwner, *, clock: Clock, observer: Observer
    ) -> None:
        self.checkpoints = checkpoints
        self._outputs, self._owner, self._clock, self._observer = outputs, owner, clock, observer
        self._unsynced: deque[_Written] = deque()
        self._unsynced_batches = 0
        self._marks: dict[str, OutputMark] = {}
        self._turn = anyio.Lock()
        self.last_synced_wall = clock.wall()

    def restore(self, marks: Marks) -> None:
        """Give the outputs, which are not open, the marks of the last checkpoint."""
        self._marks = dict(marks)
        self._outputs.restore(marks, self._commit_sink, self._commit_dead_letters)

    def look(self) -> None:
        """Take note of how far the outputs go. Called by the task that writes, after it opened, wrote or finished."""
        self._marks = self._outputs.marks()

    async def begin(self) -> None:
        """Store the checkpoint that is due before the first write, if one is."""
        async with self._turn:
            await self._outputs.outages.outlast(STATE, self.checkpoints.begin)

    def note(self, batch: Batch, outcome: Outcome) -> None:
        """Note a batch that was written and whose bytes are about to be released."""
        self.checkpoints.written(batch, outcome, self._marks.get(SINK, {}))

    def add(self, finished: Sequence[Finished]) -> None:
        """Take over batches that were written together and noted."""
        outputs = self._outputs
        self._unsynced.append(_Written(finished, outputs.sink.writes, outputs.dead_letters.writes, self._marks))
        self._unsynced_batches += len(finished)

    @property
    def has_too_many(self) -> bool:
        """Whether more batches wait for their ack than may: `sync_all` is due before the next write."""
        return self._unsynced_batches > UNSYNCED_BATCHES_MAX

    async def sync(self) -> None:
        """Make durable what was written until now, and ack it, unless the sink has to close a segment first."""
        async with self._turn:
            # All of one moment: what is written while the outputs sync belongs to the next checkpoint.
            groups, marks, point = len(self._unsynced), dict(self._marks), self.checkpoints.point()
            started = self._clock.monotonic()
            try:
                await self._outputs.sync()
                groups, marks = self._durable(groups, marks)
                await self._commit(groups, marks, point)
            except BaseException:
                self._observer.synced(self._clock.monotonic() - started, ok=False)
                raise
            if groups:
                self._observer.synced(self._clock.monotonic() - started, ok=True)

    async def sync_all(self) -> None:
        """Ack all that was written, closing a segment for it if need be. For the task that writes."""
        await self.sync()
        if self._unsynced and self._outputs.sink.writer.is_segmented:
            await self._outputs.sink.finish()
            await self.sync()

    def _durable(self, groups: int, marks: dict[str, OutputMark]) -> tuple[int, dict[str, OutputMark]]:
        """Return how many of the first groups are durable, and how far the outputs go with them."""
        sink, dead_letters = self._outputs.sink.durable_writes, self._outputs.dead_letters.durable_writes

        def is_durable(group: _Written) -> bool:
            return group.sink_writes <= sink and group.dead_letter_writes <= dead_letters

        if not groups or is_durable(self._unsynced[groups - 1]):  # so are all before it
            return groups, marks
        done = list(takewhile(is_durable, islice(self._unsynced, groups)))
        # The marks noted with the last of them: later marks cover groups that may still be lost.
        return len(done), dict(done[-1].marks) if done else {}

    async def _commit_sink(self, mark: OutputMark) -> None:
        """Ack all that was written: it is in what the sink has synced and is about to close."""
        async with self._turn:
            # The checkpoint acks whole batches: their dead letters must be durable too.
            await self._outputs.dead_letters.sync()
            await self._commit(len(self._unsynced), {**self._marks, SINK: mark}, self.checkpoints.point())
            self._marks = {**self._marks, SINK: mark}

    async def _commit_dead_letters(self, mark: OutputMark) -> None:
        """Ack all that was written before the segment of dead letters is closed that holds what died of it."""
        # Outside of the turn, which `sync_all` takes itself.
        if self._unsynced:
            await self.sync_all()
        async with self._turn:
            await self._commit(0, {**self._marks, DEAD_LETTERS: mark}, self.checkpoints.point())
            self._marks = {**self._marks, DEAD_LETTERS: mark}

    async def _commit(self, groups: int, marks: Marks, point: Any) -> None:
        """Store a checkpoint, and then ack the first groups."""
        finished = [each for group in islice(self._unsynced, groups) for each in group.finished]
        await self._outputs.outages.outlast(STATE, partial(self.checkpoints.commit, finished, marks, point))
        self.last_synced_wall = self._clock.wall()
        # Only once they are stored: after a failure the next sync finds them all.
        for _ in range(groups):
            group = self._unsynced.popleft()
            self._unsynced_batches -= len(group.finished)
        ack(finished, self._clock.monotonic(), self._owner, self._observer)


def ack(finished: Iterable[Finished], now: float, owner: BatchOwner, observer: Observer) -> None:
    """Pass on that batches are durable since `now`, in monotonic seconds."""
    for batch, outcome in finished:
        batch.stamps.durable = now
        owner.acked(batch, outcome)
        observer.batch_acked(batch, outcome)
