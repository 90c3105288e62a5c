"""`batched` and callers that go away: whoever stays is answered, and nothing runs on that nobody waits for."""

import asyncio
import gc
import random
from math import inf

import anyio
import pytest
import trio
import trio.lowlevel
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.embed.batched import Batched, FullError, InterruptedCallError, batched
from tests.blocking import all_blocked
from tests.leaks import tasks_alive

pytestmark = pytest.mark.anyio


class HeldModel:
    """A function whose calls wait until they are let go."""

    def __init__(self, *, max_records: int = 4, max_wait: float = 3600, max_pending: int = 64) -> None:
        self.started, self.go_on = anyio.Event(), anyio.Event()
        self.calls: list[list[int]] = []
        self.cleaned_up = 0
        policy = batched(max_records=max_records, max_wait=max_wait, max_pending=max_pending)
        self.predict: Batched[int, int] = policy(self.score)

    async def score(self, rows: list[int]) -> list[int]:
        self.calls.append(rows)
        self.started.set()
        try:
            await self.go_on.wait()
        finally:
            # As asyncio's own libraries do: what is awaited here is not cancelled once more.
            with anyio.CancelScope(shield=True):
                for _ in range(9):
                    await anyio.lowlevel.checkpoint()
            self.cleaned_up += 1
        return [2 * row for row in rows]


@pytest.mark.parametrize("leaver", [0, 1, 3])
async def test_a_caller_cancelled_during_its_call_goes_at_once_and_the_others_are_answered(leaver: int) -> None:
    model = HeldModel()
    answers: dict[int, int] = {}
    scopes = [anyio.CancelScope() for _ in range(4)]
    left = anyio.Event()

    async def call(row: int) -> None:
        with scopes[row]:
            answers[row] = await model.predict(row)
        if row == leaver:
            left.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for row in range(4):
                tasks.start_soon(call, row)
            await model.started.wait()
            scopes[leaver].cancel()
            await left.wait()
            model.go_on.set()
    assert answers == {row: 2 * row for row in range(4) if row != leaver}
    assert len(model.calls) == 1


@pytest.mark.parametrize("leaver", [0, 1])
async def test_a_caller_cancelled_while_the_window_is_open_takes_its_row_along(leaver: int) -> None:
    model = HeldModel(max_records=3)
    model.go_on.set()
    answers: dict[int, int] = {}
    scopes = [anyio.CancelScope() for _ in range(4)]

    async def call(row: int) -> None:
        with scopes[row]:
            answers[row] = await model.predict(row)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for row in range(2):
                tasks.start_soon(call, row)
            await all_blocked()
            scopes[leaver].cancel()
            await all_blocked()
            for row in range(2, 4):
                tasks.start_soon(call, row)
    assert answers == {row: 2 * row for row in (1 - leaver, 2, 3)}
    assert [set(rows) for rows in model.calls] == [{1 - leaver, 2, 3}]


@pytest.mark.parametrize("max_wait", [0, 3600])
async def test_when_all_callers_have_gone_so_has_their_call_and_its_task(max_wait: float) -> None:
    model = HeldModel(max_wait=max_wait)
    before = tasks_alive()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for row in range(3):
                tasks.start_soon(model.predict, row)
            await all_blocked()
            assert len(model.calls) == (max_wait == 0)
            tasks.cancel_scope.cancel()
        assert tasks_alive() == before
        assert model.cleaned_up == len(model.calls)
        model.go_on.set()
        model.calls.clear()
        async with anyio.create_task_group() as tasks:
            for row in range(4):
                tasks.start_soon(model.predict, row)
    assert len(model.calls[0]) >= 1


async def test_a_caller_that_was_cancelled_is_told_of_no_error_of_the_call() -> None:
    """It may be another row's: the last one to leave speaks for nobody else."""
    started = anyio.Event()

    @batched(max_wait=0)
    async def fail(rows: list[int]) -> list[int]:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("the other row was bad")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail, 1)
            tasks.start_soon(fail, 2)
            await started.wait()
            tasks.cancel_scope.cancel()


async def test_a_call_that_is_cancelled_from_inside_is_an_error_and_no_cancellation() -> None:
    @batched(max_records=2, max_wait=0)
    async def interrupted(rows: list[int]) -> list[int]:
        raise asyncio.CancelledError if is_asyncio else trio.Cancelled._create(source="unknown")

    is_asyncio = _is_asyncio()
    with pytest.raises(InterruptedCallError, match="interrupted: the call was cancelled, and not by its callers"):
        await interrupted(1)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nor_is_one_that_the_function_returns_for_a_row() -> None:
    @batched(max_wait=0)
    async def gather(rows: list[int]) -> list[object]:
        async def cancelled() -> None:
            raise asyncio.CancelledError

        return list(await asyncio.gather(*(cancelled() for _ in rows), return_exceptions=True))

    with pytest.raises(InterruptedCallError, match="gather: the call was cancelled, and not by its callers"):
        await gather(1)


