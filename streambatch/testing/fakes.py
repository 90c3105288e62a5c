"""Fakes of what a pipeline gives to a source: an intake that collects chunks, and a memory budget that keeps count.

As in a pipeline, a chunk counts as received once `put` is called, and its bytes are given back when `put` returns. A
source that reserves what it reads leaves `memory.used` at 0.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import anyio

from streambatch.core.budget import SMALLEST_MEMORY, Budget
from streambatch.core.chunks import Chunk
from streambatch.core.clock import Clock, SystemClock
from streambatch.core.events import Observer, Refusal
from streambatch.core.intake import Intake


class CountingMemory(Budget):
    """A budget that records its highest and lowest use; below 0, bytes were given back that were never taken."""

    # On the class: `Budget` sets `used` while an instance has none of them yet.
    peak = lowest = _used = 0

    @property
    def used(self) -> int:
        return self._used

    @used.setter
    def used(self, value: int) -> None:
        self._used = value
        self.peak, self.lowest = max(self.peak, value), min(self.lowest, value)


class RecordedEvent(NamedTuple):
    """One call of an observer."""

    event: str
    arguments: Mapping[str, Any]


class RecordingObserver(Observer):
    """Records every event in `events`, including events that later versions add."""

    def __init__(self) -> None:
        self.events: list[RecordedEvent] = []

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        if name.startswith("_") or not inspect.isfunction(getattr(Observer, name, None)):
            return attribute
        signature = inspect.signature(attribute)

        def record(*args: Any, **kwargs: Any) -> None:
            self.events.append(RecordedEvent(name, signature.bind(*args, **kwargs).arguments))
            attribute(*args, **kwargs)

        return record

    def named(self, event: str) -> list[Mapping[str, Any]]:
        """Return the arguments of every event of that name."""
        return [recorded.arguments for recorded in self.events if recorded.event == event]


class CollectingIntake(Intake):
    """Keeps every chunk. While it is stalled, `put` waits.

    chunks, count, size: the chunks put, their records and bytes. waiting: number of callers that wait in `put`.
    counts: records received and recovered. lost_records: records dropped because of damage.
    failure: if set, every `put` raises it, as when a pipeline fails.
    """

    run_id = "run"

    def __init__(self, *, memory: int = SMALLEST_MEMORY, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self.memory: CountingMemory = CountingMemory(memory)
        self.observer: RecordingObserver = RecordingObserver()
        self.chunks: list[Chunk] = []
        self.refusals: Counter[Refusal] = Counter()
        self.counts = {"received": 0, "recovered": 0}
        self.lost_records = 0
        self.count = self.size = self.waiting = 0
        self.failure: Exception | None = None
        self._changed = anyio.Event()
        self._gate: anyio.Event | None = None

    @property
    def has_room(self) -> bool:
        return self._gate is None

    def refused(self, records: int, reason: Refusal) -> None:
        self.refusals[reason] += records

    def received(self, chunk: Chunk) -> None:
        self.counts["received"] += chunk.count

    def recovered(self, chunk: Chunk) -> None:
        self.counts["recovered"] += chunk.count

    def lost(self, records: int) -> None:
        self.lost_records += records

    async def put(self, chunk: Chunk) -> None:
        """Take a chunk, or wait with it while stalled."""
        self.received(chunk)
        await self.enqueue(chunk)

    async def enqueue(self, chunk: Chunk) -> None:
        """Take a chunk that was counted, or wait with it while stalled."""
        self.chunks.append(chunk)
        self.count += chunk.count
        self.size += chunk.size
        self._notify()
        try:
            if self.failure is not None:
                raise self.failure
            await self._pass()
        finally:
            # Also when `put` raises or is cancelled: the chunk was taken over with the call.
            self.memory.give(chunk.size)

    def stall(self) -> None:
        """Make every later `put` wait."""
        self._gate = anyio.Event()

    def go_on(self) -> None:
        """Release every waiting `put`; without a stall, do nothing."""
        if self._gate is not None:
            self._gate.set()
            self._gate = None

    async def holds(self, count: int) -> None:
        """Wait until `count` records were put."""
        # A loop: the event is set for each chunk, and by each caller that begins to wait.
        while self.count < count:
            await self._changed.wait()

    async def is_waited_for(self) -> None:
        """Wait until a caller waits in `put`."""
        while not self.waiting:
            await self._changed.wait()

    async def _pass(self) -> None:
        if self._gate is None:
            return
        self.waiting += 1
        self._notify()
        try:
            await self._gate.wait()
        finally:
            self.waiting -= 1

    def _notify(self) -> None:
        # An event can't be unset: those who wait again, wait for the next one.
        self._changed.set()
        self._changed = anyio.Event()
