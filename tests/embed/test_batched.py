"""`batched`: right answers to the right callers, errors to those they belong to, full and due batches, bounds."""

import asyncio
import contextvars
import copy
import functools
import gc
import sys
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable, Collection
from typing import Any, assert_type

import anyio
import numpy as np
import numpy.typing as npt
import pytest
import trio
import trio.lowlevel

from streambatch.core.errors import ConfigError, ShapeError
from streambatch.embed.batched import FullError, batched

pytestmark = pytest.mark.anyio
BAD = 13
OUTAGE = 99


class BadRowError(ValueError):
    """What a bad row is refused with; unlike ValueError it can be referred to weakly."""


class Model:
    """Doubles rows and remembers what it was asked; raises for a bad row, and for an outage as its network would."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    async def score(self, rows: list[int]) -> list[float]:
        self.calls.append(rows)
        await anyio.lowlevel.checkpoint()
        if OUTAGE in rows:
            raise ConnectionRefusedError("the model's server is down")
        if bad := [row for row in rows if row % 100 == BAD]:
            raise BadRowError(f"can't score {bad}")
        return [2.0 * row for row in rows]


async def ask(function: Callable[[int], Awaitable[object]], rows: Collection[int]) -> dict[int, Any]:
    """Call the function for all rows at once; return each caller's score or error."""
    answers: dict[int, Any] = {}

    async def call(row: int) -> None:
        try:
            answers[row] = await function(row)
        except Exception as error:
            answers[row] = error

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for row in rows:
                tasks.start_soon(call, row)
    return answers


async def test_a_thousand_callers_get_their_own_scores_from_full_batches() -> None:
    model = Model()
    predict = batched(max_records=64, max_wait=0.005)(model.score)
    rows = [1000 * row for row in range(1000)]
    assert await ask(predict, rows) == {row: 2.0 * row for row in rows}
    assert [len(call) for call in model.calls] == [64] * 15 + [40]


async def test_errors_of_a_thousand_callers_reach_only_those_they_belong_to() -> None:
    model = Model()
    answers = await ask(batched(max_records=64)(model.score), range(1000, 2000))
    wrong = {row: str(answer) for row, answer in answers.items() if answer != 2.0 * row}
    assert wrong == {row: f"can't score [{row}]" for row in range(1000, 2000) if row % 100 == BAD}


async def test_one_guilty_row_costs_few_further_calls() -> None:
    model = Model()
    rows = [*range(14, 77), BAD]
    answers = await ask(batched(max_records=64, max_wait=3600)(model.score), rows)
    assert isinstance(answers.pop(BAD), ValueError)
    assert answers == {row: 2.0 * row for row in rows[:-1]}
    assert len(model.calls) - 1 <= 2 * 6 + 1


async def test_an_outage_is_no_rows_fault_and_is_told_to_all_at_once() -> None:
    model = Model()
    answers = await ask(batched(max_records=4, max_wait=3600)(model.score), [1, 2, 3, OUTAGE])
    assert {type(answer) for answer in answers.values()} == {ConnectionRefusedError}
    assert len(model.calls) == 1


async def test_without_isolation_an_error_is_every_callers_and_the_next_batch_is_fine() -> None:
    model = Model()
    predict = batched(max_records=4, max_wait=3600, isolate_errors=False)(model.score)
    answers = await ask(predict, [1, 2, 3, BAD])
    assert {str(answer) for answer in answers.values()} == {"can't score [13]"}
    assert await ask(predict, [4, 5, 6, 7]) == {4: 8.0, 5: 10.0, 6: 12.0, 7: 14.0}
    assert len(model.calls) == 2


async def test_an_exception_in_a_rows_place_is_raised_at_its_caller() -> None:
    @batched(max_records=3, max_wait=3600)
    async def invert(rows: list[int]) -> list[float | ZeroDivisionError]:
        return [1 / row if row else ZeroDivisionError("row 0") for row in rows]

    answers = await ask(invert, [1, 0, 4])
    assert str(answers.pop(0)) == "row 0"
    assert answers == {1: 1.0, 4: 0.25}