def _is_asyncio() -> bool:
    try:
        return asyncio.get_running_loop() is not None
    except RuntimeError:
        return False


async def test_system_exit_reaches_the_callers() -> None:
    @batched(max_wait=0)
    async def leave(rows: list[int]) -> list[int]:
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        await leave(1)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_whoever_stays_is_answered_whenever_others_go(seed: int) -> None:
    """Virtual time: callers, calls and cancellations at moments that fall together or between one another."""
    chance = random.Random(seed)
    max_records, concurrency = chance.randint(1, 6), chance.randint(1, 3)
    running = 0
    answers: dict[int, object] = {}
    staying = set()

    async def score(rows: list[int]) -> list[int | Exception]:
        nonlocal running
        running += 1
        try:
            assert running <= concurrency
            assert 0 < len(rows) <= max_records
            await trio.sleep(chance.choice([0, 0.01, 0.02, 0.05]))
            if chance.random() < 0.3:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.01)
            if any(row % 7 == 3 for row in rows):
                raise ValueError(str([row for row in rows if row % 7 == 3]))
            return [KeyError(row) if row % 7 == 5 else 2 * row for row in rows]
        finally:
            running -= 1

    predict = batched(
        max_records=max_records, max_wait=chance.choice([0, 0.01, 0.03]), max_pending=64, concurrency=concurrency
    )(score)

    async def call(row: int) -> None:
        await trio.sleep(chance.randint(0, 10) / 100)
        patience = chance.choice([inf, inf, 0, 0.01, 0.02, 0.03, 0.05])
        with trio.move_on_after(patience):
            try:
                answers[row] = await predict(row)
            except (ValueError, KeyError) as error:
                answers[row] = error
        if patience == inf:
            staying.add(row)

    async def main() -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        with trio.fail_after(100):
            async with trio.open_nursery() as callers:
                for row in range(40):
                    callers.start_soon(call, row)
        assert trio.lowlevel.current_statistics().tasks_living == before

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert staying <= answers.keys()
    for row, answer in answers.items():
        if row % 7 == 3:
            assert isinstance(answer, ValueError)
            assert str(answer) == f"[{row}]"
        elif row % 7 == 5:
            assert isinstance(answer, KeyError)
            assert answer.args == (row,)
        else:
            assert answer == 2 * row


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 32))
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nor_does_it_matter_in_which_turn_of_the_event_loop_they_go(backend: str, seed: int) -> None:
    chance = random.Random(seed)
    answers: dict[int, int] = {}
    leavers = set(chance.sample(range(20), chance.choice([5, 10, 19])))

    async def turns(count: int) -> None:
        for _ in range(count):
            await anyio.lowlevel.checkpoint()

    @batched(max_records=chance.randint(1, 3), max_wait=chance.choice([0, 0.001]), max_pending=20)
    async def score(rows: list[int]) -> list[int]:
        await turns(chance.randint(0, 2))
        return [2 * row for row in rows]

    async def call(row: int, patience: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_after, patience, tasks.cancel_scope)
            answers[row] = await score(row)
            tasks.cancel_scope.cancel()

    async def cancel_after(patience: int, scope: anyio.CancelScope) -> None:
        if patience >= 0:
            await turns(patience)
            scope.cancel()

    async def main() -> None:
        before = tasks_alive()
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for row in range(20):
                    tasks.start_soon(call, row, chance.randint(0, 4) if row in leavers else -1)
                    await turns(chance.choice([0, 0, 1]))
        assert tasks_alive() == before

    anyio.run(main, backend=backend)
    assert set(range(20)) - leavers <= answers.keys()
    assert all(answer == 2 * row for row, answer in answers.items())


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_asyncios_own_cancellation_harms_nobody_else_either(seed: int) -> None:
    """Every moment is so many turns of the event loop after another; some callers are cancelled twice."""
    chance = random.Random(seed)
    max_records = chance.randint(1, 6)

    async def turns(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def score(rows: list[int]) -> list[int]:
        try:
            await turns(chance.randint(0, 6))
        finally:
            await turns(chance.randint(0, 2))
        return [2 * row for row in rows]

    predict = batched(max_records=max_records, max_wait=0, concurrency=chance.randint(1, 2))(score)

    async def call(row: int) -> int:
        await turns(chance.randint(0, 20))
        return await predict(row)

    async def main() -> None:
        tasks = [asyncio.create_task(call(row)) for row in range(30)]
        leavers = set(chance.sample(range(30), chance.choice([3, 15, 29])))
        for row in sorted(leavers, key=lambda _: chance.random()):
            await turns(chance.randint(0, 2))
            for _ in range(chance.randint(1, 2)):
                tasks[row].cancel()
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        for row, answer in enumerate(answers):
            assert answer == 2 * row or (row in leavers and isinstance(answer, asyncio.CancelledError))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_timeout_of_the_first_caller_is_kept_while_its_call_runs() -> None:
    model = HeldModel(max_records=2)

    async def hasty() -> None:
        async with asyncio.timeout(None) as timeout:
            hasty_call = asyncio.create_task(_timed_out_when(model.started, timeout))
            await model.predict(1)
        await hasty_call

    with anyio.fail_after(5):
        first = asyncio.create_task(hasty())
        second = asyncio.create_task(model.predict(2))
        with pytest.raises(TimeoutError):
            await first
        model.go_on.set()
        assert await second == 4
    assert len(model.calls) == 1


async def _timed_out_when(event: anyio.Event, timeout: asyncio.Timeout) -> None:
    await event.wait()
    timeout.reschedule(asyncio.get_running_loop().time())


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_cancellation_is_told_to_the_call_once() -> None:
    """What its clean-up awaits then works, as people who write for asyncio expect."""
    cleaned_up = asyncio.Event()
    started = asyncio.Event()

    @batched(max_wait=0)
    async def lease(rows: list[int]) -> list[int]:
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()
        return rows

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lease, 1)
            await started.wait()
            tasks.cancel_scope.cancel()
    assert cleaned_up.is_set()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_caller_cancelled_twice_cuts_the_clean_up_of_its_call_short_and_still_sees_it_off() -> None:
    cut_short = 0
    started = asyncio.Event()

    @batched(max_wait=0)
    async def stubborn(rows: list[int]) -> list[int]:
        nonlocal cut_short
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                cut_short += 1
        return rows

    with anyio.fail_after(5):
        caller = asyncio.create_task(stubborn(1))
        before = asyncio.all_tasks()
        await started.wait()
        for _ in range(2):
            caller.cancel()
            await all_blocked()
        with pytest.raises(asyncio.CancelledError):
            await caller
    assert cut_short == 1
    assert asyncio.all_tasks() == before - {caller}


