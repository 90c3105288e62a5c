"""Time that a test moves: an hour of sleeping passes in milliseconds, and clock and event loop agree about it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


class LoopClock:
    """A clock that shows the event loop's time, virtual or not: what a part reads fits what it sleeps.

    Only for code on the event loop. wall: so many seconds since the epoch at the loop's time 0.
    """

    def __init__(self, wall: float = 1_000_000_000.0) -> None:
        self._wall = wall

    def monotonic(self) -> float:
        return anyio.current_time()

    def wall(self) -> float:
        return self._wall + anyio.current_time()


def run_in_virtual_time(test: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Run an async function on trio, where time jumps to the next deadline whenever all tasks wait. Needs trio.

    Threads, sockets and files take real time, which this clock doesn't wait for: keep them out.
    """
    from trio.testing import MockClock

    return anyio.run(test, *arguments, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})
