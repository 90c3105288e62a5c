"""The byte budget: what is taken and not given back, first come first served, cancel-safe."""

import anyio
import pytest

from streambatch.core.budget import Budget, Limits
from streambatch.core.errors import ConfigError

pytestmark = pytest.mark.anyio


async def test_reserve_waits_its_turn_and_a_small_one_does_not_overtake() -> None:
    budget = Budget(100)
    await budget.reserve(80)
    order: list[str] = []

    async def ask(name: str, size: int) -> None:
        await budget.reserve(size)
        order.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "large", 60)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(ask, "small", 10)
        await anyio.wait_all_tasks_blocked()
        assert (order, budget.used) == ([], 80)
        budget.give(40)
        await anyio.wait_all_tasks_blocked()
        assert (order, budget.used) == (["large"], 100)
        budget.give(10)
    assert order == ["large", "small"]
    assert budget.used == 100


async def test_more_than_the_capacity_is_given_when_all_is_free() -> None:
    budget = Budget(10)
    await budget.reserve(1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(budget.reserve, 25)
        await anyio.wait_all_tasks_blocked()
        assert budget.used == 1
        budget.give(1)
    assert budget.used == 25


@pytest.mark.parametrize("granted_first", [False, True])
async def test_a_cancelled_reserve_takes_nothing_and_lets_the_next_one_in(granted_first: bool) -> None:
    budget = Budget(10)
    await budget.reserve(10)
    done = anyio.Event()

    async def next_in_line() -> None:
        await budget.reserve(10)
        done.set()

    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def cancelled() -> None:
            with scope:
                await budget.reserve(10)

        tasks.start_soon(cancelled)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(next_in_line)
        await anyio.wait_all_tasks_blocked()
        if granted_first:
            budget.give(10)
            scope.cancel()
        else:
            scope.cancel()
            budget.give(10)
        with anyio.fail_after(5):
            if granted_first and scope.cancelled_caught is False:
                await anyio.wait_all_tasks_blocked()
                if not done.is_set():
                    budget.give(10)
            await done.wait()
    assert budget.used == 10


def test_a_budget_too_small_to_work_with_is_refused() -> None:
    with pytest.raises(ConfigError, match="memory: found 1024 bytes; allowed: at least 8MiB"):
        Limits(memory=1024)
