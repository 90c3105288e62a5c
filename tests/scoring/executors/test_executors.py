"""Executors: every batch comes back once, whatever happens in it, and steps with memory see batches in order."""

import threading
from typing import Any

import anyio
import pytest

from streambatch.core.errors import ConfigError
from streambatch.core.outcomes import Outcome
from streambatch.core.types import FloatArray
from streambatch.scoring.executors.choice import Workers
from streambatch.scoring.executors.tasks import TaskExecutor
from streambatch.scoring.executors.threads import ThreadExecutor
from tests.scoring.desk import Desk
from tests.scoring.fakes import Doubling, batch_of, numbers, transform_of

pytestmark = pytest.mark.anyio


STAGES = ("closed", "started", "decoded", "validated", "preprocessed", "scored", "encoded")
EVERY = [{"executor": "inline"}, {"executor": "thread"}, {"executor": "thread", "count": 4}]


@pytest.mark.parametrize("workers", EVERY, ids=str)
async def test_every_batch_comes_back_once_with_its_scores_and_times(workers: dict[str, Any]) -> None:
    desk = Desk(transform_of(Doubling()), **workers)
    await desk.run(200)
    assert sorted(desk.order) == list(range(200))
    payload = b"".join(outcome.payload for outcome in desk.outcomes())
    assert payload == b"".join(b"%d=%d.0|%d\n" % (number, 2 * number, number) for number in range(400))
    for batch in desk.batches.values():
        times = [getattr(batch.stamps, name) for name in STAGES]
        assert times == sorted(times)
        assert batch.stamps.retry_seconds == 0.0


@pytest.mark.parametrize("workers", EVERY, ids=str)
async def test_an_error_that_is_no_records_fault_comes_back_too(workers: dict[str, Any]) -> None:
    desk = Desk(transform_of(Doubling(*range(2))), **workers)
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
    desk = Desk(transform, executor="thread", count=4)
    await desk.run(100)
    assert desk.outcome(99).states == ([2.0 * sequence for sequence in range(100)],)


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


def test_a_time_limit_is_refused_where_nothing_could_end_the_call() -> None:
    async def score(x: FloatArray) -> FloatArray:
        return x[:, 0]

    with pytest.raises(ConfigError) as caught:
        Desk(transform_of(Doubling()), executor="inline", timeout="5s")
    assert str(caught.value) == (
        'workers.timeout: found 5 s with executor = "inline" and a model that is not async; '
        'allowed: none, or executor = "thread"'
    )
    model = type("Model", (), {"is_async": True, "score": staticmethod(score)})()
    Desk(transform_of(model), executor="inline", timeout="5s")
    assert Workers().timeout == 30.0
    assert Workers(executor="inline").timeout is None


@pytest.mark.parametrize("options", [{"timeout": 0}, {"attempts": 0}, {"attempts": 1.5}], ids=str)
def test_impossible_limits_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(options))}: found"):
        Workers(**options)
