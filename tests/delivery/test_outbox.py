"""The outbox: batches leave in order, and are acked when, and only when, the sink says that they are durable."""

import random
from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.connectors.memory.sink import MemoryOutput, MemoryWriter
from streambatch.core.batches import Batch, Stamps
from streambatch.core.checkpoints import OutputMark
from streambatch.core.errors import SinkError, StateOutage
from streambatch.core.events import Observer
from streambatch.core.outcomes import Outcome, Reject
from streambatch.core.parts import Writer
from streambatch.delivery import committer
from streambatch.delivery import outbox as outboxes
from streambatch.delivery.dead_letters import DeadLetterEncoder
from streambatch.delivery.outbox import Outbox
from streambatch.delivery.outputs import Marks
from streambatch.delivery.owner import Finished
from tests.blocking import all_blocked
from tests.chunks import chunk_of
from tests.moved_clock import MovedClock

pytestmark = pytest.mark.anyio


class PiecewiseWriter(MemoryWriter):
    """Keeps payloads; they count as durable once a segment of `size` writes is full, or by `finish`."""

    is_segmented = True

    def __init__(self, size: int) -> None:
        super().__init__("memory", MemoryOutput())
        self.size = size
        self.durable = self.finished = self.looked_at = 0

    @property
    def durable_writes(self) -> int:
        return self.durable

    async def sync(self) -> int:
        await anyio.lowlevel.checkpoint()
        self.durable = max(self.durable, len(self.output.payloads) // self.size * self.size)
        return await super().sync()

    async def close_due(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.looked_at += 1

    async def finish(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.durable = len(self.output.payloads)
        self.finished += 1


class NoDeadLetters(Writer):
    """Counts what it is asked."""

    name = "dead_letter"
    is_segmented = True

    def __init__(self) -> None:
        self.synced = self.finished = 0

    async def open(self, header: bytes) -> None:
        pass

    async def write(self, payload: bytes) -> None:
        raise AssertionError("no record died")

    async def sync(self) -> int:
        self.synced += 1
        return 0

    async def finish(self) -> None:
        self.finished += 1

    async def close(self) -> None:
        pass


class Kept:
    """Checkpoints in memory: the batches that each acks, by sequence. outage: what the next commit raises."""

    def __init__(self) -> None:
        self.noted: list[int] = []
        self.commits: list[list[int]] = []
        self.has_begun = False
        self.outage: Exception | None = None

    async def begin(self) -> None:
        assert self.noted == [], "nothing was written before"
        self.has_begun = True

    def written(self, batch: Batch, outcome: Outcome, place: OutputMark) -> None:
        assert self.has_begun
        assert batch.chunks[0].payload, "its bytes are there until it was noted"
        self.noted.append(batch.sequence)

    async def digested(self) -> None:
        await anyio.lowlevel.checkpoint()

    def point(self) -> int:
        return len(self.noted)

    def id_of(self, batch: Batch) -> str:
        return str(batch.sequence)

    async def intend(self, batches: Sequence[Batch]) -> None:
        raise AssertionError("the sink knows no batches")

    async def commit(self, finished: Sequence[Finished], marks: Marks, point: int) -> None:
        await anyio.lowlevel.checkpoint()
        outage, self.outage = self.outage, None
        if outage is not None:
            raise outage
        self.commits.append([batch.sequence for batch, _ in finished])


class Run:
    """An outbox, and what it said of batches, by sequence."""

    def __init__(self, writer: MemoryWriter, *, is_durable: bool = True) -> None:
        self.writer, self.dead_letters = writer, NoDeadLetters()
        self.written_batches: list[int] = []
        self.acked_batches: list[int] = []
        clock = MovedClock()
        self.outbox = Outbox(
            writer,
            self.dead_letters,
            self,
            DeadLetterEncoder("p", "r-1", clock),
            clock=clock,
            observer=Observer(),
        )
        self.checkpoints = Kept()
        if is_durable:
            self.outbox.restore(self.checkpoints, {})

    def add(self, sequence: int, payload: bytes | None = None) -> None:
        batch = Batch(sequence, [chunk_of([b"x"])], 1, 2, "size", Stamps(0.0, 0.0))
        self.outbox.add(batch, Outcome(b"%d\n" % sequence if payload is None else payload, {"in": 1}, [], {}))

    is_busy = False

    def written(self, batch: Batch, outcome: Outcome) -> None:
        self.written_batches.append(batch.sequence)

    def acked(self, batch: Batch, outcome: Outcome) -> None:
        self.acked_batches.append(batch.sequence)

    def refused(self, batch: Batch, index: int, error: str) -> Reject:
        raise AssertionError("nothing is refused")

    def durable(self) -> list[int]:
        """Return the batches whose scores the sink holds durably."""
        payloads = self.writer.output.payloads
        count = self.writer.durable_writes if self.writer.is_segmented else len(payloads)
        return [int(line) for payload in payloads[:count] for line in payload.splitlines()]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=40)
@given(count=st.integers(0, 12), size=st.integers(1, 4), seed=st.integers(), ahead=st.integers(1, 5))
def test_only_what_is_durable_is_acked_in_order_and_in_the_end_all(
    backend: str, count: int, size: int, seed: int, ahead: int
) -> None:
    async def run() -> None:
        choose = random.Random(seed)
        sink = PiecewiseWriter(size)
        run = Run(sink)
        await sink.open(b"")
        order = sorted(range(count), key=lambda sequence: sequence + choose.random() * ahead)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run.outbox.run)
            for sequence in order:
                run.add(sequence)
                for _ in range(choose.randrange(4)):
                    await anyio.lowlevel.checkpoint()
                if choose.random() < 0.5:
                    tasks.start_soon(run.outbox.sync)
                assert run.acked_batches == run.durable()[: len(run.acked_batches)]
            run.outbox.close()
        assert run.acked_batches == run.written_batches == list(range(count))
        assert (sink.finished, run.dead_letters.finished) == (1, 1)

    anyio.run(run, backend=backend)


async def test_batches_wait_unacked_until_their_segment_is_closed() -> None:
    run = Run(PiecewiseWriter(2))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.outbox.run)
        for sequence, expected in enumerate([[], [0, 1], [0, 1], [0, 1, 2, 3]]):
            run.add(sequence)
            await all_blocked()
            await run.outbox.sync()
            assert run.acked_batches == expected
        run.add(4, b"")  # all its records died or were filtered: it waits for those before it only
        await all_blocked()
        await run.outbox.sync()
        assert run.acked_batches == [0, 1, 2, 3, 4]
        tasks.cancel_scope.cancel()


