"""What a pipeline gives a source, to be used in tests of one: an intake that collects, with memory that keeps count.

A chunk counts as received from the call of `put` on, as in a pipeline, and its bytes are given back when `put` is done
with it: a source that accounts for what it reads leaves `memory.used` at 0.
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


class CountingMemory(Budget):
    """A budget that remembers the most and the least that was ever taken; less than 0 was given without being taken."""

    peak = lowest = _used = 0

    @property
    def used(self) -> int:
        return self._used

    @used.setter
    def used(self, value: int) -> None:
        self._used = value
        self.peak, self.lowest = max(self.peak, value), min(self.lowest, value)


class Told(NamedTuple):
    """One call of an observer."""

    event: str
    arguments: Mapping[str, Any]


class RecordingObserver(Observer):
    """Keeps every event it is told of, in `events`, those of later versions too."""

    def __init__(self) -> None:
        self.events: list[Told] = []

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        if name.startswith("_") or not inspect.isfunction(getattr(Observer, name, None)):
            return attribute
        signature = inspect.signature(attribute)

        def record(*args: Any, **kwargs: Any) -> None:
            self.events.append(Told(name, signature.bind(*args, **kwargs).arguments))
            attribute(*args, **kwargs)

        return record

    def named(self, event: str) -> list[Mapping[str, Any]]:
        """Return the arguments of every event of that name."""
        return [told.arguments for told in self.events if told.event == event]


class CollectingIntake:
    """Keeps every chunk; while it is stalled, whoever puts one waits.

    chunks, count, size: what was put, and its records and bytes. waiting: how many wait in `put`.
    counts: records received and recovered. lost_records: those dropped for damage.
    failure: set it, and every `put` raises it, as when a pipeline gives up.
    """

    run_id = "run"

    def __init__(self, *, memory: int = SMALLEST_MEMORY, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self.memory = CountingMemory(memory)
        self.observer = RecordingObserver()
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
            self.memory.give(chunk.size)

    def stall(self) -> None:
        """Have every later `put` wait."""
        self._gate = anyio.Event()

    def go_on(self) -> None:
        """Let in all that waits; does nothing unless stalled."""
        if self._gate is not None:
            self._gate.set()
            self._gate = None

    async def holds(self, count: int) -> None:
        """Wait until so many records were put."""
        while self.count < count:
            await self._changed.wait()

    async def is_waited_for(self) -> None:
        """Wait until somebody waits in `put`."""
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
        self._changed.set()
        self._changed = anyio.Event()
