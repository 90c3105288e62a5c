"""Finished batches come in any order and go out in the order in which they were cut. Pure, but for the wait."""

from __future__ import annotations

from streambatch.core.batches import Batch
from streambatch.core.outcomes import Outcome
from streambatch.core.signal import Signal
from streambatch.delivery.owner import Finished


class Resequencer:
    """Holds each batch back until all that were cut before it are there."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes of the scores that are ready."""
        self.is_closed = False
        """Whether nothing more will be added."""
        self._held: dict[int, Finished] = {}
        self._ready: list[Finished] = []
        self._next_sequence = 0
        self._changed = Signal()

    @property
    def is_empty(self) -> bool:
        """Whether no batch is ready."""
        return not self._ready

    def add(self, batch: Batch, outcome: Outcome) -> None:
        """Add a batch. Sequence numbers start at 0 and leave none out."""
        self._held[batch.sequence] = (batch, outcome)
        while (finished := self._held.pop(self._next_sequence, None)) is not None:
            self._ready.append(finished)
            self.size += len(finished[1].payload)
            self._next_sequence += 1
        if self._ready:
            self._changed.notify()

    def close(self) -> None:
        """Take note that nothing more will be added."""
        self.is_closed = True
        self._changed.notify()

    def take(self, size: int) -> list[Finished]:
        """Return the next batches that are ready: as many as have `size` bytes of scores, and no more."""
        count = taken = 0
        while count < len(self._ready) and taken < size:
            taken += len(self._ready[count][1].payload)
            count += 1
        finished, self._ready = self._ready[:count], self._ready[count:]
        self.size -= taken
        return finished

    async def changed(self) -> None:
        """Wait until a batch is ready or nothing more will be added."""
        await self._changed.wait()
