from contextlib import ExitStack

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.budget import Budget
from streambatch.core.errors import SourceError
from streambatch.core.leases import ALLOWANCE_MAX, ALLOWANCE_MIN, RecordLeases, leases_of

MIB = 1 << 20
pytestmark = pytest.mark.anyio


def test_one_budget_has_one_pool() -> None:
    memory = Budget(8 * MIB)
    assert leases_of(memory) is leases_of(memory)
    assert leases_of(memory) is not leases_of(Budget(8 * MIB))


def test_allowance_is_an_eighth_shared_by_all_connections() -> None:
    leases = RecordLeases(256 * MIB)
    with leases.shared_by("a", 1024, MIB):
        assert leases.allowance == 32 << 10
        with leases.shared_by("b", 1024, MIB):
            assert leases.allowance == 16 << 10
        assert leases.allowance == 32 << 10
    with leases.shared_by("a", 1, MIB):
        assert leases.allowance == ALLOWANCE_MAX


@given(st.integers(8 * MIB, 1 << 40), st.lists(st.integers(1, 100_000), min_size=1, max_size=5))
def test_allowances_never_hold_more_than_an_eighth(capacity: int, connections: list[int]) -> None:
    leases = RecordLeases(capacity)
    accepted = 0
    with ExitStack() as sources:
        for count in connections:
            try:
                sources.enter_context(leases.shared_by("a", count, 1))
            except SourceError:
                assert (accepted + count) * ALLOWANCE_MIN > capacity // 8
            else:
                accepted += count
            assert accepted * leases.allowance <= capacity // 8


def test_too_small_a_budget_is_refused() -> None:
    leases = RecordLeases(8 * MIB)
    records = pytest.raises(SourceError, match=r"tcp: max_record_bytes .* needs \[limits\] memory of at least 16 MiB")
    with records, leases.shared_by("tcp", 1, 8 * MIB):
        pass
    clients = pytest.raises(SourceError, match=r"tcp: 1025 connections need \[limits\] memory of at least 8\.008 MiB")
    with clients, leases.shared_by("tcp", 1025, MIB):
        pass


async def test_leases_are_lent_in_turn_and_only_while_there_are_some() -> None:
    leases = RecordLeases(8 * MIB)
    order: list[str] = []

    async def borrow(name: str, size: int) -> None:
        lent = await leases.take(size)
        order.append(name)
        leases.give(lent)

    first, second = leases.try_take(MIB), leases.try_take(MIB)
    assert first == second == MIB
    assert leases.try_take(MIB) == 0
    async with anyio.create_task_group() as tasks:
        for name, size in (("large", 2 * MIB), ("small", 1)):
            tasks.start_soon(borrow, name, size)
            await anyio.wait_all_tasks_blocked()
        assert leases.are_wanted
        leases.give(first)
        await anyio.wait_all_tasks_blocked()
        assert order == []
        leases.give(second)
    assert order == ["large", "small"]
    assert not leases.are_wanted


async def test_a_record_larger_than_the_pool_takes_all_of_it() -> None:
    leases = RecordLeases(8 * MIB)
    lent = await leases.take(3 * MIB)
    assert lent == 2 * MIB
    assert leases.try_take(1) == 0
    leases.give(lent)
    assert leases.try_take(1) == 1


async def test_cancelled_waits_lose_no_lease() -> None:
    leases = RecordLeases(8 * MIB)
    lent = await leases.take(2 * MIB)

    async def borrow(size: int) -> None:
        leases.give(await leases.take(size))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(borrow, 2 * MIB)
        tasks.start_soon(borrow, MIB)
        await anyio.wait_all_tasks_blocked()
        # The first is cancelled in the very moment it is granted, the second while it waits.
        leases.give(lent)
        tasks.cancel_scope.cancel()
    assert leases.try_take(2 * MIB) == 2 * MIB
