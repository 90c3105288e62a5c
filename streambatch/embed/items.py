"""Micro-batches of anything that can be iterated asynchronously."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from math import inf
from typing import Generic, TypeVar

import anyio

from streambatch.core.clock import Clock
from streambatch.core.signal import Signal
from streambatch.embed.background import ReadAhead
from streambatch.microbatch.window import BatchPolicy

Item = TypeVar("Item")

CLOSE_SECONDS = 5.0
"""How long a generator that is left early may take to clean up."""


class ItemBatches(ReadAhead, Generic[Item]):
    """Lists of an iterable's items; made by `microbatches`. One more list is filled while one is worked on."""

    def __init__(self, source: AsyncIterable[Item], policy: BatchPolicy, clock: Clock) -> None:
        super().__init__()
        self._source, self._policy, self._clock = source, policy, clock
        self._items: list[Item] = []
        self._deadline = inf
        self._changed, self._taken = Signal(), Signal()

    async def __anext__(self) -> list[Item]:
        """Wait for a batch and return it; cancelled, it loses nothing. Raises what the iterable raised."""
        while not self._is_due(now := self._clock.monotonic()):
            if self._state != "reading":
                raise self._ending()
            with anyio.move_on_after(self._deadline - now):
                await self._changed.wait()
        # Copied and cleared, not replaced: `_read` appends to this very list.
        batch = self._items.copy()
        self._items.clear()
        self._deadline = inf
        self._taken.notify()
        return batch

    def _is_due(self, now: float) -> bool:
        items = self._items
        return len(items) >= self._policy.max_records or (
            bool(items) and (now >= self._deadline or self._state != "reading")
        )

    async def _read(self) -> None:
        iterator = aiter(self._source)
        try:
            items, full = self._items, self._policy.max_records
            async for item in iterator:
                if not items:
                    # The program may wait for the first item without a deadline: it is woken, to wait until this one.
                    self._deadline = self._clock.monotonic() + self._policy.max_wait
                    self._changed.notify()
                items.append(item)
                if len(items) >= full:
                    self._changed.notify()
                    await self._taken.wait()
        finally:
            # An `async for` that is left early doesn't close its generator, which may hold files or connections.
            if isinstance(iterator, AsyncGenerator):
                with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                    await iterator.aclose()

    def _stopped(self) -> None:
        if self._state == "left":
            self._items.clear()
        self._changed.notify()
