"""On virtual time: beside a source at full speed, what others send waits for no batch but those under way."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.core.batches import Batch
from streambatch.core.chunks import Partition
from streambatch.core.outcomes import Outcome
from streambatch.microbatch.batcher import Batcher
from streambatch.microbatch.inbox import Inbox, QueueLimits
from streambatch.microbatch.inflight import QUICK_SECONDS, InFlight
from streambatch.microbatch.window import BatchPolicy, Window
from streambatch.testing import LoopClock
from tests.chunks import chunk_of, lines_of

QUIET = ("quiet", "shy")
SLACK = 1e-9


class Line:
    """Inbox, batcher and workers that take a known time for a batch."""

    def __init__(self, policy: BatchPolicy, queue: QueueLimits, workers: int, batch_seconds: float) -> None:
        self.clock, self.policy, self.batch_seconds = LoopClock(), policy, batch_seconds
        self.inbox = Inbox(queue, ["loud", *QUIET])
        self.batcher = Batcher(self.inbox, Window(policy), self.clock)
        self.in_flight = InFlight(2 * workers, 1 << 30, workers=workers, patience=policy.max_wait)
        self.arrived: dict[bytes, float] = {}
        self.waited: list[float] = []
        self.came: dict[str, list[bytes]] = {"loud": [], **{name: [] for name in QUIET}}
        self.closed: dict[bytes, float] = {}
        self.scored: dict[bytes, float] = {}
        self.cuts: list[float] = []
        self._workers = workers
        self._freed = trio.Event()

    async def run(self, loud: Sequence[tuple[float, int, int]], quiet: Sequence[Sequence[tuple[float, int]]]) -> None:
        async with trio.open_nursery() as working:
            send, receive = trio.open_memory_channel[Batch](1000)
            for _ in range(self._workers):
                working.start_soon(self._work, receive.clone())
            working.start_soon(self._cut, send)
            async with trio.open_nursery() as sources:
                sources.start_soon(self._shout, loud)
                for name, gaps in zip(QUIET, quiet, strict=True):
                    sources.start_soon(self._speak, name, gaps)
            self.inbox.close("flush")

    async def _shout(self, bursts: Sequence[tuple[float, int, int]]) -> None:
        number = 0
        for pause, count, width in bursts:
            await trio.sleep(pause)
            lines = [(b"loud %d " % (number + at)).ljust(width, b".") for at in range(count)]
            number += count
            await self._put("loud", lines)

    async def _speak(self, name: str, records: Sequence[tuple[float, int]]) -> None:
        for number, (gap, width) in enumerate(records):
            await trio.sleep(gap)
            since = trio.current_time()
            await self._put(name, [(b"%s %d " % (name.encode(), number)).ljust(width, b".")])
            self.waited.append(trio.current_time() - since)

    async def _put(self, name: str, lines: list[bytes]) -> None:
        now = trio.current_time()
        self.arrived.update(dict.fromkeys(lines, now))
        await self.inbox.put(chunk_of(lines, partition=Partition(name, "p"), arrived_at=now), self.clock)

    async def _cut(self, send: trio.MemorySendChannel[Batch]) -> None:
        async with send:
            while True:
                while not self.in_flight.has_slot:
                    self._freed = trio.Event()
                    await self._freed.wait()
                limits = self.inbox.limits
                assert self.inbox.records <= limits.max_records
                assert self.inbox.size <= limits.max_bytes or self.inbox.records == 1
                batch = await self.batcher.next()
                if batch is None:
                    return
                assert batch.count <= self.policy.max_records
                assert batch.size <= self.policy.max_bytes or batch.count == 1
                self.cuts.append(batch.stamps.closed)
                for chunk in batch.chunks:
                    self.came[chunk.partition.source] += lines_of([chunk])
                self.in_flight.started(batch)
                send.send_nowait(batch)

    async def _work(self, receive: trio.MemoryReceiveChannel[Batch]) -> None:
        async for batch in receive:
            batch.stamps.started = trio.current_time()
            await trio.sleep(self.batch_seconds)
            now = batch.stamps.encoded = trio.current_time()
            lines = lines_of(batch.chunks)
            self.closed.update(dict.fromkeys(lines, batch.stamps.closed))
            self.scored.update(dict.fromkeys(lines, now))
            self.in_flight.scored(batch, None)
            self.in_flight.written(batch, Outcome(b"", {}, (), {}))
            self._freed.set()


@settings(deadline=None)
@given(data=st.data())
def test_a_quiet_record_is_in_the_next_batch_and_scored_in_time_and_nobody_starves(data: st.DataObject) -> None:
    batch_seconds = data.draw(st.sampled_from([2 * QUICK_SECONDS, 0.05, 0.3]))
    policy = BatchPolicy(
        max_records=data.draw(st.integers(6, 40)),
        max_bytes=data.draw(st.sampled_from([300, 1000, 1 << 20])),
        max_wait=data.draw(st.sampled_from([0.0, 0.02, 0.05, 1.0])),
    )
    queue = QueueLimits(max_records=data.draw(st.integers(24, 300)), max_bytes=data.draw(st.integers(2000, 20_000)))
    line = Line(policy, queue, data.draw(st.integers(1, 2)), batch_seconds)
    bursts = st.tuples(st.sampled_from([0.0, 0.0, 0.1]), st.integers(1, 80), st.integers(10, 400))
    # No more than two come while one batch is scored: with three lanes that is a share of every batch.
    spoken = st.tuples(st.floats(batch_seconds, 4 * batch_seconds), st.integers(10, 40))
    loud = data.draw(st.lists(bursts, min_size=1, max_size=10))
    quiet = [data.draw(st.lists(spoken, min_size=1, max_size=8)) for _ in QUIET]
    trio.run(line.run, loud, quiet, clock=trio.testing.MockClock(autojump_threshold=0))

    for name in ("loud", *QUIET):
        assert line.came[name] == [record for record in line.arrived if record.startswith(name.encode())]
    assert max(line.waited) == 0
    for record in line.came["quiet"] + line.came["shy"]:
        arrived, closed = line.arrived[record], line.closed[record]
        taken_before = [cut for cut in line.cuts if arrived + SLACK < cut < closed - SLACK]
        assert not taken_before or closed - arrived <= policy.max_wait + SLACK
        assert line.scored[record] - arrived <= 2 * policy.max_wait + 2 * batch_seconds + SLACK


@pytest.mark.parametrize("patience", [0.0, 1.0])
def test_a_batch_is_cut_ahead_only_where_batches_are_quick(patience: float) -> None:
    in_flight = InFlight(2, 1 << 30, workers=1, patience=patience)
    window = Window(BatchPolicy())
    cut_ahead = []
    for seconds in (0.5, QUICK_SECONDS / 2, 0.5):
        window.add(chunk_of([b"x"]), 0.0)
        batch = window.close("time", 0.0)
        in_flight.started(batch)
        cut_ahead.append(in_flight.has_slot)
        batch.stamps.encoded = batch.stamps.started + seconds
        in_flight.scored(batch, None)
        in_flight.written(batch, Outcome(b"", {}, (), {}))
    # The first batch tells how long they take.
    assert cut_ahead == [False, patience == 1.0, True]
