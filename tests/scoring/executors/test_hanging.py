"""Calls that hang in a worker thread: others go on, the batch is tried again, and a late result counts nothing."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.core.errors import ModelError, RetryableError
from streambatch.core.types import FloatArray
from streambatch.scoring.executors.threads import ThreadExecutor
from tests.scoring.desk import Desk
from tests.scoring.fakes import Doubling, transform_of

pytestmark = pytest.mark.anyio


class Hanging:
    """Doubles; calls that see `number` hang until they are let go, the first `times` of them."""

    def __init__(self, number: float, times: int = 1 << 30) -> None:
        self.number, self.times = number, times
        self.let_go, self.calls = threading.Event(), Counter[float]()

    def score(self, x: FloatArray) -> FloatArray:
        self.calls.update(x[:, 0].tolist())
        if self.number in x[:, 0] and self.calls[self.number] <= self.times:
            assert self.let_go.wait(30)
            return np.full(len(x), -1.0)
        return 2 * x[:, 0]


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    model = Hanging(6.0)
    yield model
    model.let_go.set()
    for thread in threading.enumerate():
        if thread.name.startswith("streambatch-worker"):
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("count", [1, 3])
async def test_a_call_that_hangs_is_given_up_and_tried_again_in_a_new_thread(hanging: Hanging, count: int) -> None:
    hanging.times = 1
    desk = Desk(transform_of(hanging), count=count, timeout=0.25)
    await desk.run(20)
    assert [end for _, end in desk.ends()] == ["scored"] * 40
    assert b"-1" not in b"".join(outcome.payload for outcome in desk.outcomes())
    assert desk.executor.restarts == 1
    assert [outcome.retries for outcome in desk.outcomes()] == [int(sequence == 3) for sequence in range(20)]
    stamps = desk.batches[3].stamps
    assert 0.25 <= stamps.retry_seconds <= stamps.scored - stamps.preprocessed


async def test_others_are_scored_while_one_hangs(hanging: Hanging) -> None:
    desk = Desk(transform_of(hanging), count=2, timeout=3600)
    with anyio.fail_after(20), anyio.CancelScope() as scope:
        async with desk.executor:
            desk.submit(3)
            for sequence in range(10, 30):
                desk.submit(sequence)
                while sequence not in desk.results:
                    await desk.came_back.wait()
            scope.cancel()
    assert sorted(desk.results) == list(range(10, 30))


async def test_a_batch_that_always_times_out_dies_whole_and_is_not_halved(hanging: Hanging) -> None:
    desk = Desk(transform_of(hanging), size=4, count=4, timeout=0.25)
    await desk.run(10)
    assert {number for number, end in desk.ends() if end != "scored"} == {"4", "5", "6", "7"}
    assert {end for _, end in desk.ends()} == {"scored", "model m: timed out after 250 ms, 3 attempts"}
    assert [hanging.calls[number] for number in (4.0, 5.0, 6.0, 7.0)] == [3] * 4
    assert {reject.reason for reject in desk.outcome(1).rejects} == {"model_error"}
    assert (desk.executor.restarts, desk.outcome(1).retries) == (3, 2)


async def test_more_calls_that_hang_than_there_are_workers_end_the_run(hanging: Hanging) -> None:
    desk = Desk(transform_of(hanging), timeout=0.05)
    with anyio.fail_after(20):
        async with desk.executor:
            desk.submit(3)
            while not desk.results:
                await desk.came_back.wait()
    error = desk.results[3]
    assert isinstance(error, ModelError)
    assert str(error) == (
        "model m: 2 calls hang for longer than 50 ms; with [workers] count = 1 no more than 1 may; "
        "raise [workers] timeout if the model only needs longer"
    )
    assert desk.executor.restarts == 1


async def test_a_thread_that_comes_back_no_longer_counts() -> None:
    class Slow:
        """The first call for a batch hangs until the second comes."""

        def __init__(self) -> None:
            self.again = {batch: threading.Event() for batch in range(4)}
            self.calls: Counter[int] = Counter()

        def score(self, x: FloatArray) -> FloatArray:
            batch = int(x[0, 0]) // 2
            self.calls[batch] += 1
            if self.calls[batch] == 1:
                self.again[batch].wait(20)
            self.again[batch].set()
            return x[:, 0]

    desk = Desk(transform_of(Slow()), timeout=0.2)
    await desk.run(4)
    assert [end for _, end in desk.ends()] == ["scored"] * 8
    assert desk.executor.restarts == 4


async def test_halves_of_a_batch_go_on_after_one_of_them_hung(hanging: Hanging) -> None:
    class Both(Doubling):
        def score(self, x: FloatArray) -> FloatArray:
            hanging.score(x)
            return super().score(x)

    hanging.times = 2
    desk = Desk(transform_of(Both(7)), size=16, count=2, timeout=0.1)
    await desk.run(2)
    assert [(number, end) for number, end in desk.ends() if end != "scored"] == [("7", "model m: ValueError: poison")]
    assert len(desk.ends()) == 32


async def test_memory_moves_once_however_often_a_batch_is_tried(hanging: Hanging) -> None:
    class Counting:
        is_stateful = True

        def initial_state(self) -> int:
            return 0

        def __call__(self, state: int, x: FloatArray) -> tuple[int, FloatArray]:
            return state + len(x), x

    hanging.times = 2
    desk = Desk(transform_of(hanging, [Counting()]), count=3, timeout=0.1)
    await desk.run(12)
    assert [outcome.states for outcome in desk.outcomes()] == [(2 * sequence + 2,) for sequence in range(12)]


async def test_a_hard_stop_wakes_a_worker_that_waits_to_try_again() -> None:
    class Away:
        called = threading.Event()

        def score(self, x: FloatArray) -> FloatArray:
            self.called.set()
            raise RetryableError("away")

    # A wait of hours, which nothing but the stop ends.
    desk = Desk(transform_of(Away()), random=lambda: 1e6, attempts=100)
    before = set(threading.enumerate())
    with anyio.fail_after(20), anyio.CancelScope() as scope:
        async with desk.executor:
            (worker,) = set(threading.enumerate()) - before
            desk.submit(0)
            await anyio.to_thread.run_sync(Away.called.wait)
            scope.cancel()
    worker.join(10)
    assert not worker.is_alive()
    assert not desk.results


async def test_a_run_that_failed_waits_for_no_thread_that_hangs(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streambatch.scoring.executors.threads.LEAVE_SECONDS", 0.05)
    desk = Desk(transform_of(hanging), timeout=3600)
    with anyio.fail_after(20), pytest.raises(KeyError, match="elsewhere"):
        async with desk.executor:
            assert isinstance(desk.executor, ThreadExecutor)
            desk.submit(3)
            raise KeyError("elsewhere")


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), MemoryError()], ids=repr)
async def test_no_error_of_a_model_ends_a_worker(error: BaseException) -> None:
    class Raising:
        def score(self, x: FloatArray) -> FloatArray:
            if 3.0 in x[:, 0]:
                raise error
            return x[:, 0]

    desk = Desk(transform_of(Raising()))
    await desk.run(5)
    assert [number for number, end in desk.ends() if end != "scored"] == ["3"]
    assert desk.executor.restarts == 0


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()], ids=repr)
async def test_no_error_of_a_step_ends_a_worker(error: BaseException) -> None:
    def raising(x: FloatArray) -> FloatArray:
        if 3.0 in x[:, 0]:
            raise error
        return x

    desk = Desk(transform_of(Doubling(), [raising]))
    await desk.run(5)
    assert [number for number, end in desk.ends() if end != "scored"] == ["3"]
    assert type(error).__name__ in dict(desk.ends())["3"]


FAULTS = st.sampled_from(["ok", "ok", "ok", "away", "hangs", "poison"])


@settings(max_examples=30, deadline=None)
@given(script=st.lists(FAULTS, max_size=12), poison=st.sets(st.integers(0, 23), max_size=3), count=st.integers(1, 3))
def test_every_record_ends_once_whatever_calls_do(script: list[str], poison: set[int], count: int) -> None:
    """Faults come call by call, in whatever order threads make them; a hung call comes back once the next starts."""
    faults, turn, hung = iter(script), threading.Lock(), list[threading.Event]()

    class Model(Doubling):
        def score(self, x: FloatArray) -> FloatArray:
            with turn:
                fault = next(faults, "ok")
                while hung:
                    hung.pop().set()
                mine = threading.Event()
                if fault == "hangs":
                    hung.append(mine)
            if fault == "hangs":
                mine.wait(20)
            if fault == "away":
                raise RetryableError("away")
            if fault == "poison" and len(x) > 1:
                raise ValueError("too many")
            return super().score(x)

    async def scenario() -> Desk:
        desk = Desk(transform_of(Model(*map(float, poison))), size=4, count=count, timeout=0.03, attempts=2)
        await desk.run(6, first=0)
        return desk

    try:
        desk = anyio.run(scenario)
    finally:
        for event in hung:
            event.set()
    failed = [result for result in desk.results.values() if isinstance(result, Exception)]
    if not failed:
        ends = desk.ends()
        assert [number for number, _ in ends] == [str(number) for number in range(24)]
        assert poison <= {int(number) for number, end in ends if end != "scored"}
        assert len(ends) == sum(sum(o.scored.values()) + len(o.rejects) for o in desk.outcomes())
    assert all(isinstance(error, ModelError) for error in failed)


SCRIPT = """
import threading
import numpy as np
import streambatch as sb

class Hanging:
    def score(self, x):
        threading.Event().wait()

pipeline = sb.Pipeline(
    sources=[sb.MemorySource([b'{"id": 1, "x": [1]}\\n'])], record=sb.RecordSchema(id="id", features="x", shape=(1,)),
    model=Hanging(), sink=sb.MemorySink(), workers=sb.Workers(timeout=0.05),
)
import anyio
anyio.run(pipeline.run)
"""


def test_a_process_ends_though_threads_of_it_hang() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert "ModelError: model Hanging: 2 calls hang for longer than 50 ms" in done.stderr