@pytest.mark.parametrize(
    ("results", "error", "message"),
    [
        ([1.0, 2.0], ShapeError, r"answer: expected shape \(3,\), found \(2,\)"),
        ([1.0] * 4, ShapeError, r"answer: expected shape \(3,\), found \(4,\)"),
        (np.zeros((2, 3)), ShapeError, r"answer: expected shape \(3,\), found \(2, 3\)"),
        (np.array(1.0), ShapeError, r"answer: expected shape \(3,\), found \(\)"),
        ({1: 1.0, 2: 2.0, 3: 3.0}, TypeError, "answer: expected a list of 3 scores, found dict"),
        ("abc", TypeError, "answer: expected a list of 3 scores, found str"),
        (None, TypeError, "answer: expected a list of 3 scores, found NoneType"),
    ],
)
async def test_a_wrong_number_of_scores_is_told_with_both_counts(results: Any, error: type, message: str) -> None:
    calls = []

    async def answer(rows: list[int]) -> Any:
        calls.append(rows)
        return results

    answer.__qualname__ = "answer"
    answers = await ask(batched(max_records=3, max_wait=3600)(answer), [1, 2, 3])
    for found in answers.values():
        with pytest.raises(error, match=message):
            raise found
    assert len(answers) == 3
    assert len(calls) == 1


async def test_scores_may_be_rows_of_an_array() -> None:
    @batched(max_records=2, max_wait=3600)
    async def both(rows: list[int]) -> npt.NDArray[np.float64]:
        return np.array([[row, -row] for row in rows], float)

    answers = await ask(both, [1, 2])
    assert {row: list(score) for row, score in answers.items()} == {1: [1, -1], 2: [2, -2]}


@pytest.mark.virtual_time
async def test_one_row_and_then_silence_is_answered_after_max_wait() -> None:
    predict = batched(max_records=64, max_wait=0.005)(Model().score)
    for _ in range(3):
        started = trio.current_time()
        assert await predict(7) == 14.0
        assert trio.current_time() - started == pytest.approx(0.005)
        await trio.sleep(1)


@pytest.mark.virtual_time
async def test_a_steady_trickle_waits_no_longer_than_max_wait() -> None:
    model = Model()
    predict = batched(max_records=1000, max_wait=0.05)(model.score)
    waits: list[float] = []

    async def call(row: int) -> None:
        started = trio.current_time()
        await predict(1000 * row)
        waits.append(trio.current_time() - started)

    async with trio.open_nursery() as callers:
        for row in range(300):
            callers.start_soon(call, row)
            await trio.sleep(0.01)
    assert len(waits) == 300
    assert max(waits) <= 0.05 + 1e-9
    assert {len(call) for call in model.calls[:-1]} <= {5, 6}


@pytest.mark.virtual_time
async def test_a_full_batch_does_not_wait() -> None:
    model = Model()
    started = trio.current_time()
    await ask(batched(max_records=5, max_wait=10)(model.score), range(5))
    assert trio.current_time() == started


@pytest.mark.virtual_time
@pytest.mark.parametrize("concurrency", [1, 2])
async def test_while_as_many_calls_run_as_may_the_next_batch_fills(concurrency: int) -> None:
    sizes: list[tuple[float, int]] = []

    @batched(max_records=8, max_wait=0.01, concurrency=concurrency)
    async def slow(rows: list[int]) -> list[int]:
        sizes.append((round(trio.current_time() - started, 3), len(rows)))
        await trio.sleep(1)
        return rows

    started = trio.current_time()
    async with trio.open_nursery() as callers:
        for row in range(12):
            callers.start_soon(slow, row)
            await trio.sleep(0.1)
    if concurrency == 1:
        assert sizes == [(0.01, 1), (1.01, 8), (2.01, 3)]
    else:
        assert sizes == [(0.01, 1), (0.11, 1), (1.01, 8), (1.11, 2)]


