"""Virtual time for tests: an hour of sleeping passes in milliseconds, for the clock and the event loop alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


class LoopClock:
    """A clock that shows the event loop's time, virtual or real, so that both always agree.

    Only for code on the event loop. wall: seconds since the epoch at the loop's time 0.
    """

    def __init__(self, wall: float = 1_000_000_000.0) -> None:
        self._wall = wall

    def monotonic(self) -> float:
        return anyio.current_time()

    def wall(self) -> float:
        return self._wall + anyio.current_time()


def run_in_virtual_time(test: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Run an async function on trio, with a clock that jumps to the next deadline when all tasks wait. Needs trio.

    Don't use threads, sockets or files in it: they take real time, and the clock doesn't wait for them.
    """
    # Imported here, since trio is needed by tests only.
    from trio.testing import MockClock

    return anyio.run(test, *arguments, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})
