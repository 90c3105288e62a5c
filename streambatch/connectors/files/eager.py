"""Blocking calls in threads that begin before anything else runs.

A reader that hands over a block and then asks for the next finds it read when the event loop, busy with scoring, has
time again. anyio's own calls in threads begin only some turns of the loop later.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


async def call_eagerly(function: Callable[[], T]) -> T:
    """Call a function in a thread, on asyncio; cancellation waits until it has returned."""
    call = asyncio.get_running_loop().run_in_executor(None, function)
    # A thread can't be interrupted: given up, it would still read, from a file that its caller closes.
    with anyio.CancelScope(shield=True):
        await call
    return call.result()