async def test_too_many_that_wait_have_the_segment_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "UNSYNCED_BATCHES_MAX", 3)
    run = Run(PiecewiseWriter(1000))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.outbox.run)
        for sequence in range(4):
            run.add(sequence)
            await all_blocked()
            assert run.acked_batches == []
            await run.outbox.sync()
        await all_blocked()
        run.add(4)  # whoever writes the next one sees to it first
        await all_blocked()
        assert run.acked_batches == [0, 1, 2, 3]
        tasks.cancel_scope.cancel()


async def test_a_sync_that_failed_acks_nothing_and_the_next_all(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(PiecewiseWriter(1))
    run.add(0)
    await run.outbox.write_ready()

    async def failing() -> int:
        raise SinkError("scores", "no room")

    with monkeypatch.context() as broken, pytest.raises(SinkError):
        broken.setattr(run.writer, "sync", failing)
        await run.outbox.sync()
    assert run.acked_batches == []
    await run.outbox.sync()
    assert run.acked_batches == [0]


async def test_a_sink_without_segments_is_acked_by_each_sync() -> None:
    run = Run(MemoryWriter("memory", MemoryOutput()))
    run.add(0)
    await run.outbox.write_ready()
    await run.outbox.sync()
    assert run.acked_batches == [0]


async def test_the_task_that_writes_closes_what_is_due_also_while_nothing_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outboxes, "CLOSE_DUE_SECONDS", 0.0)
    sink = PiecewiseWriter(1)
    run = Run(sink)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.outbox.run)
        with anyio.fail_after(5):
            while sink.looked_at < 3:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


async def test_a_checkpoint_that_can_not_be_stored_is_held_and_nothing_acked_meanwhile() -> None:
    run = Run(MemoryWriter("memory", MemoryOutput()))
    run.add(0)
    await run.outbox.write_ready()
    run.checkpoints.outage = StateOutage("state.sqlite3", "no room")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.outbox.sync)
        with anyio.fail_after(5):
            await run.outbox.outages.first.wait()
            assert run.acked_batches == []
            assert "no room" in run.outbox.outages.reasons(0.0)[0]
    assert (run.acked_batches, run.checkpoints.commits, run.outbox.outages.current) == ([0], [[0]], {})