async def test_callers_that_went_away_make_room_for_others() -> None:
    model = HeldModel(max_records=2, max_wait=0, max_pending=4)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as staying:
            staying.start_soon(model.predict, 0)
            for callers in (1, 3, 3):
                async with anyio.create_task_group() as leaving:
                    for row in range(callers):
                        leaving.start_soon(model.predict, row)
                    await all_blocked()
                    if callers == 3:
                        with pytest.raises(FullError):
                            await model.predict(4)
                    leaving.cancel_scope.cancel()
            model.go_on.set()
    assert [len(rows) for rows in model.calls] == [2]


@pytest.mark.virtual_time
async def test_a_batch_whose_callers_all_left_takes_nobody_that_came_meanwhile() -> None:
    """In one turn of the loop the batch becomes full, its callers leave, and another comes."""
    model = HeldModel(max_records=2, max_wait=1)
    model.go_on.set()
    for _ in range(40):
        answers: list[int] = []

        async def call(answers: list[int] = answers) -> None:
            answers.append(await model.predict(1))

        async with trio.open_nursery() as staying, trio.open_nursery() as leaving:
            leaving.start_soon(model.predict, 2)
            await trio.testing.wait_all_tasks_blocked()
            leaving.start_soon(model.predict, 3)
            await trio.lowlevel.checkpoint()
            staying.start_soon(call)
            leaving.cancel_scope.cancel()
        assert answers == [2]


@pytest.mark.parametrize("max_wait", [0, 3600])
def test_an_event_loop_that_ends_takes_its_calls_with_it(max_wait: float) -> None:
    model_calls: list[int] = []

    @batched(max_wait=max_wait)
    async def hang(rows: list[int]) -> list[int]:
        model_calls.append(len(rows))
        await asyncio.sleep(3600)
        return rows

    async def main() -> None:
        callers = [asyncio.create_task(hang(row)) for row in range(3)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert [caller.done() for caller in callers] == [False] * 3

    for _ in range(2):
        asyncio.run(main())
    gc.collect()
    assert model_calls == ([3, 3] if max_wait == 0 else [])


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_batch_cancelled_before_its_first_step_leaves_the_line_to_another() -> None:
    model = HeldModel(max_wait=0)
    model.go_on.set()
    mine = asyncio.create_task(model.predict(1))
    others = asyncio.all_tasks()
    with anyio.fail_after(5):
        while not (started := asyncio.all_tasks() - others):
            await asyncio.sleep(0)
        for task in started:
            task.cancel()
        assert await mine == 2


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_caller_that_is_closed_by_hand_does_not_wait() -> None:
    model = HeldModel(max_wait=0)
    before = asyncio.all_tasks()
    call = model.predict(1)
    call.send(None)
    call.close()
    with anyio.fail_after(5):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0)
    assert model.calls == []
