"""Signals on virtual time."""

from __future__ import annotations

import anyio
import pytest

from streambatch.core.signal import Signal

pytestmark = pytest.mark.anyio


async def woken(signal: Signal) -> bool:
    """Whether the next notification comes within a second."""
    with anyio.move_on_after(1):
        await signal.wait()
        return True
    return False


async def test_wakes_all_who_wait() -> None:
    signal, found = Signal(), []

    async def wait() -> None:
        found.append(await woken(signal))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        signal.notify()
    assert found == [True, True]


async def test_wakes_again_and_again() -> None:
    signal, turns = Signal(), 0
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            nonlocal turns
            while True:
                await signal.wait()
                turns += 1

        tasks.start_soon(wait)
        for _ in range(3):
            await anyio.wait_all_tasks_blocked()
            signal.notify()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert turns == 3


async def test_forgets_a_notification_for_which_no_task_waits() -> None:
    signal = Signal()
    signal.notify()
    assert not await woken(signal)


async def test_knows_whether_a_task_waits() -> None:
    signal = Signal()
    assert not signal.is_awaited
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(signal.wait)
        await anyio.wait_all_tasks_blocked()
        assert signal.is_awaited
        signal.notify()
        assert not signal.is_awaited


def test_is_made_outside_of_a_loop_and_notified_there() -> None:
    Signal().notify()