@pytest.mark.virtual_time
async def test_the_window_opened_when_its_first_row_came_also_during_a_call() -> None:
    started: list[float] = []

    @batched(max_records=8, max_wait=0.5)
    async def slow(rows: list[int]) -> list[int]:
        started.append(trio.current_time() - began)
        await trio.sleep(1)
        return rows

    began = trio.current_time()
    async with trio.open_nursery() as callers:
        for row, pause in enumerate((0.7, 0.4, 0.3, 0.0)):
            callers.start_soon(slow, row)
            await trio.sleep(pause)
    # At 0.5 the first batch; at 1.5, when it is done, the next has been due since 1.2.
    assert started == pytest.approx([0.5, 1.5])
    started.clear()
    began = trio.current_time()
    async with trio.open_nursery() as callers:
        for row, pause in enumerate((1.2, 0.2, 0.0)):
            callers.start_soon(slow, row)
            await trio.sleep(pause)
    assert started == pytest.approx([0.5, 1.7])


@pytest.mark.virtual_time
async def test_calls_that_may_run_at_once_do_so_from_the_start() -> None:
    running: list[int] = []

    @batched(max_records=4, max_wait=10, concurrency=3)
    async def slow(rows: list[int]) -> list[int]:
        running.append(len(rows))
        await trio.sleep(1)
        return rows

    started = trio.current_time()
    await ask(slow, range(12))
    assert running == [4, 4, 4]
    assert trio.current_time() - started == pytest.approx(1)


async def test_one_caller_more_than_may_wait_is_refused_and_the_others_are_not() -> None:
    calls = anyio.Event()
    go_on = anyio.Event()

    @batched(max_records=2, max_wait=0, max_pending=3)
    async def held(rows: list[int]) -> list[int]:
        calls.set()
        await go_on.wait()
        return rows

    answers: list[int] = []

    async def call(row: int) -> None:
        answers.append(await held(row))

    async with anyio.create_task_group() as tasks:
        for row in range(3):
            tasks.start_soon(call, row)
        await calls.wait()
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(FullError, match=r"held: found 3 callers waiting; allowed: max_pending=3"):
            await held(3)
        go_on.set()
    assert sorted(answers) == [0, 1, 2]
    assert await held(4) == 4


async def test_each_object_has_its_own_batches_and_is_not_kept() -> None:
    class Server:
        __slots__ = ("__weakref__", "calls", "factor")
        __hash__ = None  # type: ignore[assignment]  # how Python marks what has no hash

        def __init__(self, factor: int) -> None:
            self.factor = factor
            self.calls: list[list[int]] = []

        @batched(max_records=2, max_wait=3600)
        async def score(self, rows: list[int]) -> list[int]:
            """Multiply."""
            self.calls.append(sorted(rows))
            return [self.factor * row for row in rows]

        @staticmethod
        @batched(max_records=2, max_wait=3600)
        async def negate(rows: list[int]) -> list[int]:
            return [-row for row in rows]

    servers = [Server(1), Server(10)]
    servers.append(copy.copy(servers[1]))
    servers[2].calls = []
    async with anyio.create_task_group() as tasks:
        for row in (1, 2):
            for server in servers:
                tasks.start_soon(server.score, row)
    assert [server.calls for server in servers] == [[[1, 2]]] * 3
    assert await ask(servers[1].score, [3, 4]) == {3: 30, 4: 40}
    assert await ask(Server.negate, [3, 4]) == {3: -3, 4: -4}
    assert Server.score.__doc__ == "Multiply."
    gone = [weakref.ref(server) for server in servers]
    server = servers.pop()
    del server
    servers.clear()
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


