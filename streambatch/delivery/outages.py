"""Outages of the outputs and of the state: a call that meets one is made again until it succeeds.

An outage elsewhere is no reason to lose, to double or to kill a record, nor to stop. The task that makes the call
waits, and so does everything behind it. Each output, and the state, is `up` or `out`, by its name:

| state | what happens | next | the observer is told |
| --- | --- | --- | --- |
| up | a call raises SinkOutage or StateOutage: it is held | out | `sink_failed` |
| out | the wait of a held call is over: it is made again | out | `sink_retried` |
| out | a held call raises an outage again | out, since the first | `sink_failed` |
| out | a held call succeeds | up | `sink_recovered` |
| out | a call succeeds that was not held | out | nothing: a sync may work while a write can't |
| either | a call raises anything else, which is raised | as before | `sink_failed` |
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import random
from typing import NamedTuple

import anyio

from streambatch.core.clock import Clock
from streambatch.core.errors import SinkOutage, StateOutage, StreambatchError
from streambatch.core.events import Observer
from streambatch.core.retry import Backoff, RetryPolicy

RETRIES = RetryPolicy(longest_seconds=30.0, asked_seconds_max=300.0)
"""What is out is tried again for ever."""


class Outage(NamedTuple):
    """An outage that lasts."""

    since: float
    """Monotonic seconds."""
    error: StreambatchError
    """The last error."""


class OutputOutages:
    """The outages that last, by the name of the output or state."""

    def __init__(self, clock: Clock, observer: Observer) -> None:
        self._clock, self._observer = clock, observer
        self.current: dict[str, Outage] = {}
        self.first = anyio.Event()
        """Set at the first outage of the run."""

    async def outlast(self, name: str, call: Callable[[], Awaitable[object]]) -> None:
        """Await `call`, again and again while it raises an outage. Anything else that it raises is raised."""
        backoff = Backoff(RETRIES, random)
        while True:
            try:
                await call()
            except (SinkOutage, StateOutage) as error:
                self._observer.sink_failed(name, error)
                known = self.current.get(name)
                self.first.set()
                self.current[name] = Outage(known.since if known else self._clock.monotonic(), error)
                # The other side may have said how long it wants to be left alone.
                await anyio.sleep(backoff.failed(error.retry_after or 0.0))
                self._observer.sink_retried(name)
            except Exception as error:
                self._observer.sink_failed(name, error)
                raise
            else:
                is_held = backoff.failures > 0
                if is_held and self.current.pop(name, None) is not None:
                    self._observer.sink_recovered(name)
                return

    async def run_unless_stopped(self, stop: anyio.Event, call: Callable[[], Awaitable[object]]) -> bool:
        """Await `call`, but give it up once there was an outage and `stop` is set. Returns whether it ended."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._give_up, stop, tasks.cancel_scope)
            await call()
            tasks.cancel_scope.cancel()
            return True
        # Reached if `_give_up` cancelled the scope, which keeps the cancellation to itself.
        return False

    def reasons(self, now: float) -> list[str]:
        """Return each outage with its duration and its error, as text. now: monotonic seconds."""
        return [f"{outage.error}; held for {now - outage.since:.0f} s" for outage in self.current.values()]

    async def _give_up(self, stop: anyio.Event, scope: anyio.CancelScope) -> None:
        await self.first.wait()
        await stop.wait()
        scope.cancel()
