"""Holds what an outage keeps from being done, and tries it again until it is cured.

An outage elsewhere is no reason to lose, to double or to bury a record, nor to stop: whoever needs what is out waits,
and everything before it waits too.
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
    """Since when (monotonic seconds) something is out, and what it says."""

    since: float
    error: StreambatchError


class Holding:
    """What is out at the moment, by its name."""

    def __init__(self, clock: Clock, observer: Observer) -> None:
        self._clock, self._observer = clock, observer
        self.outages: dict[str, Outage] = {}
        self.failed = anyio.Event()
        """Set at the first outage."""

    async def through(self, name: str, call: Callable[[], Awaitable[object]]) -> None:
        """Await `call` until it raises no outage. What else it raises is raised."""
        backoff, is_held = Backoff(RETRIES, random), False
        while True:
            try:
                await call()
            except (SinkOutage, StateOutage) as error:
                is_held = True
                self._observer.sink_failed(name, error)
                known = self.outages.get(name)
                self.failed.set()
                self.outages[name] = Outage(known.since if known else self._clock.monotonic(), error)
                await anyio.sleep(backoff.failed(error.retry_after or 0.0))
                self._observer.sink_retried(name)
            except Exception as error:
                self._observer.sink_failed(name, error)
                raise
            else:
                # What wasn't held itself, such as a sync beside a write that is, cures nothing.
                if is_held and self.outages.pop(name, None) is not None:
                    self._observer.sink_recovered(name)
                return

    async def unless(self, stop: anyio.Event, call: Callable[[], Awaitable[object]]) -> bool:
        """Await `call`, and give it up once there was an outage and a stop was asked for. Returns whether it ended."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._give_up, stop, tasks.cancel_scope)
            await call()
            tasks.cancel_scope.cancel()
            return True
        return False

    async def _give_up(self, stop: anyio.Event, scope: anyio.CancelScope) -> None:
        await self.failed.wait()
        await stop.wait()
        scope.cancel()

    def reasons(self, now: float) -> list[str]:
        """Say what is out, for how long, and why."""
        return [f"{outage.error}; held for {now - outage.since:.0f} s" for outage in self.outages.values()]
