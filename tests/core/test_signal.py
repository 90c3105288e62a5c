"""Signals: who is woken, and by which notification."""

from __future__ import annotations

import anyio
import pytest

from streambatch.core.signal import Signal
from tests.blocking import all_blocked

pytestmark = pytest.mark.anyio


async def test_wakes_all_who_wait() -> None:
    signal = Signal()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(signal.wait)
            tasks.start_soon(signal.wait)
            await all_blocked()
            signal.notify()


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
            await all_blocked()
            signal.notify()
        await all_blocked()
        tasks.cancel_scope.cancel()
    assert turns == 3


async def test_forgets_a_notification_for_which_no_task_waits() -> None:
    signal = Signal()
    signal.notify()
    woken = False

    async def wait() -> None:
        nonlocal woken
        await signal.wait()
        woken = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await all_blocked()
        assert not woken
        tasks.cancel_scope.cancel()


async def test_knows_whether_a_task_waits() -> None:
    signal = Signal()
    assert not signal.is_awaited
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(signal.wait)
        await all_blocked()
        assert signal.is_awaited
        signal.notify()
        assert not signal.is_awaited


def test_is_made_outside_of_a_loop_and_notified_there() -> None:
    Signal().notify()
