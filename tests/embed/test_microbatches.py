"""`microbatches` of what is iterated asynchronously: batches in order and in time, and nothing left behind."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any, assert_type

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.core.errors import ConfigError, OptionError
from streambatch.embed.items import CLOSE_SECONDS
from streambatch.embed.microbatches import microbatches
from streambatch.testing import LoopClock
from tests.leaks import tasks_alive

pytestmark = pytest.mark.anyio


class Numbers:
    """Numbers from 0, as fast as they are asked for or at intervals; tells how it was left."""

    def __init__(self, count: int, *, seconds: float | None = None) -> None:
        self.count, self.seconds = count, seconds
        self.given = 0
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[int]:
        try:
            for number in range(self.count):
                if self.seconds is not None:
                    await anyio.sleep(self.seconds)
                self.given += 1
                yield number
        finally:
            self.is_closed = True


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (4, [4]), (5, [4, 1]), (1000, [4] * 250)], ids=lambda value: str(value)[:12]
)
async def test_batches_hold_all_items_in_order(count: int, sizes: list[int]) -> None:
    async with microbatches(Numbers(count), max_records=4) as batches:
        got = [batch async for batch in batches]
    assert [len(batch) for batch in got] == sizes
    assert [number for batch in got for number in batch] == list(range(count))


@pytest.mark.virtual_time
async def test_one_item_and_then_silence_comes_after_max_wait() -> None:
    send, receive = anyio.create_memory_object_stream[str](1)
    async with send, receive, microbatches(receive, max_wait=0.05, clock=LoopClock()) as batches:
        for _ in range(3):
            await trio.sleep(1)
            await send.send("alone")
            started = trio.current_time()
            assert await anext(batches) == ["alone"]
            assert trio.current_time() - started == pytest.approx(0.05)


@pytest.mark.virtual_time
async def test_of_a_steady_trickle_none_waits_longer_than_max_wait() -> None:
    source = Numbers(500, seconds=0.01)
    began = trio.current_time()
    async with microbatches(source, max_wait=0.05, clock=LoopClock()) as batches:
        async for batch in batches:
            first_came = began + 0.01 * (batch[0] + 1)
            assert trio.current_time() - first_came <= 0.05 + 1e-9
            assert len(batch) in (5, 6) or batch[-1] == 499


@pytest.mark.virtual_time
async def test_neither_a_full_batch_nor_the_last_one_waits() -> None:
    began = trio.current_time()
    async with microbatches(Numbers(5), max_records=2, max_wait=3600, clock=LoopClock()) as batches:
        assert [len(batch) async for batch in batches] == [2, 2, 1]
    assert trio.current_time() == began


@pytest.mark.virtual_time
async def test_while_nobody_asks_a_due_batch_fills_and_then_nothing_more_is_read() -> None:
    source = Numbers(100, seconds=0.01)
    async with microbatches(source, max_records=8, max_wait=0.02, clock=LoopClock()) as batches:
        assert len(await anext(batches)) <= 3
        taken = source.given
        await trio.sleep(10)
        assert source.given == taken + 8
        assert len(await anext(batches)) == 8


async def test_an_error_of_the_source_comes_after_the_items_before_it() -> None:
    async def broken() -> AsyncIterator[int]:
        for number in range(5):
            yield number
        raise ValueError("torn")

    got = []
    with pytest.raises(ValueError, match="torn"):
        async with microbatches(broken(), max_records=2) as batches:
            while True:
                got.append(await anext(batches))
    assert got == [[0, 1], [2, 3], [4]]


async def test_an_error_that_nobody_came_to_is_not_raised() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ValueError("torn")

    async with microbatches(broken(), max_records=1) as batches:
        assert await anext(batches) == [1]
        await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize("seconds", [None, 0])
async def test_left_by_break_it_leaks_no_task_and_closes_its_generator(seconds: float | None) -> None:
    source = Numbers(10**9, seconds=seconds)
    before = tasks_alive()
    async with microbatches(source, max_records=7) as batches:
        async for batch in batches:
            if batch[-1] > 30:
                break
    assert tasks_alive() == before
    assert source.is_closed


@pytest.mark.parametrize("seconds", [None, 0])
async def test_left_by_an_exception_it_leaks_nothing_and_the_exception_is_as_it_was(seconds: float | None) -> None:
    source = Numbers(10**9, seconds=seconds)
    before = tasks_alive()
    error = LookupError("the body's own")
    with pytest.raises(LookupError) as raised:
        async with microbatches(source, max_records=7) as batches:
            async for _ in batches:
                raise error
    assert raised.value is error
    assert tasks_alive() == before
    assert source.is_closed


@pytest.mark.parametrize("seconds", [None, 0, 3600])
async def test_cancelled_it_leaks_nothing_and_the_cancellation_goes_on(seconds: float | None) -> None:
    source = Numbers(10**9, seconds=seconds)
    before = tasks_alive()

    async def iterate() -> None:
        async with microbatches(source, max_records=7) as batches:
            async for _ in batches:
                await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(iterate)
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert tasks.cancel_scope.cancelled_caught
    assert tasks_alive() == before
    assert source.is_closed


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_own_timeout_ends_it_too() -> None:
    source = Numbers(10**9, seconds=0)
    before = tasks_alive()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001), microbatches(source, max_records=7) as batches:
            async for _ in batches:
                pass
    assert tasks_alive() == before
    assert source.is_closed


async def test_a_source_that_was_not_yet_begun_is_left_as_well() -> None:
    source = Numbers(10)
    before = tasks_alive()
    async with microbatches(source):
        pass
    assert tasks_alive() == before
    assert source.given == 0


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_whenever_it_is_left_nothing_stays_and_nothing_was_lost_before(seed: int) -> None:
    chance = random.Random(seed)
    got: list[int] = []
    source = Numbers(60, seconds=chance.choice([None, 0, 0.01]))

    async def main() -> None:
        before = tasks_alive()
        with trio.move_on_after(chance.choice([0, 0.01, 0.1, 0.3, 10])):
            async with microbatches(
                source, max_records=chance.randint(1, 9), max_wait=chance.choice([0, 0.02]), clock=LoopClock()
            ) as batches:
                while True:
                    with trio.move_on_after(chance.choice([0, 0.01, 1])):
                        try:
                            got.extend(await anext(batches))
                        except StopAsyncIteration:
                            break
                    await trio.sleep(chance.choice([0, 0.01]))
        assert tasks_alive() == before

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert got == list(range(len(got)))
    assert source.is_closed or source.given == 0
    assert len(got) <= source.given <= len(got) + 9


async def test_what_a_generator_raises_when_it_is_closed_is_raised() -> None:
    async def careless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            raise OSError("could not be closed")

    with pytest.raises(OSError, match="could not be closed"):
        async with microbatches(careless(), max_records=1) as batches:
            await anext(batches)


@pytest.mark.virtual_time
async def test_a_generator_has_only_so_long_to_clean_up() -> None:
    async def slow() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            await trio.sleep(3600)

    began = trio.current_time()
    async with microbatches(slow(), max_records=1, clock=LoopClock()) as batches:
        await anext(batches)
    assert trio.current_time() - began == pytest.approx(CLOSE_SECONDS)


async def test_a_stream_that_somebody_else_opened_stays_open() -> None:
    send, receive = anyio.create_memory_object_stream[int](9)
    async with send, receive:
        for number in range(4):
            send.send_nowait(number)
        async with microbatches(receive, max_records=2) as batches:
            assert await anext(batches) == [0, 1]
        send.send_nowait(4)
        assert receive.receive_nowait() in (2, 3, 4)


async def test_several_tasks_may_share_the_batches() -> None:
    got: list[int] = []

    async def work() -> None:
        async for batch in batches:
            await anyio.lowlevel.checkpoint()
            got.extend(batch)

    with anyio.fail_after(5):
        async with microbatches(Numbers(1000, seconds=0), max_records=3) as batches:
            async with anyio.create_task_group() as workers:
                for _ in range(3):
                    workers.start_soon(work)
    assert sorted(got) == list(range(1000))


async def test_who_still_waits_when_it_is_left_is_told_so() -> None:
    async def wait() -> None:
        with pytest.raises(RuntimeError, match="to be iterated inside its `async with`"):
            await anext(batches)

    send, receive = anyio.create_memory_object_stream[int](1)
    with anyio.fail_after(5):
        async with send, receive, anyio.create_task_group() as tasks, microbatches(receive) as batches:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()


async def test_it_is_entered_once_and_iterated_inside() -> None:
    batches = microbatches(Numbers(9), max_records=2)
    with pytest.raises(RuntimeError, match="to be iterated inside its `async with`"):
        await anext(batches)
    async with batches:
        assert_type(await anext(batches), list[int])
        with pytest.raises(RuntimeError, match="entered twice"):
            await batches.__aenter__()
        await anyio.wait_all_tasks_blocked()
    with pytest.raises(RuntimeError, match="to be iterated inside its `async with`"):
        await anext(batches)


def test_what_makes_no_sense_is_refused_at_once() -> None:
    unreadable: Any = [1, 2, 3]
    with pytest.raises(TypeError, match="expected a source or what `async for` takes, found list"):
        microbatches(unreadable)
    with pytest.raises(ConfigError, match="max_records: found 0; allowed: at least 1"):
        microbatches(Numbers(1), max_records=0)
    wrong: Any = {"max_bytes": 10}
    with pytest.raises(OptionError, match="max_bytes: found 10; allowed: nothing, for what is no source"):
        microbatches(Numbers(1), **wrong)
