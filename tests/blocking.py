"""Waiting until nothing moves any more, without the pauses of anyio's own function for it."""

import asyncio

import anyio.lowlevel
import trio.testing


async def all_blocked() -> None:
    """Return once every other task waits for something.

    As `anyio.wait_all_tasks_blocked`, which on asyncio looks every 0.1 s: this looks in each turn of the loop.
    """
    try:
        this = asyncio.current_task()
    except RuntimeError:
        await trio.testing.wait_all_tasks_blocked()
        return
    while not all(_is_blocked(task) for task in asyncio.all_tasks() if task is not this):
        await anyio.lowlevel.checkpoint()


def _is_blocked(task: "asyncio.Task[object]") -> bool:
    awaited = getattr(task, "_fut_waiter", None)
    return awaited is not None and not awaited.done()
