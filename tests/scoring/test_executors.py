"""Executors: every batch comes back once, whatever happens in it, and steps with memory see batches in order."""

import threading
from typing import Any

import anyio
import pytest

from streambatch.clock import SystemClock
from streambatch.records import Batch, FloatArray, Outcome
from streambatch.scoring.executors import Executor, TaskExecutor, ThreadExecutor, Workers, make_executor
from streambatch.scoring.transform import Transform
from tests.scoring.fakes import Doubling, batch_of, numbers, transform_of

pytestmark = pytest.mark.anyio


class Desk:
    """Submits batches as slots come free and collects what comes back."""

    def __init__(self, transform: Transform, **workers: Any) -> None:
        self.results: dict[int, Outcome | Exception] = {}
        self.order: list[int] = []
        self._held = 0
        self._freed = anyio.Event()
        now = SystemClock().monotonic
        self.executor: Executor = make_executor(Workers(**workers), transform, self._done, now)

    def _done(self, batch: Batch, result: Outcome | Exception) -> None:
        assert batch.sequence not in self.results
        self.results[batch.sequence] = result
        self.order.append(batch.sequence)
        self._held -= 1
        self._freed.set()
        self._freed = anyio.Event()

    async def run(self, batches: int) -> None:
        with anyio.fail_after(20):
            async with self.executor:
                for sequence in range(batches):
                    while self._held >= self.executor.capacity:
                        await self._freed.wait()
                    self._held += 1
                    self.executor.submit(batch_of(numbers(sequence, sequence + 1), sequence=sequence))
                while len(self.results) < batches:
                    await self._freed.wait()


EVERY = [{"executor": "inline"}, {"executor": "thread"}, {"executor": "thread", "count": 4}]


@pytest.mark.parametrize("workers", EVERY, ids=str)
async def test_every_batch_comes_back_once_with_its_scores_and_times(workers: dict[str, Any]) -> None:
    desk = Desk(transform_of(Doubling()), **workers)
    await desk.run(200)
    assert sorted(desk.order) == list(range(200))
    for sequence, outcome in desk.results.items():
        assert isinstance(outcome, Outcome)
        assert outcome.payload == b"%d=%d.0|%d\n%d=%d.0|%d\n" % (
            sequence, 2 * sequence, sequence, sequence + 1, 2 * sequence + 2, sequence + 1,
        )  # fmt: skip


@pytest.mark.parametrize("workers", EVERY, ids=str)
async def test_an_error_that_is_no_records_fault_comes_back_too(workers: dict[str, Any]) -> None:
    desk = Desk(transform_of(Doubling(*range(3))), **workers)
    await desk.run(10)
    assert isinstance(desk.results[0], Exception)
    assert all(isinstance(desk.results[sequence], Outcome) for sequence in range(1, 10))


async def test_workers_score_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=20)

    class Meeting:
        def score(self, x: FloatArray) -> FloatArray:
            meeting.wait()
            return x[:, 0]

    await Desk(transform_of(Meeting()), executor="thread", count=3).run(3)


async def test_steps_with_memory_see_batches_in_order_whatever_the_number_of_threads() -> None:
    class Running:
        is_stateful = True

        def initial_state(self) -> list[float]:
            return []

        def __call__(self, state: list[float], x: FloatArray) -> tuple[list[float], FloatArray]:
            return [*state, float(x[0, 0])], x + len(state)

    transform = transform_of(Doubling(), [Running()])
    await Desk(transform, executor="thread", count=4).run(100)
    assert transform._states == [[float(sequence) for sequence in range(100)]]


async def test_an_async_model_is_awaited_on_the_loop_up_to_count_at_once() -> None:
    running, most = 0, 0

    class Model:
        is_async = True

        async def score(self, x: FloatArray) -> FloatArray:
            nonlocal running, most
            running += 1
            most = max(most, running)
            assert threading.current_thread() is threading.main_thread()
            await anyio.sleep(0.001)
            running -= 1
            return 2 * x[:, 0]

    desk = Desk(transform_of(Model()), executor="thread", count=3)
    assert isinstance(desk.executor, TaskExecutor)
    await desk.run(30)
    assert most == 3


async def test_a_hard_stop_does_not_wait_for_a_model_that_hangs() -> None:
    hanging = threading.Event()

    class Hanging:
        def score(self, x: FloatArray) -> FloatArray:
            hanging.wait(20)
            return x[:, 0]

    desk = Desk(transform_of(Hanging()), executor="thread")
    assert isinstance(desk.executor, ThreadExecutor)
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with desk.executor:
            desk.executor.submit(batch_of(numbers(1)))
            scope.cancel()
    hanging.set()
