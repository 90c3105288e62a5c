"""The batcher on virtual time: when batches close, and that they close no later."""

from typing import Any

import anyio
import pytest
import trio

from streambatch.core.batches import Batch
from streambatch.microbatch.batcher import Batcher
from streambatch.microbatch.inbox import Inbox, QueueLimits
from streambatch.microbatch.window import BatchPolicy, Window
from streambatch.testing import LoopClock
from tests.chunks import chunk_of, lines_of


class Bench:
    """An inbox and a batcher on virtual time."""

    def __init__(self, **policy: Any) -> None:
        self.clock = LoopClock()
        self.inbox = Inbox(QueueLimits())
        self.batcher = Batcher(self.inbox, Window(BatchPolicy(**policy)), self.clock)
        self.batches: list[Batch] = []

    async def put(self, *lines: bytes) -> None:
        await self.inbox.put(chunk_of(lines, arrived_at=self.clock.monotonic()), self.clock)

    async def collect(self) -> None:
        while (batch := await self.batcher.next()) is not None:
            self.batches.append(batch)

    def waits(self) -> list[float]:
        return [batch.stamps.closed - chunk.arrived_at for batch in self.batches for chunk in batch.chunks]


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_one_record_and_then_silence_closes_after_max_wait() -> None:
    bench = Bench(max_wait=0.05)
    async with trio.open_nursery() as tasks:
        tasks.start_soon(bench.collect)
        await bench.put(b"alone")
        await trio.sleep(3600)
        bench.inbox.close("flush")
    assert bench.waits() == [pytest.approx(0.05)]
    assert bench.batches[0].trigger == "time"


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_steady_trickle_waits_no_longer_than_max_wait() -> None:
    bench = Bench(max_wait=0.05)
    async with trio.open_nursery() as tasks:
        tasks.start_soon(bench.collect)
        for number in range(500):
            await bench.put(b"%d" % number)
            await trio.sleep(0.01)
        bench.inbox.close("flush")
    assert max(bench.waits()) <= 0.05 + 1e-9
    assert {batch.trigger for batch in bench.batches[:-1]} == {"time"}
    assert lines_of([chunk for batch in bench.batches for chunk in batch.chunks]) == [b"%d" % n for n in range(500)]


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_full_batch_closes_at_once() -> None:
    bench = Bench(max_records=3, max_wait=3600)
    async with trio.open_nursery() as tasks:
        tasks.start_soon(bench.collect)
        await bench.put(b"a", b"b", b"c", b"d")
        await trio.sleep(1)
        assert [batch.count for batch in bench.batches] == [3]
        bench.inbox.close("flush")
    assert [(batch.count, batch.trigger) for batch in bench.batches] == [(3, "size"), (1, "flush")]
    assert bench.waits()[0] == 0


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_the_end_of_input_never_waits_the_window_out() -> None:
    for trigger in ("flush", "shutdown"):
        bench = Bench(max_wait=3600)
        started = trio.current_time()
        async with trio.open_nursery() as tasks:
            tasks.start_soon(bench.collect)
            await bench.put(b"a")
            await trio.sleep(1)
            bench.inbox.close(trigger)
        assert [(batch.count, batch.trigger) for batch in bench.batches] == [(1, trigger)]
        assert trio.current_time() - started == pytest.approx(1)


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_while_nobody_asks_a_due_window_goes_on_filling_up_to_its_limits() -> None:
    bench = Bench(max_records=5, max_wait=0.01)
    for number in range(7):
        await bench.put(b"%d" % number)
        await trio.sleep(0.02)
    first, second = await bench.batcher.next(), await bench.batcher.next()
    assert first is not None
    assert second is not None
    assert (first.count, first.trigger) == (5, "size")
    assert (second.count, second.trigger) == (2, "time")


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_record_that_does_not_fit_by_bytes_opens_the_next_batch() -> None:
    bench = Bench(max_bytes=10, max_wait=1)
    await bench.put(b"12345", b"1234567", b"x" * 30, b"y")
    bench.inbox.close("flush")
    await bench.collect()
    assert [(batch.count, batch.trigger) for batch in bench.batches] == [
        (1, "bytes"), (1, "bytes"), (1, "bytes"), (1, "flush"),
    ]  # fmt: skip


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_input_that_ends_empty_makes_no_batch() -> None:
    bench = Bench()
    bench.inbox.close("flush")
    await bench.collect()
    assert bench.batches == []


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_cancelled_while_it_waits_it_keeps_what_it_took() -> None:
    bench = Bench(max_wait=10)
    await bench.put(b"kept")
    with anyio.move_on_after(1):
        await bench.batcher.next()
    bench.inbox.close("shutdown")
    batch = await bench.batcher.next()
    assert batch is not None
    assert lines_of(batch.chunks) == [b"kept"]


@pytest.mark.anyio
async def test_real_time_closes_within_a_small_margin_of_max_wait() -> None:
    """The same on a real clock: the margin is for the machine, the bound from below is exact."""
    from streambatch.core.clock import SystemClock

    clock = SystemClock()
    inbox = Inbox(QueueLimits())
    batcher = Batcher(inbox, Window(BatchPolicy(max_wait=0.05)), clock)
    await inbox.put(chunk_of([b"x"], arrived_at=clock.monotonic()), clock)
    batch = await batcher.next()
    assert batch is not None
    assert batch.stamps.closed - batch.chunks[0].arrived_at >= 0.05