def test_event_loops_in_several_threads_share_a_function_and_nothing_else() -> None:
    model = Model()
    predict = batched(max_records=8, max_wait=0.001)(model.score)
    answers: dict[str, dict[int, object]] = {}

    def run(name: str, backend: str) -> None:
        for _ in range(5):
            answers[name] = anyio.run(ask, predict, range(1000, 1010), backend=backend)

    threads = [
        threading.Thread(target=run, args=(f"{backend}{number}", backend), daemon=True)
        for backend in ("asyncio", "trio")
        for number in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert list(answers.values()) == [{row: 2.0 * row for row in range(1000, 1010)}] * 4


def test_nothing_of_an_event_loop_is_kept_that_has_ended() -> None:
    class Row:
        pass

    kept: list[weakref.ref[object]] = []

    @batched(max_records=4, max_wait=0)
    async def same(rows: list[Row]) -> list[Row]:
        return rows

    async def main() -> None:
        for _ in range(10):
            row = Row()
            kept.append(weakref.ref(row))
            assert await same(row) is row
        kept.append(weakref.ref(asyncio.get_running_loop()))

    asyncio.run(main())
    gc.collect()
    assert [ref() for ref in kept] == [None] * 11


def test_trio_as_a_guest_of_asyncio_is_told_from_its_host() -> None:
    predict = batched(max_records=4, max_wait=0.001)(Model().score)

    async def host() -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            ask,
            predict,
            range(1000, 1009),
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=ended.set_result,
        )
        assert await ask(predict, range(2000, 2009)) == {row: 2.0 * row for row in range(2000, 2009)}
        assert (await ended).unwrap() == {row: 2.0 * row for row in range(1000, 1009)}

    asyncio.run(host())


def test_outside_of_an_event_loop_there_is_an_error() -> None:
    predict = batched()(Model().score)
    with pytest.raises(RuntimeError):
        predict(1).send(None)


async def test_the_function_runs_in_the_context_of_the_caller_that_came_first() -> None:
    request: contextvars.ContextVar[int] = contextvars.ContextVar("request")
    seen: list[tuple[int, list[int]]] = []

    @batched(max_records=2, max_wait=3600)
    async def tell(rows: list[int]) -> list[int]:
        seen.append((request.get(), rows))
        return rows

    async def call(row: int) -> None:
        request.set(row)
        await tell(row)

    async with anyio.create_task_group() as tasks:
        for row in range(6):
            tasks.start_soon(call, row)
    assert len(seen) == 3
    assert all(first == rows[0] for first, rows in seen)


async def test_an_error_of_many_callers_holds_neither_their_frames_nor_itself() -> None:
    predict = batched(max_records=8, max_wait=3600, isolate_errors=False)(Model().score)
    gc.collect()
    gc.disable()
    try:
        answers = await ask(predict, [BAD, *range(7)])
        depths = {len(traceback.extract_tb(answer.__traceback__)) for answer in answers.values()}
        assert max(depths) <= 8
        error = weakref.ref(answers[BAD])
        answers.clear()
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        assert error() is None
    finally:
        gc.enable()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has no eager tasks yet")
def test_eager_tasks_are_no_different() -> None:
    model = Model()
    predict = batched(max_records=4, max_wait=0.001)(model.score)

    async def main() -> None:
        # Checked against the oldest Python, which lacks it.
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        assert await ask(predict, range(1000, 1010)) == {row: 2.0 * row for row in range(1000, 1010)}

    asyncio.run(main())


def test_what_is_not_async_or_makes_no_sense_is_refused_at_once() -> None:
    def score(rows: list[int]) -> list[int]:
        return rows

    with pytest.raises(TypeError, match=r"score is no `async def`; blocking work belongs in a thread"):
        batched()(score)  # type: ignore[arg-type]  # that is the mistake
    with pytest.raises(ConfigError, match="max_records: found 0; allowed: at least 1"):
        batched(max_records=0)
    with pytest.raises(ConfigError, match="max_pending: found 10; allowed: at least max_records, which is 64"):
        batched(max_pending=10)


async def test_partials_and_callable_objects_are_functions_too() -> None:
    class Doubler:
        async def __call__(self, rows: list[int]) -> list[int]:
            return [2 * row for row in rows]

    async def times(factor: int, rows: list[int]) -> list[int]:
        return [factor * row for row in rows]

    assert await batched(max_wait=0)(Doubler())(4) == 8
    assert await batched(max_wait=0)(functools.partial(times, 3))(4) == 12


async def test_type_checkers_know_what_is_awaited() -> None:
    @batched(max_wait=0)
    async def predict(rows: list[int]) -> list[float | Exception]:
        return [float(row) for row in rows]

    class Server:
        @batched(max_wait=0)
        async def predict(self, rows: list[str]) -> list[bytes]:
            return [row.encode() for row in rows]

    assert_type(await predict(1), float)
    assert_type(await Server().predict("a"), bytes)
